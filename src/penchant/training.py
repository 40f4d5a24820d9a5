"""`penchant.train`: one run from its keys to a tuned, saved, evaluated model."""

from __future__ import annotations

import copy
import importlib.util
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed

from penchant.checkpoint import is_disk_full
from penchant.config import RunConfig, load_config
from penchant.data.records import Pair
from penchant.data.source import DatasetSource
from penchant.data.tokenise import TokenisedPair, TokenReport
from penchant.engine import Engine
from penchant.errors import ConfigError, TrainingError
from penchant.evaluation import Evaluation, evaluate_pairs, score_pairs
from penchant.generate import answer_prompts
from penchant.memory import enable_checkpointing, wants_checkpointing
from penchant.methods import LossOutput
from penchant.models.load import end_token_ids, load_tokenizer, resolve
from penchant.models.reference import Reference
from penchant.models.scoring import PLAIN, Scorer
from penchant.models.selfcheck import plan_scoring
from penchant.prepare import (
    RunData,
    choose_reference,
    load_policy,
    make_reference,
    make_tokeniser,
    read_run_data,
    tokenise,
)
from penchant.rundir import RunDirectory
from penchant.runtime import memory_peak_bytes, resolve_precision, setup_logging, track, versions

logger = logging.getLogger("penchant")


@dataclass(frozen=True)
class TrainResult:
    """What a run came to; `summary.json` holds the same.

    Attributes:
        output: the run directory; `model` the folder with the tuned model or adapter.
        steps, train_seconds, examples_per_second, tokens_per_second: of the optimizer steps.
        memory_peak_bytes: of the process, or of the GPU's allocator.
        before, after: held-out evaluation, where there are held-out pairs.
        best_step: of the best evaluation, where there were several.
    """

    output: Path
    model: Path
    steps: int
    train_seconds: float
    examples_per_second: float
    tokens_per_second: float
    memory_peak_bytes: int
    before: Evaluation | None
    after: Evaluation | None
    best_step: int | None

    def summary(self) -> dict[str, Any]:
        """For `summary.json`."""
        values = {**vars(self), "output": str(self.output), "model": str(self.model)}
        for name in ("before", "after"):
            found = values.pop(name)
            values[f"evaluation_{name}"] = None if found is None else asdict(found)
        return values

    @classmethod
    def from_summary(cls, summary: dict[str, Any]) -> TrainResult:
        """The inverse of `summary`."""
        known = {field.name for field in fields(cls)}
        values = {name: value for name, value in summary.items() if name in known}
        for name in ("before", "after"):
            found = summary[f"evaluation_{name}"]
            values[name] = None if found is None else Evaluation(**found)
        return cls(**{**values, "output": Path(values["output"]), "model": Path(values["model"])})


def train(method: str, *, config: Path | str | None = None, **keys: Any) -> TrainResult:
    """Tune a model and save it.

    Args:
        method: a name in `penchant.METHODS`.
        config: a YAML file of flat keys; the arguments here win over it.
        keys: any key of the configuration: `model`, `data`, `output`, `beta`, ...; `data` and
            `eval_data` may also be a `datasets.Dataset` or a list of rows.

    Raises:
        UserError: a wrong key, bad data, a model that cannot serve, an output folder that is
            taken, numbers that are not finite.
    """
    setup_logging()
    objects = {
        name: keys[name]
        for name in ("data", "eval_data")
        if keys.get(name) is not None and not isinstance(keys[name], str | Path)
    }
    texts = {name: f"<{type(value).__name__}>" for name, value in objects.items()}
    paths = {k: str(keys[k]) for k in ("data", "eval_data") if isinstance(keys.get(k), Path)}
    checked = load_config(
        method, {**keys, **paths, **texts}, file=None if config is None else Path(config)
    )
    data = objects.get("data", checked.data)
    return run(checked, data, objects.get("eval_data", checked.eval_data))


def run(config: RunConfig, data: Any, eval_data: Any) -> TrainResult:
    """Carry out a validated configuration; `data` and `eval_data` are paths, ids or rows."""
    accelerator = make_accelerator(config)
    set_seed(config.seed)
    run_data = read_run_data(config, data, eval_data)
    with accelerator.main_process_first():
        directory = RunDirectory(
            config.output,
            {
                **config.flat(),
                "data_fingerprints": [s.fingerprint for s in run_data.sources],
                "versions": versions(),
            },
            resume=config.resume or not accelerator.is_main_process,
        )
    if (summary := directory.summary()) is not None:
        logger.info("%s is complete; nothing to resume", config.output)
        return TrainResult.from_summary(summary)
    _start_trackers(accelerator, config)
    try:
        return _Run(config, accelerator, directory, run_data).carry_out()
    except Exception as error:
        if not is_disk_full(error) or isinstance(error, TrainingError):
            raise
        raise TrainingError(
            f"the disk is full: {error}; free some space and run again with --resume"
        ) from error
    finally:
        accelerator.end_training()


