"""The loop: batches in, steps, metrics and checkpoints out. It knows no method by name."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from penchant.config.keys import RunConfig
from penchant.core.machine import memory_peak_bytes, out_of_memory_explained
from penchant.data.source import Ahead, Source, StepBatch
from penchant.models.reference import KeptSums
from penchant.training.checkpoint import Checkpoints
from penchant.training.checkpoint_files import drop_unasked
from penchant.training.folder import RunDirectory
from penchant.training.interruption import watch_signals
from penchant.training.progress import TrainingProgress
from penchant.training.step import Step

if TYPE_CHECKING:
    from penchant.core.evaluation import Evaluation
    from penchant.training.guard import Guard

logger = logging.getLogger("penchant")


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint."""

    step: int = 0
    seconds: float = 0.0
    examples: int = 0
    tokens: int = 0
    best_step: int | None = None
    best: tuple[float, float] | None = None
    """The rank of that evaluation."""


@dataclass
class Engine:
    """One run's loop over a source of batches.

    Args:
        config: the validated keys.
        step: takes the optimizer steps.
        source: the batches.
        evaluate: held-out evaluation, or None.
        run: the run directory.
        after_step: called with the number of each step that was taken.
        kept: what the reference said so far, saved with every checkpoint.
        guard: watches the run; None for one that is not watched.
    """

    config: RunConfig
    step: Step
    source: Source
    evaluate: Callable[[], Evaluation] | None
    run: RunDirectory
    after_step: Callable[[int], None] | None = None
    kept: KeptSums | None = None
    guard: Guard | None = None
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        self.accelerator, self.team = self.step.accelerator, self.run.team
        self.checkpoints = Checkpoints(
            folder=self.run.checkpoints,
            team=self.team,
            step=self.step,
            source=self.source,
            kept=self.kept,
            keep_newest=self.config.save_total_limit,
        )

    def fit(self) -> None:
        """Train to the end, logging, evaluating and saving as configured."""
        total, progress = self.source.num_steps, self.progress
        with (
            watch_signals() as interruption,
            TrainingProgress(total, progress.step, shown=self.team.leads) as bar,
        ):
            started = self._saved_at = time.perf_counter()
            ahead = Ahead(self.source, progress.step, self.step.objective.look_ahead)
            for batch in () if self._stopped else ahead:
                remedy = partial(_remedy, batch)
                with out_of_memory_explained(f"step {batch.step} was taken", remedy):
                    metrics = self.step.take(batch, ahead.look)
                self.source.observe(metrics)
                if self.after_step is not None:
                    self.after_step(batch.step)
                # One clock for all: what is due by time is due for every process, or for none.
                seconds = self.team.agree(time.perf_counter() - started)
                progress.step = batch.step
                progress.seconds += seconds
                progress.examples += batch.num_examples
                progress.tokens += int(metrics["tokens"])
                metrics["tokens_per_second"] = metrics["tokens"] / seconds
                peak = memory_peak_bytes(self.accelerator.device)
                metrics["memory_peak_bytes"] = max(self.team.gather(peak))
                if batch.step % self.config.logging_steps == 0 or batch.step == total:
                    self.log({"step": batch.step, "epoch": round(batch.epoch, 6), **metrics})
                remaining = progress.seconds / batch.step * (total - batch.step)
                bar.update(batch.step, metrics, remaining)
                self._between_steps(last=batch.step == total)
                if self._stopped:
                    break
                if batch.step < total and any(self.team.gather(interruption.wanted)):
                    from penchant.training.failing import interrupt

                    self.save()
                    interrupt(progress.step, self.config.method, self.run.path)
                started = time.perf_counter()
            if progress.step < total and not self._stopped:
                self.save()  # the source has nothing more to give

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Write one record of metrics to the run and its trackers."""
        if self.guard is not None:
            self.guard.note(metrics)
        self.run.append("metrics.jsonl", metrics)
        values = {k: v for k, v in metrics.items() if k != "step"}
        self.accelerator.log(values, step=metrics["step"])

    def _between_steps(self, *, last: bool) -> None:
        config, step = self.config, self.progress.step
        # It may put earlier weights back: what is evaluated, and saved as that, is what it leaves.
        keep = self.guard is not None and self.guard.after(step, self.progress.seconds)
        ends = last or self._stopped
        if not ends and config.eval_steps and step % config.eval_steps == 0:
            keep |= self.evaluate_now()
        minutes = self.team.agree((time.perf_counter() - self._saved_at) / 60)
        due = step % config.save_steps == 0 or 0 < config.save_minutes <= minutes
        # What follows the last step may fail: evaluation, sampling, saving the model.
        if ends or keep or due:
            self.save()

    @property
    def _stopped(self) -> bool:
        return self.guard is not None and bool(self.guard.stopped)

    def evaluate_now(self) -> bool:
        """Evaluate, log, and tell whether this is the best so far."""
        if self.evaluate is None:
            return False
        evaluation = self.evaluate()
        step = self.progress.step
        self.log({"step": step, **{f"eval/{k}": v for k, v in evaluation.metrics().items()}})
        return self.judge(evaluation)

    def judge(self, evaluation: Evaluation) -> bool:
        """Tell whether an evaluation of this step is the best so far."""
        step, score = self.progress.step, evaluation.rank
        blind = evaluation.quality[1] == float("-inf")  # nothing says what is better
        if step == 0 or blind or (self.progress.best and score <= self.progress.best):
            return False
        self.progress.best, self.progress.best_step = score, step
        return True

    def save(self) -> None:
        """Save a checkpoint and drop those that are no longer wanted."""
        extra: dict[str, Any] = {"progress": vars(self.progress)}
        best = {self.progress.best_step}
        if self.guard is not None:
            extra["guard"] = self.guard.state()
            best.add(self.guard.best_step)
        self.checkpoints.save(
            self.progress.step, extra, keep={step for step in best if step is not None}
        )
        self._saved_at = time.perf_counter()

    def drop_last_checkpoint(self) -> None:
        """Once the run is complete, only the checkpoints that were asked for stay."""
        if self.team.leads:
            drop_unasked(self.run.checkpoints, self.progress.step, self.config.save_steps)


def _remedy(batch: StepBatch[Any]) -> str:
    from penchant.training.failing import what_takes_less

    return what_takes_less(batch)
