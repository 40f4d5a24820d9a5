"""Models and tokenizers from a folder, a hub id, an adapter, a run, or a GGUF file."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from penchant.core.errors import ModelError
from penchant.core.machine import default_cache_dir
from penchant.models.architecture import (
    causal_class,
    read_config,
    require_whole,
    scoring_architecture,
)

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from penchant.models.quantised import Quantization

logger = logging.getLogger("penchant")

# The input embedding among an adapter's weights, by the names that families give it.
OWN_EMBEDDING = re.compile(
    r"\.(?:embed_tokens|wte|word_embeddings|tok_embeddings|embed_in|embeddings?)"
    r"(?:\.modules_to_save)?\.weight$"
)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve(name: str, cache_dir: Path | None = None) -> str:
    """The folder or hub id behind what the user named.

    A run directory stands for its `model/`; a .gguf file for its converted copy in the cache.

    Raises:
        ModelError: a path that does not exist, or a folder without a model.
    """
    path = Path(name)
    if name.endswith(".gguf"):
        if not path.is_file():
            raise ModelError(f"no such file: {name}")
        from penchant.models.gguf import converted

        return str(converted(path, cache_dir or default_cache_dir()))
    if not path.exists():
        if name.count("/") == 1 and not name.startswith((".", "/", "~")):
            return name  # a hub id
        raise ModelError(f"no such model: {name} is neither a folder nor a hub id (owner/name)")
    if (path / "model" / "config.json").exists() or is_adapter(path / "model"):
        path = path / "model"
    if not (path / "config.json").exists() and not is_adapter(path):
        raise ModelError(
            f"{name} holds no model: neither config.json nor adapter_config.json is there"
        )
    # Adapters and configurations keep this name: it must mean the same from any folder.
    return str(path.absolute())


def load_tokenizer(
    name: str, *, chat_template: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a resolved model, with a pad token and the template asked for."""
    from transformers import AutoTokenizer

    if is_adapter(Path(name)) and not (Path(name) / "tokenizer_config.json").exists():
        name = adapter_base(name)  # PEFT leaves no tokenizer beside an adapter
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(f"no tokenizer could be loaded from {name}: {error}") from error
    if chat_template is not None:
        tokenizer.chat_template = _template(chat_template)
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        # Padding is masked wherever it occurs, so any token will do.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _template(given: str) -> str:
    """A built-in template by its name, or the text of a Jinja file."""
    from penchant.data.converting.templates import BUILTIN

    if given in BUILTIN:
        return BUILTIN[given]
    try:
        return Path(given).read_text(encoding="utf-8")
    except OSError as error:
        raise ModelError(
            f"chat_template could not be read: {error}; set chat_template to a Jinja file, or to "
            f"one of {', '.join(BUILTIN)}"
        ) from error


def load_causal_model(
    name: str,
    *,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
    keep_adapter: bool = False,
    quantization: Quantization | None = None,
) -> PreTrainedModel | PeftModel:
    """A causal language model on the CPU, in evaluation mode.

    Args:
        name: as `resolve` returned it.
        dtype: of the weights.
        trust_remote_code: run code that comes with the model.
        keep_adapter: leave a PEFT adapter switchable instead of merging it into the weights.
        quantization: quantise the weights while they are loaded, under an adapter that is kept
            those of its base.

    Raises:
        ModelError: nothing there, a reward or other headed model, an adapter that is to be
            quantised, or a package that is not installed.
    """
    if is_adapter(Path(name)):
        if adapter_settings(name).get("task_type") == "SEQ_CLS":
            raise ModelError(f"{name} is a reward model; give a causal language model")
        base = load_causal_model(
            adapter_base(name),
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            quantization=require_kept(name, keep_adapter, quantization),
        )
        return with_adapter(base, name, keep=keep_adapter)
    config = read_config(name, trust_remote_code)
    if architecture := scoring_architecture(config):
        raise ModelError(
            f"{name} is a {architecture}, which scores text; give a causal language model"
        )
    factory = causal_class(config, name, trust_remote_code)
    options = {} if quantization is None else quantization.arguments()
    model, missing = from_pretrained(factory, name, dtype, trust_remote_code, **options)
    require_whole(model, missing, name)
    return model


def require_kept(name: str, keep: bool, quantization: Any) -> Any:
    """The quantization of an adapter's base: it stands on codes, but is not merged into any."""
    if quantization is not None and not keep:
        raise ModelError(
            f"{name} is an adapter: merge it first (merge: true), then quantise what is merged"
        )
    return quantization


def from_pretrained(
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


def with_adapter(base: Any, name: str, *, keep: bool) -> PreTrainedModel | PeftModel:
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


def end_token_ids(model: PreTrainedModel | PeftModel) -> list[int]:
    """Every token that ends an answer, from the generation configuration where there is one."""
    # A model that only scores does not generate.
    settings = getattr(model, "generation_config", None) or model.config.get_text_config()
    ids = getattr(settings, "eos_token_id", None)
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else list(ids)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter."""
    return (folder / "adapter_config.json").exists()
