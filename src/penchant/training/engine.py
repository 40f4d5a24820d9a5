"""The loop: the only place that takes an optimizer step. It knows no method by name."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from penchant.core.errors import TrainingError
from penchant.core.evaluation import Evaluation
from penchant.core.findings import Finding
from penchant.core.machine import memory_peak_bytes
from penchant.data.source import Source, StepBatch
from penchant.models.scoring import Scorer
from penchant.training.checkpoint import (
    TrainingState,
    load_checkpoint,
    load_newest,
    prune_checkpoints,
    remove_checkpoint,
    save_checkpoint,
)
from penchant.training.folder import RunDirectory
from penchant.training.guard import Guard
from penchant.training.metrics import StepMetrics
from penchant.training.optimizer import (
    load_optimizer,
    make_optimizer,
    make_scheduler,
    optimizer_tensors,
    random_state,
    set_random_state,
)
from penchant.training.progress import TrainingProgress

if TYPE_CHECKING:
    from accelerate import Accelerator

    from penchant.config.keys import RunConfig
    from penchant.objectives import Objective

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
        accelerator: made with this run's precision and trackers.
        scorer: the policy, planned; its trainable parameters are what is trained.
        source: the batches.
        objective: examples to losses.
        evaluate: held-out evaluation, or None.
        run: the run directory.
        after_step: called with the number of each step that was taken.
        extra_weights: what else training changes, saved with every checkpoint.
        veto: tells from a step's mean metrics whether its gradient is thrown away.
        optimization: optimizer and schedule, in place of what `config` says of them.
        guard: watches the run; None for one that is not watched.
    """

    config: RunConfig
    accelerator: Accelerator
    scorer: Scorer
    source: Source
    objective: Objective
    evaluate: Callable[[], Evaluation] | None
    run: RunDirectory
    after_step: Callable[[int], None] | None = None
    extra_weights: Mapping[str, torch.Tensor] = field(default_factory=dict)
    veto: Callable[[Mapping[str, float]], bool] | None = None
    optimization: tuple[torch.optim.Optimizer, Any] | None = None
    guard: Guard | None = None
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        self.parameters = {n: p for n, p in self.scorer.named_parameters() if p.requires_grad}
        if self.optimization is None:
            optimizer = make_optimizer(self.parameters, self.config)
            schedule = make_scheduler(optimizer, self.config, self.source.num_steps)
            self.optimization = optimizer, schedule
        optimizer, self.scheduler = self.optimization
        self.wrapped, self.optimizer = self.accelerator.prepare(self.scorer, optimizer)

    def restore(self) -> None:
        """Go on from the newest sound checkpoint, if there is one."""
        state = load_newest(self.run.checkpoints)
        if state is None:
            self._rewind(-1)
            logger.info("no checkpoint in %s: starting from the first step", self.run.path)
            return
        self._load_weights(state)
        load_optimizer(self.optimizer.optimizer, self.parameters, state.optimizer)
        self.scheduler.load_state_dict(state.extra["scheduler"])
        # The scheduler remembers its rates, but hands them to the optimizer only when it steps.
        groups = self.optimizer.optimizer.param_groups
        for group, rate in zip(groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        if self.accelerator.scaler is not None and state.extra["scaler"]:
            self.accelerator.scaler.load_state_dict(state.extra["scaler"])
        set_random_state(state.random)
        self.source.load_state(state.source, state.extra.get("source", {}))
        saved = dict(state.extra["progress"])
        saved["best"] = tuple(saved["best"]) if saved["best"] else None
        self.progress = Progress(**saved)
        self._rewind(self.progress.step)
        if self.guard is not None and "guard" in state.extra:
            self.guard.load_state(state.extra["guard"])
        logger.info("resumed from step %d of %s", self.progress.step, self.run.path)

    def _rewind(self, step: int) -> None:
        if self.accelerator.is_main_process:
            self.run.rewind(step)

    def fit(self) -> None:
        """Train to the end, logging, evaluating and saving as configured."""
        total, main = self.source.num_steps, self.accelerator.is_main_process
        progress = self.progress
        with TrainingProgress(total, progress.step, shown=main) as bar:
            started = time.perf_counter()
            for batch in () if self._stopped else self.source.steps(progress.step):
                metrics = self.take(batch)
                self.source.observe(metrics)
                if self.after_step is not None:
                    self.after_step(batch.step)
                seconds = time.perf_counter() - started
                progress.step = batch.step
                progress.seconds += seconds
                progress.examples += batch.num_examples
                progress.tokens += int(metrics["tokens"])
                metrics["tokens_per_second"] = metrics["tokens"] / seconds
                metrics["memory_peak_bytes"] = memory_peak_bytes(self.accelerator.device)
                if batch.step % self.config.logging_steps == 0 or batch.step == total:
                    self.log({"step": batch.step, "epoch": round(batch.epoch, 6), **metrics})
                remaining = progress.seconds / batch.step * (total - batch.step)
                bar.update(batch.step, metrics, remaining)
                self._between_steps(last=batch.step == total)
                if self._stopped:
                    break
                started = time.perf_counter()
            if progress.step < total and not self._stopped:
                self.save()  # the source has nothing more to give

    def take(self, batch: StepBatch[Any]) -> dict[str, float]:
        """One optimizer step: forward and backward passes, clipping, update.

        Returns:
            Means over the batch's examples, with `grad_norm` before clipping and `learning_rate`.
        """
        self.wrapped.train()
        sums = StepMetrics()
        count, world = batch.num_examples, self.accelerator.num_processes
        last = len(batch.micro_batches) - 1
        with self.accelerator.autocast():
            shared = self.objective.prepare(self.wrapped, batch)
        for i, (examples, weight) in enumerate(batch.micro_batches):
            # Gradients travel between processes once a step, behind the last pass.
            self.accelerator.sync_gradients = i == last
            with _maybe_no_sync(self.accelerator, self.wrapped, sync=i == last):
                with self.accelerator.autocast():
                    output, num_tokens = self.objective(self.wrapped, examples, shared)
                self._require_finite(output.per_example, examples, batch.step)
                # DDP averages over processes, so that the mean over all examples needs `world`.
                loss = output.per_example.sum() * (weight * world / count)
                self.accelerator.backward(loss)
            sums.add({"loss": output.per_example, **output.metrics}, weight)
            sums.count("tokens", num_tokens * weight)
        means = sums.means(self.accelerator)
        if self.veto is not None and self.veto(means):
            for parameter in self.parameters.values():
                if parameter.grad is not None:
                    parameter.grad.zero_()
            means["skipped"] = 1.0
        grad_norm = self._update(batch)
        learning_rate = self._last_learning_rate
        return {**batch.metrics, **means, "grad_norm": grad_norm, "learning_rate": learning_rate}

    def _update(self, batch: StepBatch[Any]) -> float:
        """Clip and step; returns the norm of the gradient before clipping."""
        norm = self.accelerator.clip_grad_norm_(
            list(self.parameters.values()), self.config.max_grad_norm
        )
        grad_norm = float(norm)
        scaling = self.accelerator.scaler is not None  # it skips such steps itself
        if not math.isfinite(grad_norm) and not scaling:
            self._fail("the gradient", [e for m, _ in batch.micro_batches for e in m], batch.step)
        self._last_learning_rate = self.scheduler.get_last_lr()[0]
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        return grad_norm

    def _require_finite(self, losses: torch.Tensor, examples: Sequence[Any], step: int) -> None:
        bad = (~torch.isfinite(losses)).nonzero().flatten().tolist()
        if bad:
            self._fail("the loss", [examples[i] for i in bad], step)

    def _fail(self, what: str, examples: Sequence[Any], step: int) -> None:
        rows = ", ".join(example.where for example in examples[:8])
        found = Finding(
            id="not-finite",
            severity="error",
            what=what,
            remedy="lower learning_rate, look at these records, or use precision bf16 or fp32 "
            "where it is fp16",
            evidence={"rows": rows},
        )
        self.run.append("findings.jsonl", {**found.record(step), "rows": rows})
        raise TrainingError(
            f"{what} is not finite at step {step} (records {rows}); lower learning_rate, look at "
            "these records, or use precision bf16 or fp32 where it is fp16"
        )

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Write one record of metrics to the run and its trackers."""
        if self.guard is not None:
            self.guard.note(metrics)
        if self.accelerator.is_main_process:
            self.run.append("metrics.jsonl", metrics)
        values = {k: v for k, v in metrics.items() if k != "step"}
        self.accelerator.log(values, step=metrics["step"])

    def _between_steps(self, *, last: bool) -> None:
        config, step = self.config, self.progress.step
        better = False
        if not last and config.eval_steps and step % config.eval_steps == 0:
            better = self.evaluate_now()
        if self.guard is not None:
            better |= self.guard.after(step, self.progress.seconds)
        # What follows the last step may fail: evaluation, sampling, saving the model.
        if last or self._stopped or better or step % config.save_steps == 0:
            self.save()

    @property
    def _stopped(self) -> bool:
        return self.guard is not None and bool(self.guard.stopped)

    def roll_back(self, step: int) -> None:
        """Go on from the weights and moments of a checkpoint, with the batches that come next."""
        state = load_checkpoint(self.run.checkpoints, step)
        self._load_weights(state)
        load_optimizer(self.optimizer.optimizer, self.parameters, state.optimizer)
        self.source.discard()

    def evaluate_now(self) -> bool:
        """Evaluate, log, and tell whether this is the best so far."""
        if self.evaluate is None:
            return False
        found = self.evaluate()
        step = self.progress.step
        self.log({"step": step, **{f"eval/{k}": v for k, v in found.metrics().items()}})
        return self.judge(found)

    def judge(self, found: Evaluation) -> bool:
        """Tell whether an evaluation of this step is the best so far."""
        step, score = self.progress.step, found.rank
        if step == 0 or (self.progress.best is not None and score <= self.progress.best):
            return False
        self.progress.best, self.progress.best_step = score, step
        return True

    def save(self) -> None:
        """Save a checkpoint and drop those that are no longer wanted."""
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        optimizer = self.optimizer.optimizer
        source, source_record = self.source.state()
        state = TrainingState(
            step=self.progress.step,
            weights={n: p.detach().cpu().contiguous() for n, p in self._saved_weights().items()},
            optimizer=optimizer_tensors(optimizer, self.parameters),
            random=random_state(),
            source=source,
            extra={
                "scheduler": self.scheduler.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else None,
                "progress": vars(self.progress),
                "source": source_record,
                **({} if self.guard is None else {"guard": self.guard.state()}),
            },
        )
        save_checkpoint(self.run.checkpoints, state)
        best = {self.progress.best_step, self.guard.best_step if self.guard else None}
        prune_checkpoints(
            self.run.checkpoints,
            step=self.progress.step,
            keep_newest=self.config.save_total_limit,
            keep={step for step in best if step is not None},
        )

    def load_best(self) -> int:
        """Put the weights of the best evaluation back; returns the step they are of."""
        best = self.progress.best_step
        if best is None or best == self.progress.step:
            return self.progress.step
        try:
            self._load_weights(load_checkpoint(self.run.checkpoints, best))
        except TrainingError as error:
            logger.warning("%s; the weights of the last step are kept instead", error)
            return self.progress.step
        return best

    def drop_last_checkpoint(self) -> None:
        """Once the run is complete, only the checkpoints that were asked for stay."""
        step = self.progress.step
        if self.accelerator.is_main_process and step % self.config.save_steps:
            remove_checkpoint(self.run.checkpoints, step)

    def _saved_weights(self) -> dict[str, torch.Tensor]:
        return {**self.parameters, **self.extra_weights}

    @torch.no_grad()
    def _load_weights(self, state: TrainingState) -> None:
        for name, parameter in self._saved_weights().items():
            parameter.copy_(state.weights[name])


def _maybe_no_sync(accelerator: Accelerator, model: torch.nn.Module, *, sync: bool) -> Any:
    from contextlib import nullcontext

    return nullcontext() if sync else accelerator.no_sync(model)
