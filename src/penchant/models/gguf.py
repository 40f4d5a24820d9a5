"""Models in a GGUF file, as folders that transformers reads."""

from __future__ import annotations

import logging
import shutil
import struct
import tempfile
from pathlib import Path

import torch
import xxhash

from penchant.core.errors import ModelError

logger = logging.getLogger("penchant")


def converted(file: Path, cache_dir: Path) -> Path:
    """The file's weights and tokenizer in Hugging Face format, converted once into the cache.

    Raises:
        ModelError: the file is damaged, or of an architecture that transformers cannot read.
    """
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
