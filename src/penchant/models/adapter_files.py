"""Adapters in folders: the models that they stand on, and loading both."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from safetensors import SafetensorError

from penchant.core.errors import ModelError
from penchant.models.locate import is_adapter, resolve

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

# The input embedding among an adapter's weights, by the names that families give it.
OWN_EMBEDDING = re.compile(
    r"\.(?:embed_tokens|wte|word_embeddings|tok_embeddings|embed_in|embeddings?)"
    r"(?:\.modules_to_save)?\.weight$"
)


class Head(Protocol):
    """What is asked of a `LanguageHead`."""

    scores: bool

    def under_other(self, name: str, **how: Any) -> Any: ...


def load_adapted(
    load: Callable[..., Any], head: Head, name: str, keep: bool, **how: Any
) -> PreTrainedModel | PeftModel:
    """The model of an adapter's folder.

    Args:
        load: loads its base.
        head: of the model.
        name: the folder.
        keep: leave the adapter switchable instead of merging it into the weights.
        how: the base is loaded.

    Raises:
        ModelError: the adapter belongs under another head, or is to be quantised.
    """
    if (adapter_settings(name).get("task_type") == "SEQ_CLS") != head.scores:
        return head.under_other(name, **how)
    if how["quantization"] is not None and not keep:  # an adapter is not merged into codes
        raise ModelError(
            f"{name} is an adapter: merge it first (merge: true), then quantise what is merged"
        )
    return _with_adapter(load(adapter_base(name), **how), name, keep=keep)


def _with_adapter(base: Any, name: str, *, keep: bool) -> PreTrainedModel | PeftModel:
    """A base under the adapter of a folder, or with it merged into its weights."""
    from peft import PeftModel

    from penchant.models.merging import merge_adapter

    rows = adapter_vocabulary(name)
    if rows is not None and rows != base.get_input_embeddings().weight.shape[0]:
        # The adapter holds the rows of all tokens.
        base.resize_token_embeddings(rows, mean_resizing=False)
    try:
        model: Any = PeftModel.from_pretrained(base, name)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"the adapter in {name} could not be loaded: {error}") from error
    return model if keep else merge_adapter(model)


def adapter_settings(name: str) -> dict[str, Any]:
    """What PEFT wrote beside the weights of an adapter."""
    return json.loads((Path(name) / "adapter_config.json").read_text(encoding="utf-8"))


def adapter_base(name: str) -> str:
    """The resolved name of the model that an adapter stands on.

    Raises:
        ModelError: the adapter names none, or none that is here.
    """
    base = adapter_settings(name).get("base_model_name_or_path")
    if not base:
        raise ModelError(
            f"the adapter in {name} does not say which model it stands on; name it as "
            f"base_model_name_or_path in {Path(name) / 'adapter_config.json'}"
        )
    try:
        return resolve(base)
    except ModelError as error:
        raise ModelError(
            f"the adapter in {name} stands on {base}, which is not here ({error}); put it there, "
            f"or correct base_model_name_or_path in {Path(name) / 'adapter_config.json'}"
        ) from error


def adapter_vocabulary(name: str) -> int | None:
    """Tokens of an adapter's own embedding, or of that of an adapter it stands on, if any has one.

    Tokens that were added before tuning have rows there, and none in the base.
    """
    from safetensors import safe_open

    if not is_adapter(Path(name)):
        return None
    file = Path(name) / "adapter_model.safetensors"
    if file.exists():
        with safe_open(file, "pt") as saved:
            for key in saved.keys():  # noqa: SIM118 - it is no dict
                if OWN_EMBEDDING.search(key):
                    return int(saved.get_slice(key).get_shape()[0])
    return adapter_vocabulary(adapter_base(name))


def require_mergeable(name: str) -> None:
    """Refuse an adapter that cannot become part of the weights, as training begins with.

    Raises:
        ModelError: prompt tuning and the like.
    """
    from peft import PEFT_TYPE_TO_TUNER_MAPPING

    from penchant.models.merging import not_mergeable

    kind = str(adapter_settings(name).get("peft_type"))
    if not hasattr(PEFT_TYPE_TO_TUNER_MAPPING.get(kind), "merge_and_unload"):  # type: ignore[call-overload]
        raise not_mergeable(kind)
