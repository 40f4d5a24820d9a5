"""A model to be evaluated or talked with: found, with the settings of its run, then loaded."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from penchant.config.keys import RunConfig, load_config
from penchant.core.adapters import changes_base
from penchant.core.errors import ConfigError
from penchant.core.machine import out_of_memory_explained, resolve_precision
from penchant.core.screen import setup_logging
from penchant.methods import METHODS
from penchant.models.adapter_files import adapter_base, adapter_settings
from penchant.models.load import DTYPES, end_token_ids, load_tokenizer
from penchant.models.locate import is_adapter, resolve
from penchant.models.memory import is_quantised
from penchant.models.score_model import is_score_model
from penchant.models.selfcheck import plan_scoring
from penchant.training.accelerator import make_accelerator
from penchant.training.folder import read_summary
from penchant.training.inputs import make_tokeniser, saved_model
from penchant.training.kind import kind_of
from penchant.training.kinds import quantization_of

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase

    from penchant.data.batch import Group
    from penchant.data.tokenise import Tokeniser
    from penchant.models.scoring import Scorer

logger = logging.getLogger("penchant")

# What is taken from the run that made a model; code of a model runs on the user's word alone.
RUN_KEYS = (
    *("max_length", "max_prompt_length", "chat_template", "chat_template_kwargs"),
    *("loss_on_turns", "quantization"),
)


@dataclass(frozen=True)
class Opened:
    """What evaluates a model, before its weights are loaded.

    Attributes:
        name: as the user gave it; folder: resolved.
        config: the run's own settings, under what the caller set.
        accelerator: of its precision.
        tokenizer: with the template asked for.
    """

    name: Path
    folder: str
    config: RunConfig
    accelerator: Accelerator
    tokenizer: PreTrainedTokenizerBase

    @property
    def pad_token_id(self) -> int:
        """What padding is told by."""
        assert self.tokenizer.pad_token_id is not None, "load_tokenizer falls back to EOS"
        return int(self.tokenizer.pad_token_id)

    def load(self, *, keep_adapter: bool = False) -> Any:
        """The model, on the device."""
        return load_model(self.folder, self.config, self.accelerator, keep_adapter=keep_adapter)

    def tokeniser(self) -> Tokeniser:
        """Of the run, with the model's own end tokens, as its files name them."""
        return saved_tokeniser(self.folder, self.config, self.tokenizer)

    def why_plain(self) -> str | None:
        """Why plain texts stay as they are; None where they go through the chat template."""
        return why_plain(self.name, self.tokenizer)


def open_model(model: str | Path, batch_size: int, keys: Mapping[str, Any]) -> Opened:
    """Resolve a model and read its settings and tokenizer; no weight is loaded.

    Raises:
        UserError: there is no such model, or a wrong key.
    """
    setup_logging()
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}; set batch_size")
    folder = resolve(str(model))
    config = config_of(Path(model), folder, {**keys, "model": str(model), "data": "evaluation"})
    tokenizer = load_tokenizer(
        folder, chat_template=config.chat_template, trust_remote_code=config.trust_remote_code
    )
    return Opened(Path(model), folder, config, make_accelerator(config.precision), tokenizer)


def saved_tokeniser(
    folder: str, config: RunConfig, tokenizer: PreTrainedTokenizerBase
) -> Tokeniser:
    """The tokeniser of a resolved name: what is asked can be looked at before weights are there."""
    model: Any = saved_model(config, folder)
    return make_tokeniser(config, tokenizer, end_token_ids(model))


def why_plain(model: Path, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Why a model reads plain texts; None where it reads chats: if it has a template, as trained.

    Args:
        model: as the user named it; of a run it is known what was trained on.
        tokenizer: of the model.
    """
    if not tokenizer.chat_template:
        return "the model has no chat template"
    return "the run was trained on plain texts" if trained_on_plain(model) else None


def trained_on_plain(model: Path | str) -> bool:
    """Whether a model is of a run whose texts were plain, one that is not complete included."""
    path = Path(model)
    run = path.parent if path.name == "model" else path
    if path.parent.name == "checkpoints":
        run = path.parent.parent
    if (summary := read_summary(run)) is not None:
        return summary.get("chat") is False
    file = run / "data.json"  # which there is from the first step on
    data = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return bool(data.get("data", {}).get("num_chat") == 0)


@out_of_memory_explained(
    "a model was loaded", "set quantization 4bit, give a smaller model, or leave the other one out"
)
def load_model(
    folder: str, config: RunConfig, accelerator: Accelerator, *, keep_adapter: bool = False
) -> Any:
    """The model of a resolved name, on the device; an adapter can be switched off if it is kept."""
    precision = resolve_precision(config.precision, accelerator.device)
    model: Any = type(kind_of(config.spec)).load_model(
        folder,
        dtype=weights_dtype(config, precision),
        trust_remote_code=config.trust_remote_code,
        keep_adapter=keep_adapter,
        # What a policy is compared with is as it was saved.
        quantization=quantization_of(config, precision, accelerator.device)
        if keep_adapter
        else None,
    )
    if is_quantised(model):
        from penchant.models.quantised import compute_in

        compute_in(model, DTYPES[precision])
    return model.to(accelerator.device)


def weights_dtype(config: RunConfig, precision: str) -> torch.dtype:
    """Of weights that no run trains: as the arithmetic, unless the user has set it."""
    return DTYPES[precision if config.dtype == "auto" else config.dtype]


def plan(scorer: Scorer, groups: Sequence[Group], config: RunConfig) -> None:
    """Choose how a model is scored, by its first groups."""
    plan_scoring(scorer, groups, attention=config.attention, max_length=config.max_length)


def run_settings(model: Path) -> dict[str, Any]:
    """The keys of a run directory; none of any other folder."""
    file = model / "config.yaml"
    return yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else {}


def off_is_start(folder: str) -> bool:
    """Whether a resolved name is an adapter's which, switched off, leaves what it was tuned from.

    Biases that were trained stay, and what was taken out of the base is not put back.
    """
    return is_adapter(Path(folder)) and not changes_base(adapter_settings(folder))


def tuned_from(model: Path, folder: str) -> str | None:
    """What a model was tuned from, as its run or its adapter says; None where neither does.

    Args:
        model: as the user named it; folder: resolved.
    """
    named = run_settings(model).get("model")
    return adapter_base(folder) if named is None and is_adapter(Path(folder)) else named


def config_of(model: Path, folder: str, keys: dict[str, Any]) -> RunConfig:
    """The run's own settings where there is a run, under what the caller set."""
    settings = run_settings(model)
    given = {k: v for k, v in keys.items() if v is not None}
    if settings.get("trust_remote_code") and not given.get("trust_remote_code"):
        logger.warning(
            "%s: the run had trust_remote_code, and code of a model runs on your own word alone; "
            "if you trust it, pass --trust_remote_code",
            model,
        )
    guess = "reward" if is_score_model(folder) else "dpo"
    method = given.pop("method", None) or settings.get("method", guess)
    if method in METHODS and METHODS[method].samples:
        method = guess  # what a policy that was sampled from makes of pairs: its implicit rewards
    # Another method's options may have the same names and mean something else.
    same = method in METHODS and method == settings.get("method")
    options = METHODS[method].options.model_fields if same else {}
    own = {k: v for k, v in settings.items() if k in options or k in RUN_KEYS}
    unpair = {"unpair": True} if method in METHODS and METHODS[method].data == "labels" else {}
    return load_config(method, {**own, **unpair, **given})