def make_accelerator(config: RunConfig) -> Accelerator:
    """Accelerate with the run's precision and trackers.

    Raises:
        ConfigError: a tracker is not installed.
    """
    AcceleratorState._reset_state()  # it is a process-wide singleton; runs may follow each other
    missing = [name for name in config.trackers if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"report_to: {', '.join(missing)} is not installed; pip install it")
    precision = resolve_precision(config.precision, Accelerator().device)
    AcceleratorState._reset_state()
    return Accelerator(
        mixed_precision={"fp32": "no"}.get(precision, precision),
        log_with=config.trackers or None,
        project_dir=str(config.output / "trackers"),
    )


def _start_trackers(accelerator: Accelerator, config: RunConfig) -> None:
    """Let the trackers write, now that the run has its folder."""
    if config.trackers:
        scalars = {k: v for k, v in config.flat().items() if isinstance(v, int | float | str)}
        accelerator.init_trackers("penchant", config=scalars)


class _Run:
    """The parts of one run, made in the order in which they need each other."""

    def __init__(
        self,
        config: RunConfig,
        accelerator: Accelerator,
        directory: RunDirectory,
        run_data: RunData,
    ) -> None:
        self.config, self.accelerator, self.directory = config, accelerator, directory
        precision = resolve_precision(config.precision, accelerator.device)
        self.base = resolve(config.model, config.cache_dir)
        self.tokenizer = load_tokenizer(
            self.base,
            chat_template=config.chat_template,
            trust_remote_code=config.trust_remote_code,
        )
        model = load_policy(config, precision)
        self.end_ids = end_token_ids(model)
        self.tokeniser = make_tokeniser(config, self.tokenizer, model)
        self.train_set, self.train_report = tokenise(run_data.train, self.tokeniser, "training")
        self.eval_set: list[TokenisedPair] = []
        self.eval_report: TokenReport | None = None
        if run_data.evaluation:
            self.eval_set, self.eval_report = tokenise(
                run_data.evaluation, self.tokeniser, "held-out"
            )
        self.eval_pairs = run_data.evaluation
        assert self.tokenizer.pad_token_id is not None  # load_tokenizer falls back to EOS
        self.scorer = Scorer(model.to(accelerator.device), self.tokenizer.pad_token_id)
        with accelerator.autocast():
            plan = plan_scoring(
                self.scorer,
                [example.group() for example in self.train_set[:2]],
                attention=config.attention,
                max_length=config.max_length,
            )
            self.checkpointing = self._wants_checkpointing()
        self.plan = plan.describe()
        logger.info("%s", self.plan)
        if self.checkpointing:
            enable_checkpointing(self.scorer.causal_model)
        self.reference = self._make_reference(precision)

    def _wants_checkpointing(self) -> bool:
        wanted = self.config.gradient_checkpointing
        if wanted != "auto":
            return wanted == "on"
        copied = choose_reference(self.config, self.scorer) == "copy"
        weights = sum(p.numel() * p.element_size() for p in self.scorer.parameters())
        return wants_checkpointing(
            self.scorer,
            self.train_set,
            self.config.per_device_train_batch_size,
            reserved_bytes=weights if copied and self.config.spec.needs_reference else 0,
        )

    def _make_reference(self, precision: str) -> Reference | None:
        if not self.config.spec.needs_reference:
            return None
        examples = [*self.train_set, *self.eval_set]
        reference = make_reference(self.config, self.scorer, examples, self.accelerator, precision)
        logger.info("reference: %s", reference.kind)
        return reference

    def carry_out(self) -> TrainResult:
        """Train, evaluate, save, summarise."""
        engine = self._engine()
        if self.directory.resumed:
            engine.restore()
        if engine.progress.step == 0:
            engine.evaluate_now()
            self._sample(0)
        before = self._logged_evaluation(0)
        engine.fit()
        engine.evaluate_now()
        if self.config.load_best_model_at_end:
            engine.load_best()
        step = engine.progress.step
        self._sample(step)
        after = before and self.evaluate()
        self._save_model()
        progress = engine.progress
        result = TrainResult(
            output=self.config.output,
            model=self.directory.model,
            steps=step,
            train_seconds=progress.seconds,
            examples_per_second=progress.examples / progress.seconds,
            tokens_per_second=progress.tokens / progress.seconds,
            memory_peak_bytes=memory_peak_bytes(self.accelerator.device),
            before=before,
            after=after,
            best_step=progress.best_step,
        )
        if self.accelerator.is_main_process:
            self.directory.write_summary({**result.summary(), **self._record()})
        return result

    def _engine(self) -> Engine:
        config, accelerator = self.config, self.accelerator
        source = DatasetSource(
            self.train_set,
            micro_batch_size=config.per_device_train_batch_size,
            accumulation=config.gradient_accumulation_steps,
            num_epochs=config.num_train_epochs,
            max_steps=config.max_steps,
            shuffle=config.shuffle,
            seed=config.seed,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )
        return Engine(
            config=config,
            accelerator=accelerator,
            scorer=self.scorer,
            source=source,
            objective=self.objective,
            evaluate=self.evaluate if self.eval_set else None,
            run=self.directory,
        )

    def objective(
        self, model: torch.nn.Module, examples: Sequence[TokenisedPair]
    ) -> tuple[LossOutput, int]:
        """Losses of some pairs, and how many tokens were laid out for them."""
        groups = [example.group() for example in examples]
        batch = self.scorer.batch(groups)
        reference = None if self.reference is None else self.reference.sums(groups, batch)
        inputs = score_pairs(model, batch, reference)
        return self.config.spec.loss(inputs, self.config.options), batch.num_tokens

    def evaluate(self) -> Evaluation:
        """The policy on the held-out pairs."""
        with self.accelerator.autocast():
            return evaluate_pairs(
                self.scorer,
                self.reference,
                self.eval_set,
                self.config.spec,
                self.config.options,
                batch_size=self.config.per_device_eval_batch_size,
                progress=track,
            )

    def _logged_evaluation(self, step: int) -> Evaluation | None:
        """An evaluation that this run, or the one it resumes, has logged."""
        for record in self.directory.read("metrics.jsonl"):
            if record["step"] == step and any(k.startswith("eval/") for k in record):
                return Evaluation.from_metrics(
                    {k.removeprefix("eval/"): v for k, v in record.items()}
                )
        return None

    def _sample(self, step: int) -> None:
        """Let the model answer the first held-out prompts, each once."""
        pairs = {pair.where: pair for pair in self.eval_pairs}
        prompts: dict[tuple[int, ...], Pair] = {}
        for example in self.eval_set:  # tokenising may have dropped some pairs
            prompts.setdefault(tuple(example.prompt), pairs[example.where])
        chosen = list(prompts.items())[: self.config.eval_samples]
        if not chosen or not self.accelerator.is_main_process:
            return
        answers = answer_prompts(
            self.scorer,
            self.tokenizer,
            [list(ids) for ids, _ in chosen],
            end_token_ids=self.end_ids,
            max_new_tokens=self.config.max_new_tokens,
        )
        for (_, pair), answer in zip(chosen, answers, strict=True):
            record = {"step": step, "prompt": pair.prompt, "answer": answer.text}
            length = {"num_tokens": answer.num_tokens, "ended": answer.ended}
            self.directory.append("samples.jsonl", {**record, **length})

    def _save_model(self) -> None:
        """Write `model/` whole or not at all; an adapter on an adapter is saved merged."""
        if not self.accelerator.is_main_process:
            return
        self.scorer.use(PLAIN)
        model: Any = self.scorer.model
        on_adapter = (Path(self.base) / "adapter_config.json").exists()
        targets = [(self.directory.model, bool(self.config.lora_r) and on_adapter)]
        if self.config.merge:
            targets.append((self.directory.path / "merged", True))
        for folder, merged in targets:
            partial = folder.with_name(f".{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            saved = copy.deepcopy(model).merge_and_unload() if merged else model
            saved.save_pretrained(partial)
            self.tokenizer.save_pretrained(partial)
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)

    def _record(self) -> dict[str, Any]:
        reports = {"training": self.train_report, "held_out": self.eval_report}
        return {
            "method": self.config.method,
            "scoring": self.plan,
            "reference": None if self.reference is None else self.reference.kind,
            "gradient_checkpointing": self.checkpointing,
            "tokenising": {name: asdict(r) for name, r in reports.items() if r is not None},
            "versions": versions(),
        }
