"""What TRL's trainers share: a script's objects and arguments, handed to the engine."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from penchant.compat.trl import logs
from penchant.compat.trl.arguments import Refusals
from penchant.compat.trl.configs import TrainingConfig
from penchant.compat.trl.keys import counted_keys
from penchant.compat.trl.objects import (
    disable_dropout,
    load_named,
    lora_keys,
    name_of,
    one_of,
    padded,
    quantization_settings,
    require_data,
    require_model,
    whole_weights,
)
from penchant.compat.trl.plans import planned, set_aside
from penchant.compat.trl.tables import TRAINER_STANDING, Standing
from penchant.core.errors import ConfigError, TrainingError
from penchant.methods import METHODS

if TYPE_CHECKING:
    from accelerate import Accelerator

    from penchant.config.keys import RunConfig
    from penchant.training.setup import Inputs, Setup

logger = logging.getLogger("penchant")

ARGUMENTS = (
    *("model", "args", "config", "train_dataset", "eval_dataset", "tokenizer"),
    *("processing_class", "peft_config", "quantization_config"),
)


class Trainer:
    """What the trainers share.

    Args:
        model: a transformers model, which is trained in place, or what `penchant.train` takes.
        args: the configuration; `config` is its older name.
        train_dataset, eval_dataset: a `datasets.Dataset`, or a list of rows.
        processing_class: the tokenizer; `tokenizer` is its older name.
        peft_config: a `peft.LoraConfig`; without it all weights are trained.
        quantization_config: quantises a model that is named while it is loaded.

    Attributes:
        model: as it was passed; once there is one, the model in training.
        state: what was logged.
        run_config: the run that the arguments come to.

    Raises:
        UserError: an argument that cannot have its effect.
    """

    config_class: ClassVar[type[TrainingConfig]]
    names: ClassVar[Mapping[str, str]] = logs.NAMES
    standing: ClassVar[Standing] = TRAINER_STANDING

    def __init__(
        self,
        model: Any = None,
        *,
        args: TrainingConfig | None = None,
        config: TrainingConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        tokenizer: Any = None,
        peft_config: Any = None,
        quantization_config: Any = None,
        **others: Any,
    ) -> None:
        from penchant.core.screen import setup_logging

        setup_logging()
        refusals = Refusals()
        refusals.settle(others, self.standing, ARGUMENTS)
        self.args = self.config_class()
        with refusals.gathering():
            self.args = self._arguments(one_of("args", args, "config", config))
        if unheeded := self.args.unheeded():
            logger.info("%s", unheeded)
        self.state = logs.TrainerState()
        with refusals.gathering():
            self.processing_class = padded(
                one_of("processing_class", processing_class, "tokenizer", tokenizer)
            )
        scored = METHODS[self.args.chosen().method].model == "score"
        self._data, self._eval_data = train_dataset, eval_dataset
        with refusals.gathering():
            require_data(train_dataset, eval_dataset, self.args)
        keys = {
            "data": f"<{type(train_dataset).__name__}>",
            "eval_data": None if eval_dataset is None else f"<{type(eval_dataset).__name__}>",
        }
        self.model = str(model) if isinstance(model, Path) else model
        with refusals.gathering():
            require_model(self.model, scored=scored)
            keys |= {
                "model": name_of(self.model),
                **lora_keys(peft_config, self.model, scored=scored),
            }
        with refusals.gathering():
            self._loading = quantization_settings(
                self.model,
                self.args.model_init_kwargs,
                quantization_config,
                adapted=peft_config is not None,
            )
        with refusals.gathering():
            keys |= self._own_keys()
        refusals.raise_all()
        self.run_config: RunConfig = self.args.run_config(keys)
        self._accelerator: Accelerator | None = None
        self._inputs: Inputs | None = None
        self._setup: Setup | None = None

    def _arguments(self, given: Any) -> TrainingConfig:
        if given is None:
            return self.config_class()
        if type(given) is not self.config_class:
            home = f"penchant.compat.trl.{self.config_class.__name__}"
            raise ConfigError(f"args must be a {home}, got {type(given).__module__}."
                              f"{type(given).__name__}")  # fmt: skip
        return given

    def _own_keys(self) -> dict[str, Any]:
        """What this trainer's own arguments come to."""
        return {}

    def _reference(self) -> Any:
        """A reference that was passed as an object."""
        return None

    def _rewards(self) -> list[Any] | None:
        """What judges the answers of a model that answers by itself."""
        return None

    def train(self, resume_from_checkpoint: bool | None = None) -> logs.TrainOutput:
        """Train, and save the model to `output_dir/model`.

        Args:
            resume_from_checkpoint: go on with the run that `output_dir` holds.

        Raises:
            UserError: bad data, an `output_dir` that is taken, numbers that are not finite.
        """
        from penchant.commands.run import run_on
        from penchant.training.folder import (
            completed,
            open_directory,
            recorded_keys,
            require_free,
        )

        if resume_from_checkpoint not in (None, True, False):
            raise ConfigError(
                "resume_from_checkpoint is True or not set: a run goes on from its newest sound "
                "checkpoint; set output_dir to that of the run"
            )
        resume = {"resume": bool(resume_from_checkpoint)}
        self.run_config = self.run_config.model_copy(update=resume)
        accelerator, inputs = self._begun()
        self._count_epochs(accelerator, inputs)
        config, folder = self.run_config, self.run_config.output
        keys = recorded_keys(config, inputs.run_data, accelerator.num_processes)
        try:
            require_free(folder, keys, resume=config.resume, overwrite=config.overwrite)
        except TrainingError as error:
            raise TrainingError(
                f"output_dir: {error} (here: another output_dir, overwrite_output_dir=True or "
                "train(resume_from_checkpoint=True))"
            ) from error
        if completed(config) is not None:
            raise TrainingError(
                f"output_dir {folder} holds a run that is complete; load {folder / 'model'}"
            )
        setup = self._prepared()
        # The folder is taken, or an earlier run in it removed, once this run can start.
        directory = open_directory(config, accelerator, inputs.run_data)
        with planned(self._plans):
            result = run_on(config, accelerator, directory, setup, self._snapshot)
        setup.scorer.eval()
        records = directory.read("metrics.jsonl")
        self.state, output = logs.outcome(result, records, self.names)
        return output

    def _count_epochs(self, accelerator: Accelerator, inputs: Inputs) -> None:
        """Say in steps what is done by epochs or shares: how many these are, tokenising shows."""
        from penchant.training.kind import kind_of

        once = self.run_config.model_copy(update={"num_train_epochs": 1.0, "max_steps": None})
        in_epoch, in_run = (
            kind_of(one.spec).num_steps(one, inputs.train_set, accelerator.num_processes)
            for one in (once, self.run_config)
        )
        keys = counted_keys(self.args.model_dump(), in_epoch, in_run)
        self.run_config = self.run_config.model_copy(update=keys)

    def evaluate(self) -> dict[str, float]:
        """The model on `eval_dataset`, as it is now.

        Raises:
            ConfigError: there is no `eval_dataset`.
        """
        from penchant.core.machine import out_of_memory_explained
        from penchant.core.screen import track
        from penchant.training.kind import make_objective

        if self._eval_data is None:
            raise ConfigError("there is nothing to evaluate on; set eval_dataset")
        accelerator, _ = self._begun()
        setup = self._prepared()
        objective = make_objective(self.run_config, accelerator, setup)
        explained = out_of_memory_explained(
            "eval_dataset was evaluated", "set a lower per_device_eval_batch_size"
        )
        with planned(self._plans), accelerator.autocast(), explained:
            evaluation = objective.evaluate(
                setup.eval_set,
                batch_size=self.args.per_device_eval_batch_size,
                progress=track,
            )
        metrics = logs.evaluation(evaluation.metrics(), self.names)
        self.state.log_history.append({"step": self.state.global_step, **metrics})
        return metrics

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """Write the model or adapter, and the tokenizer, so that any tool can load the folder.

        Args:
            output_dir: default: the configuration's; training itself saves to its `model/`.
        """
        setup = self._prepared()
        folder = Path(output_dir or self.args.output_dir)
        setup.scorer.model.save_pretrained(str(folder))
        setup.tokenizer.save_pretrained(folder)

    def _begun(self) -> tuple[Accelerator, Inputs]:
        """The accelerator and the tokenised data, made once."""
        from accelerate.utils import set_seed

        from penchant.training.accelerator import make_accelerator
        from penchant.training.inputs import read_inputs, read_run_data

        if self._accelerator is None or self._inputs is None:
            config = self.run_config
            self._accelerator = make_accelerator(
                config.precision, trackers=config.trackers, folder=config.output / "trackers"
            )
            set_seed(config.seed)
            self._inputs = read_inputs(
                config,
                read_run_data(config, self._data, self._eval_data),
                model=None if isinstance(self.model, str) else self.model,
                tokenizer=self.processing_class,
                reference=self._reference(),
                rewards=self._rewards(),
                num_processes=self._accelerator.num_processes,
            )
        return self._accelerator, self._inputs

    def _prepared(self) -> Setup:
        """Everything that is loaded, made once."""
        from penchant.guards.checks.gather import take_snapshot
        from penchant.training.prepare import prepare

        if self._setup is not None:
            return self._setup
        accelerator, inputs = self._begun()
        model = None if isinstance(self.model, str) else self.model
        if model is None and any(self._loading):
            model = load_named(self.model, *self._loading, self.run_config, accelerator.device)
        if model is not None and not self.run_config.lora_r:
            whole_weights(model)
        reference = self._reference()
        attention = reference and reference.config._attn_implementation
        snapshot = take_snapshot(self.run_config, inputs, accelerator.num_processes)
        setup = prepare(self.run_config, accelerator, inputs, model=model, reference=reference)
        if reference is not None and setup.reference and setup.reference.kind == "cache":
            reference.to("cpu")  # its log-probs are kept: it need not be
            reference.set_attn_implementation(attention)
        if self.args.disable_dropout:
            disable_dropout(setup.scorer.model)
            # The checks look at the model as it will be trained, not as it was saved.
            snapshot = replace(snapshot, model=replace(snapshot.model, dropout={}))
        self._setup, self._snapshot = setup, snapshot
        self.model, self.processing_class = setup.scorer.model, setup.tokenizer
        self._plans = set_aside(setup)
        return setup
