"""Models and tokenizers from a folder, a hub id, an adapter, a run, or a GGUF file."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from penchant.core.errors import ModelError
from penchant.models.architecture import (
    causal_class,
    read_config,
    require_whole,
    scoring_architecture,
)
from penchant.models.locate import is_adapter

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from penchant.models.quantised import Quantization

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_tokenizer(
    name: str, *, chat_template: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a resolved model, with a pad token and the template asked for."""
    from transformers import AutoTokenizer

    if is_adapter(Path(name)) and not (Path(name) / "tokenizer_config.json").exists():
        from penchant.models.adapter_files import adapter_base

        name = adapter_base(name)  # PEFT leaves no tokenizer beside an adapter
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(f"no tokenizer could be loaded from {name}: {error}") from error
    if chat_template is not None:
        from penchant.data.converting.templates import read_template

        tokenizer.chat_template = read_template(chat_template)
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        # Padding is masked wherever it occurs, so any token will do.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


class LanguageHead:
    """What a language model's files must hold; `ScoreHead` is its counterpart for scores."""

    scores = False

    def find_class(self, config: Any, name: str, trust_remote_code: bool) -> Any:
        """The class that reads the files.

        Raises:
            ModelError: a model with another head.
        """
        if architecture := scoring_architecture(config):
            raise ModelError(
                f"{name} is a {architecture}, which scores text; give a causal language model"
            )
        return causal_class(config, name, trust_remote_code)

    def options(self, config: Any) -> dict[str, Any]:
        """What else its class is told."""
        return {}

    def require(self, model: Any, missing: set[str], name: str, config: Any) -> None:
        """Refuse a model some of whose weights the files lack."""
        require_whole(model, missing, name)

    def under_other(self, name: str, **how: Any) -> Any:
        """The model of an adapter that was trained under the other head.

        Raises:
            ModelError: it is a reward model's.
        """
        raise ModelError(f"{name} is a reward model; give a causal language model")


def load_model(
    head: LanguageHead,
    name: str,
    *,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
    keep_adapter: bool = False,
    quantization: Quantization | None = None,
) -> PreTrainedModel | PeftModel:
    """A model on the CPU, in evaluation mode.

    Args:
        head: of the model.
        name: as `resolve` returned it.
        dtype: of the weights.
        trust_remote_code: run code that comes with the model.
        keep_adapter: leave a PEFT adapter switchable instead of merging it into the weights.
        quantization: quantise the weights while they are loaded, under an adapter that is kept
            those of its base.

    Raises:
        ModelError: nothing there, a model with another head, an adapter that is to be quantised,
            or a package that is not installed.
    """
    if is_adapter(Path(name)):
        from penchant.models.adapter_files import load_adapted

        how = {"dtype": dtype, "trust_remote_code": trust_remote_code}
        load = partial(load_model, head)
        return load_adapted(load, head, name, keep_adapter, quantization=quantization, **how)
    config = read_config(name, trust_remote_code)
    factory = head.find_class(config, name, trust_remote_code)
    options = head.options(config) | ({} if quantization is None else quantization.arguments())
    model, missing = _from_pretrained(factory, name, dtype, trust_remote_code, **options)
    head.require(model, missing, name, config)
    return model


load_causal_model = partial(load_model, LanguageHead())
"""A causal language model; arguments and errors are those of `load_model`."""


def _from_pretrained(
    factory: Any, name: str, dtype: torch.dtype, trust_remote_code: bool, **options: Any
) -> tuple[Any, set[str]]:
    """The model, and the names of its weights that the files lack."""
    try:
        model, report = factory.from_pretrained(
            name,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise ModelError(f"no model could be loaded from {name}: {error}") from error
    if "quantization_config" in options and model.device.type == "cpu":
        # What stays as it is would keep the whole file in memory, of which it is a view.
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.clone()
    if getattr(model, "quantization_method", None) is not None:
        from penchant.models.quantised import compute_in

        compute_in(model, None)  # on a CPU too as the codes say, whoever uses the model
    return model.eval(), set(report["missing_keys"])


def end_token_ids(model: PreTrainedModel | PeftModel) -> list[int]:
    """Every token that ends an answer, from the generation configuration where there is one."""
    # A model that only scores does not generate.
    settings = getattr(model, "generation_config", None) or model.config.get_text_config()
    ids = getattr(settings, "eos_token_id", None)
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else list(ids)
