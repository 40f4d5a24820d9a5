"""One run on a setup: its folder, training, evaluation, samples, and the saved model."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from accelerate.utils import set_seed

from penchant.config.keys import RunConfig
from penchant.core.errors import TrainingError
from penchant.core.findings import SEVERITIES
from penchant.core.machine import memory_peak_bytes, out_of_memory_explained, versions
from penchant.core.screen import track
from penchant.guards.checks.gather import find_faults
from penchant.guards.checks.snapshot import Snapshot
from penchant.guards.monitors.make import make_supervisor
from penchant.models.linear import chosen_products
from penchant.models.locate import is_adapter
from penchant.models.save import save_model
from penchant.reporting import write_end_of_run
from penchant.training.engine import Engine
from penchant.training.folder import RunDirectory
from penchant.training.kind import kind_of, make_objective
from penchant.training.references import keep_sums
from penchant.training.result import TrainResult
from penchant.training.setup import Setup
from penchant.training.step import make_step

if TYPE_CHECKING:
    from penchant.core.evaluation import Evaluation

logger = logging.getLogger("penchant")


def run_on(
    config: RunConfig,
    accelerator: Accelerator,
    directory: RunDirectory,
    setup: Setup,
    snapshot: Snapshot,
    *,
    keep_last: bool = False,
) -> TrainResult:
    """Carry out a run on what is already loaded.

    Args:
        config, accelerator, directory: of the run.
        setup: runs may follow each other on it.
        snapshot: what the checks saw of the run, or of one on the same setup.
        keep_last: leave the last checkpoint, for a caller that has more to do with the weights.
    """
    config = setup.decide(config)
    remedy = "set lower per_device_eval_batch_size and max_new_tokens, or a smaller model"
    explained = out_of_memory_explained("the run sampled, monitored or saved", remedy)
    try:
        with _tracked(config, accelerator), explained:
            return _Run(config, accelerator, directory, setup, snapshot, keep_last).carry_out()
    except Exception as error:
        from penchant.training.failing import is_disk_full

        if not is_disk_full(error) or isinstance(error, TrainingError):
            raise
        raise TrainingError(
            f"the disk is full: {error}; free some space and run again with --resume"
        ) from error


def _tracked(config: RunConfig, accelerator: Accelerator) -> AbstractContextManager[None]:
    if not config.trackers:
        return nullcontext()
    from penchant.training.trackers import tracked

    return tracked(accelerator, config)


@dataclass
class _Run:
    """One run on a setup: train, evaluate, save, summarise."""

    config: RunConfig
    accelerator: Accelerator
    directory: RunDirectory
    setup: Setup
    snapshot: Snapshot
    keep_last: bool

    def __post_init__(self) -> None:
        config, accelerator, setup = self.config, self.accelerator, self.setup
        directory, self.team = self.directory, self.directory.team
        kept = keep_sums(config, accelerator, setup.reference)
        self.objective = make_objective(config, accelerator, setup, reference=kept)
        self.kind = kind_of(config.spec)
        source = self.kind.source(config, accelerator, setup, directory)
        # Runs of a sweep share a setup and what was seen of it, but not all keys.
        self.snapshot = replace(self.snapshot, config=config, num_steps=source.num_steps)
        step = make_step(
            config,
            accelerator,
            setup.scorer,
            self.objective,
            num_steps=source.num_steps,
            say=directory.say,
        )
        self.engine = Engine(
            config=config,
            step=step,
            source=source,
            evaluate=self.evaluate if setup.eval_set else None,
            run=directory,
            kept=kept,
        )
        if config.sync_ref_model:
            from penchant.training.syncing import let_follow

            let_follow(self.engine, setup)
        self.guard, self.said = make_supervisor(config, accelerator, setup, self.engine)
        self.engine.guard = self.guard

    def carry_out(self) -> TrainResult:
        """Train, evaluate, save, summarise."""
        engine, setup = self.engine, self.setup
        if self.team.rank:  # masks of dropout differ by process
            set_seed(self.config.seed + self.team.rank)
        if self.directory.resumed:
            from penchant.training.restoring import resume

            resume(engine)
            # The last step was saved before it was evaluated, and the run may go further.
            if (logged := self._logged_evaluation(engine.progress.step)) is not None:
                engine.judge(logged)
        else:
            self._save_audit()
            for finding in [*find_faults(self.snapshot, setup.train_set), *setup.notes]:
                self.directory.say(0, finding)
        progress = engine.progress
        if self.config.eval_on_start:
            self._look(0)
        if progress.step == 0:
            self._guard_from_start()
        engine.fit()
        step = progress.step
        if setup.eval_set and self._logged_evaluation(step) is None:
            engine.evaluate_now()
        if self.config.load_best_model_at_end:
            from penchant.training.restoring import load_best

            step = load_best(engine)
        self._sample(progress.step)
        self._measure_divergence(progress.step)
        self._save_model()
        result = TrainResult(
            output=self.config.output,
            model=self.directory.model,
            steps=progress.step,
            train_seconds=progress.seconds,
            examples_per_second=progress.examples / progress.seconds,
            tokens_per_second=progress.tokens / progress.seconds,
            memory_peak_bytes=max(self.team.gather(memory_peak_bytes(self.accelerator.device))),
            before=self._logged_evaluation(0),
            after=self._evaluation_after(step, progress.step),
            best_step=progress.best_step,
        )
        self.directory.write_summary({**result.summary(), **self._record()})
        if self.team.leads:
            write_end_of_run(self.directory.path)
        self.team.wait()  # what follows may read the files
        if not self.keep_last:
            engine.drop_last_checkpoint()
        return result

    def _save_audit(self) -> None:
        """What the checks have counted in the data, for the report."""
        counted = {"data": asdict(self.snapshot.data), "tokens": asdict(self.snapshot.tokens)}
        self.directory.write("data.json", counted)

    def _guard_from_start(self) -> None:
        """What a guard needs of the model before its first step."""
        for finding in self.said:
            self.directory.say(0, finding)
        if not any("monitor/seconds" in r for r in self.directory.read("metrics.jsonl")):
            self.guard.begin()
        if self.guard.returns:
            self.guard.best_step = 0
            self.engine.save()

    def _look(self, step: int) -> None:
        """Evaluate and sample before training, unless an interrupted run has done so."""
        if self.engine.progress.step == step:
            if self.setup.eval_set and self._logged_evaluation(step) is None:
                self.engine.evaluate_now()
            self._sample(step)

    def evaluate(self) -> Evaluation:
        """The policy on the held-out records."""
        remedy = "set a lower per_device_eval_batch_size"
        explained = out_of_memory_explained("held-out records were evaluated", remedy)
        with explained, self.accelerator.autocast():
            return self.objective.evaluate(
                self.setup.eval_set,
                batch_size=self.config.per_device_eval_batch_size,
                progress=track,
            )

    def _logged_evaluation(self, step: int) -> Evaluation | None:
        """An evaluation that this run, or the one it resumes, has logged."""
        found = self._logged(step)
        if "num_examples" not in found:
            return None
        from penchant.core.evaluation import Evaluation

        return Evaluation.from_metrics(found)

    def _logged(self, step: int) -> dict[str, Any]:
        """All that was logged of the held-out records after a step."""
        records = [r for r in self.directory.read("metrics.jsonl") if r["step"] == step]
        return {
            name.removeprefix("eval/"): value
            for record in records
            for name, value in record.items()
            if name.startswith("eval/")
        }

    def _measure_divergence(self, step: int) -> None:
        """Hold the trained policy's own answers against the reference, once."""
        if (
            self.config.spec.samples
            or not self.kind.generates
            or "kl/sequence" in self._logged(step)
        ):
            return  # methods that sample have answered held-out prompts in their evaluation
        if self.setup.eval_set:
            from penchant.guards.monitors.answering import measure_divergence

            found = measure_divergence(self.config, self.accelerator, self.setup)
            if found:
                self.engine.log({"step": step, **{f"eval/{k}": v for k, v in found.items()}})

    def _evaluation_after(self, step: int, last: int) -> Evaluation | None:
        """That of the saved weights; their answers were sampled after the last step."""
        evaluation, found = self._logged_evaluation(step), self._logged(last)
        if evaluation is None or step == last or self.config.spec.samples:
            return evaluation
        own = found.get("kl/sequence"), found.get("kl/sequence_error")
        return replace(evaluation, kl_sequence=own[0], kl_sequence_error=own[1])

    def _sample(self, step: int) -> None:
        """Let the model answer the first held-out prompts, each once."""
        if self.setup.eval_set and self.kind.generates:
            from penchant.commands.held_out_answers import answer_held_out

            answer_held_out(self.config, self.setup, self.directory, self.team, step)

    def _save_model(self) -> None:
        setup = self.setup
        # On one record a merged model is held against its adapter.
        groups = self.kind.groups(self.config, setup.train_set[:1])
        records = [[*g.prompt, *completion] for g in groups for completion in g.completions]
        with setup.scorer.plain_attention():
            save_model(
                setup.scorer.model,
                setup.tokenizer,
                self.directory.model,
                merged=bool(self.config.lora_r) and is_adapter(Path(setup.base)),
                records=records,
                team=self.team,
            )
            if self.config.merge and self.team.leads:
                from penchant.commands.merge import merge_beside

                merge_beside(self.config, self.directory.path, setup, records)
        with self.accelerator.autocast():
            self.kind.save_beside(self.config, setup, self.objective, self.directory.model)

    def _record(self) -> dict[str, Any]:
        setup = self.setup
        sampling = self.engine.source.summary()
        held = {"memory_held": setup.memory_held} if setup.memory_held else {}
        return {
            **({"sampling": sampling, **held} if sampling else held),
            "method": self.config.method,
            "chat": self.snapshot.data.num_chat > 0,
            **self._guarded(),
            "scoring": setup.plan,
            "products": chosen_products(),
            "reference": None if setup.reference is None else setup.reference.kind,
            "reference_cost": setup.reference_cost and asdict(setup.reference_cost),
            "gradient_checkpointing": setup.checkpointing,
            "tokenising": {name: asdict(report) for name, report in setup.reports.items()},
            "versions": versions(),
        }

    def _guarded(self) -> dict[str, Any]:
        """What guards found, what they cost, and what they did."""
        severities = [record["severity"] for record in self.directory.read("findings.jsonl")]
        logged, asked = self._logged_evaluation(self.engine.progress.step), self.guard.asked()
        return {
            "findings": {level: severities.count(level) for level in SEVERITIES},
            "monitor_seconds": self.guard.monitor_seconds,
            **({"monitor_asked": asked} if asked else {}),
            **({"stopped": self.guard.stopped} if self.guard.stopped else {}),
            **({"best_rule": logged.rule} if logged is not None else {}),
        }
