"""The flat configuration: every key of the YAML file, the command line and `penchant.train`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator

from penchant.config.sections import SECTIONS, Sections
from penchant.core.errors import ConfigError
from penchant.core.findings import require_known
from penchant.methods import METHODS, Method, MethodOptions

TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")


class RunConfig(Sections):
    """All keys that do not belong to a method, and the method with its options."""

    method: str
    options: MethodOptions

    @property
    def spec(self) -> Method:
        """The method that `method` names."""
        return METHODS[self.method]

    @property
    def trackers(self) -> list[str]:
        """The names in `report_to`."""
        names = [name.strip() for name in self.report_to.split(",")]
        return [name for name in names if name and name != "none"]

    @property
    def prompt_budget(self) -> int:
        """Longest prompt in tokens."""
        if self.max_prompt_length:
            return self.max_prompt_length
        longest = getattr(self.options, "max_completion_length", None)
        return self.max_length - longest if longest else self.max_length // 2

    @property
    def cacheable(self) -> bool:
        """Whether sums over completions that are known beforehand are all the reference is for."""
        needs = self.spec.needs(self.options)
        return not self.spec.samples and not needs.mismatches and needs.tail_weight == 1.0

    @property
    def peak_learning_rate(self) -> float:
        """The schedule's highest: as configured, or the method's default."""
        facts = self.spec.facts
        default = facts.learning_rate_lora if self.lora_r else facts.learning_rate
        return self.learning_rate or default

    @property
    def rounds_stochastically(self) -> bool:
        """Whether all weights are trained in bf16, by an optimizer that rounds them at random."""
        return not self.lora_r and self.dtype == "bf16"

    @property
    def off_is_start(self) -> bool:
        """Whether switching the adapter off gives the model that training starts from."""
        if not self.peft:
            return bool(self.lora_r)
        from penchant.core.adapters import changes_base

        return not changes_base(self.peft)

    def flat(self) -> dict[str, Any]:
        """Every key with its value, as it would stand in a YAML file."""
        values = self.model_dump(mode="json", exclude={"options"})
        method = values.pop("method")
        return {"method": method, **values, **self.options.model_dump(mode="json")}

    @model_validator(mode="after")
    def _keys_agree(self) -> RunConfig:
        for name in self.trackers:
            if name not in TRACKERS:
                from penchant.config.mistakes import nearest

                raise ValueError(f"report_to: unknown tracker {name!r}; {nearest(name, TRACKERS)}")
        if self.eval_data and self.train_fraction:
            raise ValueError("eval_data and train_fraction exclude each other; drop one of them")
        if self.max_prompt_length and self.max_prompt_length >= self.max_length:
            raise ValueError(
                f"max_prompt_length ({self.max_prompt_length}) leaves no room for a completion in "
                f"max_length ({self.max_length}); lower it or raise max_length"
            )
        if self.overwrite and self.resume:
            raise ValueError("overwrite and resume exclude each other; drop one of them")
        if self.on_finding != "warn":
            from penchant.config.actions import parse_actions

            parse_actions(self.on_finding)
        require_known(self.silence)
        if self.reference != "auto" or self.reference_model or self.sync_ref_model:
            from penchant.config.reference import check_reference

            check_reference(self)
        if self.spec.samples:
            from penchant.config.sampling import check_sampling

            check_sampling(self)
        usual = self.optim == "adamw" and self.quantization == "none"
        if not usual or self.rounds_stochastically or self.dtype == "fp16":
            from penchant.config.weights import check_weights

            check_weights(self)
        if "://" in f"{self.monitor_reward} {getattr(self.options, 'reward', '')}":
            from penchant.config.addresses import check_addresses

            check_addresses(self)
        if self.peft:
            from penchant.config.peft import check_peft

            check_peft(self)
        if self.load_best_model_at_end and not self.eval_steps:
            raise ValueError(
                "load_best_model_at_end needs evaluations to choose from; set eval_steps"
            )
        if self.eval_steps and not (self.eval_data or self.train_fraction):
            raise ValueError("eval_steps needs held-out pairs; set eval_data or train_fraction")
        if self.lora_target_parameters and (self.lora_dropout or not self.lora_r):
            raise ValueError(
                "lora_target_parameters needs LoRA without dropout: set lora_r above 0 and "
                "lora_dropout to 0"
            )
        if self.merge and self.lora_r == 0:
            raise ValueError("merge needs LoRA (lora_r > 0): there is no adapter to merge")
        if self.loss_on_turns == "last" and (self.spec.model == "score" or self.spec.samples):
            what = "samples its answers" if self.spec.samples else "scores whole conversations"
            raise ValueError(f"{self.method} {what}: loss_on_turns changes nothing; drop it")
        if self.unpair and self.spec.data != "labels":
            raise ValueError(f"unpair is for methods that learn from labels, not {self.method}")
        return self


# Defaults where several runs share their start: they are evaluated after training only.
POINT_DEFAULTS: dict[str, Any] = {"eval_on_start": False, "eval_samples": 0, "monitor_prompts": 0}
# What nearly every run sets: help and `penchant config` begin with these.
EVERYDAY = (
    *("model", "data", "train_fraction", "eval_data", "output", "reward", "teacher_model"),
    *("beta", "num_generations", "batch_size", "max_completion_length"),
    *("learning_rate", "num_train_epochs", "max_length", "lora_r", "resume"),
)


def load_config(
    method: str | None, values: Mapping[str, Any], *, file: Path | None = None
) -> RunConfig:
    """Validate the keys of a run before anything is loaded.

    Args:
        method: a name in `METHODS`; None: the one that `file` names.
        values: flat keys; they win over the file's.
        file: a YAML file of flat keys.

    Raises:
        ConfigError: an unknown key (the nearest known one is named), an impossible value, a file
            that cannot be read.
    """
    merged = dict(values)
    if file is not None:
        from penchant.config.files import method_of, read_yaml

        method = method or method_of(file)
        merged = {**read_yaml(file), **values}
    if method is None:
        raise ConfigError("no method is named; name one, or give a config that does")
    if merged.get("peft"):
        from penchant.config.peft import spread  # few runs have any

        merged = spread(merged)
    named = merged.pop("method", method)
    if named != method:
        raise ConfigError(f"the configuration is for method {named}, but {method} was asked for")
    if method not in METHODS:
        from penchant.config.mistakes import nearest

        raise ConfigError(f"unknown method {method!r}; {nearest(method, METHODS)}")
    option_model = METHODS[method].options
    known = known_keys(method)
    if unknown := [key for key in merged if key not in known]:
        from penchant.config.mistakes import unknown_key

        raise ConfigError("\n".join(unknown_key(key, method, known) for key in unknown))
    own = {key: merged.pop(key) for key in option_model.model_fields if key in merged}
    try:
        return RunConfig(method=method, options=option_model(**own), **merged)
    except ValidationError as error:
        from penchant.config.mistakes import explain

        raise ConfigError("\n".join(explain(problem) for problem in error.errors())) from None


def known_keys(method: str) -> list[str]:
    """Every key of a run with a method."""
    run = [name for section in SECTIONS for name in section.model_fields]
    return [*run, *METHODS[method].options.model_fields]
