"""The flat configuration: every key of the YAML file, the command line and `penchant.train`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator

from penchant.config.actions import parse_actions
from penchant.config.sections import (
    SECTIONS,
    DataSection,
    EvaluationSection,
    GuardSection,
    LoraSection,
    ModelSection,
    OptimizerSection,
    ProcessSection,
    RunSection,
)
from penchant.core.errors import ConfigError
from penchant.core.findings import require_known
from penchant.methods import METHODS, Method, MethodOptions

# What config.yaml of a run holds beside its keys.
RECORDED = ("data_fingerprints", "num_processes", "versions")
TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")
# Keys of methods that sample, and what serves the same purpose where nothing is sampled.
OFFLINE_NAMES = {
    "batch_size": "per_device_train_batch_size",
    "max_completion_length": "max_length",
    "total_episodes": "max_steps",
}
REMOVED_NAMES = {"ref_model": "reference_model", "output_dir": "output", "lr": "learning_rate"}


class RunConfig(
    RunSection,
    DataSection,
    ModelSection,
    LoraSection,
    OptimizerSection,
    ProcessSection,
    EvaluationSection,
    GuardSection,
):
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
        from penchant.config.peft import changes_base

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
        parse_actions(self.on_finding)
        require_known(self.silence)
        self._check_reference()
        self._check_sampling()
        usual = self.optim == "adamw" and self.quantization == "none"
        if not usual or self.rounds_stochastically or self.dtype == "fp16":
            from penchant.config.weights import check_weights

            check_weights(self)
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

    def _check_sampling(self) -> None:
        if not self.spec.samples:
            return
        options: Any = self.options
        mini_batch = self.per_device_train_batch_size * self.gradient_accumulation_steps
        if options.batch_size % mini_batch:
            raise ValueError(
                f"batch_size ({options.batch_size} sampled answers) must be a multiple of the "
                f"mini-batch ({mini_batch}: per_device_train_batch_size x "
                "gradient_accumulation_steps); change one of them"
            )
        if self.spec.needs(options).partners:
            if self.per_device_train_batch_size % 2:
                raise ValueError(
                    f"{self.method} trains on pairs of answers, and per_device_train_batch_size "
                    f"({self.per_device_train_batch_size}) would divide one; set an even number"
                )
            if self.max_tokens_per_batch is not None:
                raise ValueError(
                    f"{self.method} trains on pairs of answers, which max_tokens_per_batch could "
                    "divide; set per_device_train_batch_size instead"
                )
        if options.max_completion_length + (self.max_prompt_length or 1) > self.max_length:
            raise ValueError(
                f"max_completion_length ({options.max_completion_length}) and max_prompt_length "
                f"({self.max_prompt_length or 'at least 1'}) do not fit in max_length "
                f"({self.max_length}); raise it or lower one of them"
            )

    def _check_reference(self) -> None:
        needed = self.spec.needs_reference
        needs = self.spec.needs(self.options)
        if needed and not needs.reference and self.reference == "none":
            return
        if self.spec.samples and self.reference == "cache":
            raise ValueError(
                f"{self.method} samples its answers: a cache cannot know them; set reference to "
                "adapter or copy"
            )
        if needed and self.reference == "none":
            raise ValueError(f"{self.method} compares with a reference; set reference to auto")
        if not needed and (self.reference not in ("auto", "none") or self.reference_model):
            raise ValueError(f"{self.method} has no reference; drop reference and reference_model")
        if self.reference == "adapter" and (self.lora_r == 0 or self.reference_model):
            raise ValueError(
                "reference: adapter needs LoRA (lora_r > 0) and no reference_model; "
                "set reference to copy or cache"
            )
        if self.reference == "cache" and not self.cacheable:
            raise ValueError(
                f"{self.method} with these options asks the reference for more than a cache holds; "
                "set reference to adapter or copy"
            )
        if self.sync_ref_model and (not needed or self.reference not in ("auto", "copy")):
            raise ValueError(
                "sync_ref_model changes a copy of the reference; set reference to copy, and use a "
                "method that has one"
            )


# What nearly every run sets: help and `penchant config` begin with these.
EVERYDAY = (
    *("model", "data", "train_fraction", "eval_data", "output", "reward", "beta"),
    *("learning_rate", "num_train_epochs", "max_length", "lora_r", "resume"),
)


def method_of(file: Path) -> str:
    """The method that a YAML file of keys is for.

    Raises:
        ConfigError: it names none, or cannot be read.
    """
    method = read_yaml(file).get("method")
    if method is None:
        raise ConfigError(
            f"{file} names no method; add a line such as 'method: dpo' to it, or name the method "
            "before --config"
        )
    return str(method)


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
    if method is None:
        if file is None:
            raise ConfigError("no method is named; name one, or give a config that does")
        method = method_of(file)
    merged: dict[str, Any] = {**(read_yaml(file) if file else {}), **values}
    if merged.get("peft"):
        from penchant.config.peft import spread  # few runs have any

        merged = spread(merged)
    named = merged.pop("method", method)
    if named != method:
        raise ConfigError(f"the configuration is for method {named}, but {method} was asked for")
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r}; {nearest(method, METHODS)}")
    option_model = METHODS[method].options
    known = _known_keys(method)
    if unknown := [unknown_key(key, method) for key in merged if key not in known]:
        raise ConfigError("\n".join(unknown))
    own = {key: merged.pop(key) for key in option_model.model_fields if key in merged}
    try:
        return RunConfig(method=method, options=option_model(**own), **merged)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(problem) for problem in error.errors())) from None


def _known_keys(method: str) -> list[str]:
    run = [name for section in SECTIONS for name in section.model_fields]
    return [*run, *METHODS[method].options.model_fields]


def unknown_key(name: object, method: str) -> str:
    """What to say about a key that `method` does not have; a file's may be any YAML."""
    key = str(name)
    owners = [name for name, other in METHODS.items() if key in other.options.model_fields]
    if owners:
        some = ", ".join(owners[:3]) + (" and others" if len(owners) > 3 else "")
        instead = OFFLINE_NAMES.get(key)
        remedy = f"set {instead} instead" if instead else "drop it"
        return f"{key} is an option of {some}, not of {method}; {remedy}"
    renamed = REMOVED_NAMES.get(key)
    hint = f"did you mean {renamed}?" if renamed else nearest(key, _known_keys(method))
    return f"unknown key {key!r}; {hint}"


def nearest(word: str, known: Iterable[str]) -> str:
    """A question for the nearest of the known words, or else all of them."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"


def _explain(problem: Any) -> str:
    message = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return message
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "missing":
        return f"{key} is required; set {key}"
    message = message.removeprefix("Input ")
    return f"{key} {message}, got {problem['input']!r}; set {key}"


def read_yaml(file: Path) -> dict[str, Any]:
    """The keys in a YAML file, without what a run has recorded beside them.

    Raises:
        ConfigError: it is not there, or holds no flat keys.
    """
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no such configuration file: {file}") from None
    except OSError as error:
        raise ConfigError(f"{file} could not be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{file} must hold flat keys (beta: 0.1), got {type(content).__name__}")
    return {key: value for key, value in content.items() if key not in RECORDED}
