"""Models and tokenizers from a folder, a hub id, an adapter, a run, or a GGUF file."""

from __future__ import annotations

import json
import logging
import os
import shutil
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import xxhash
from safetensors import SafetensorError

from penchant.errors import ModelError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger("penchant")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def default_cache_dir() -> Path:
    """Where converted models and reference log-probs go: PENCHANT_CACHE or ~/.cache/penchant."""
    return Path(os.environ.get("PENCHANT_CACHE") or Path.home() / ".cache" / "penchant")


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
        return str(_converted_gguf(path, cache_dir or default_cache_dir()))
    if not path.exists():
        if name.count("/") == 1 and not name.startswith((".", "/", "~")):
            return name  # a hub id
        raise ModelError(f"no such model: {name} is neither a folder nor a hub id (owner/name)")
    if (path / "model" / "config.json").exists() or _is_adapter(path / "model"):
        path = path / "model"
    if not (path / "config.json").exists() and not _is_adapter(path):
        raise ModelError(
            f"{name} holds no model: neither config.json nor adapter_config.json is there"
        )
    return str(path)


def load_tokenizer(
    name: str, *, chat_template: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a resolved model, with a pad token and the template asked for."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(f"no tokenizer could be loaded from {name}: {error}") from error
    if chat_template is not None:
        try:
            tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
        except OSError as error:
            raise ModelError(f"chat_template could not be read: {error}") from error
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        # Padding is masked wherever it occurs, so any token will do.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_causal_model(
    name: str, *, dtype: torch.dtype, trust_remote_code: bool = False, keep_adapter: bool = False
) -> PreTrainedModel | PeftModel:
    """A causal language model on the CPU, in evaluation mode.

    Args:
        name: as `resolve` returned it.
        dtype: of the weights.
        trust_remote_code: run code that comes with the model.
        keep_adapter: leave a PEFT adapter switchable instead of merging it into the weights.

    Raises:
        ModelError: nothing there, or a reward or other headed model.
    """
    from transformers import AutoModelForCausalLM

    folder = Path(name)
    if _is_adapter(folder):
        from peft import PeftModel

        settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        base = load_causal_model(
            resolve(settings["base_model_name_or_path"]),
            dtype=dtype,
            trust_remote_code=trust_remote_code,
        )
        model: Any = PeftModel.from_pretrained(base, name)
        return model if keep_adapter else model.merge_and_unload()
    _require_causal(name, trust_remote_code)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"no causal language model could be loaded from {name}: {error}"
        ) from error
    return model.eval()


def end_token_ids(model: PreTrainedModel | PeftModel) -> list[int]:
    """Every token that ends an answer, from the generation configuration."""
    ids = getattr(model.generation_config, "eos_token_id", None)
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else list(ids)


def weights_fingerprint(model: torch.nn.Module) -> str:
    """Hex digest of every parameter's name, dtype and values; a fresh adapter changes nothing."""
    digest = xxhash.xxh3_128()
    base = {
        name.replace(".base_layer.", "."): parameter
        for name, parameter in model.state_dict().items()
        if ".lora_" not in name
    }
    for name, parameter in sorted(base.items()):
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        flat = parameter.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(memoryview(flat.numpy()))
    return digest.hexdigest()


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").exists()


def _require_causal(name: str, trust_remote_code: bool) -> None:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(f"no model could be loaded from {name}: {error}") from error
    for architecture in config.architectures or ():
        if "ForSequenceClassification" in architecture or "ForTokenClassification" in architecture:
            raise ModelError(
                f"{name} is a {architecture}, which scores text; give a causal language model"
            )


def _converted_gguf(file: Path, cache_dir: Path) -> Path:
    """The file's weights and tokenizer in Hugging Face format, converted once."""
    digest = xxhash.xxh3_128(file.read_bytes()).hexdigest()[:12]
    target = cache_dir / "gguf" / f"{file.stem}-{digest}"
    if target.exists():
        return target
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logger.warning("converting %s once (about half a minute) into %s", file.name, target)
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    except (OSError, ValueError, IndexError, struct.error, ImportError) as error:
        raise ModelError(f"{file} could not be read as a GGUF model: {error}") from error
    # transformers refuses to save a model it calls quantised, though its weights no longer are.
    del loaded.config.quantization_config
    model = AutoModelForCausalLM.from_config(loaded.config)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        folder = Path(scratch) / "model"
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
        if not target.exists():  # another process may have been first
            shutil.move(folder, target)
    return target
