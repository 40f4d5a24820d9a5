"""What the parts of the trial on a GPU share: their settings, rows, clock and models."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import models

# How a part ends whose device is of no use any more; `gpu.py` goes on in a new process.
UNUSABLE = 75

LLAMA = {
    "100m": {
        "hidden_size": 768, "intermediate_size": 2304, "num_hidden_layers": 12,
        "num_attention_heads": 12, "num_key_value_heads": 4, "vocab_size": models.VOCABULARY,
        "tie_word_embeddings": True,
    },
    "1b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    "8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        "tie_word_embeddings": False,
    },
    "tiny": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": models.VOCABULARY,
        "tie_word_embeddings": False,
    },
}  # fmt: skip


@dataclass
class Part:
    """One part of the trial, as it was asked for.

    Attributes:
        part: its name; device: cuda or cpu; size: full or tiny.
        seconds: in which it has to end; folder: of models, kept from part to part.
        done: names of rows that an earlier process of this part has printed.
    """

    part: str
    device: str
    size: str
    seconds: float
    folder: str
    done: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._started = time.perf_counter()

    @classmethod
    def from_argument(cls) -> Part:
        return cls(**json.loads(sys.argv[1]))

    @property
    def tiny(self) -> bool:
        return self.size == "tiny"

    def left(self) -> float:
        """Seconds that are left."""
        return self.seconds - (time.perf_counter() - self._started)

    @cached_property
    def tokenizer(self) -> Any:
        """Trained on synthetic records, with a chat template's end token."""
        return models.trained_tokenizer(0, "hh")

    def model(self, name: str) -> Path:
        """The folder of a random model: `llama-1b`, `gemma3-100m`; made where it is not there."""
        target = Path(self.folder) / name
        if (target / "config.json").exists():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        family, _, size = name.partition("-")
        if family != "llama":
            made = models.make_model(family, size, self.tokenizer, str(target.parent))
            made.rename(target)
            return target
        from transformers import AutoModelForCausalLM, LlamaConfig

        torch.manual_seed(0)
        ends = {"eos_token_id": self.tokenizer.eos_token_id, "bos_token_id": None}
        config = LlamaConfig(**LLAMA[size], **ends, pad_token_id=self.tokenizer.pad_token_id)
        # Small models are trained in fp32 too; the large ones are bf16, as models are published.
        dtype = torch.float32 if size in ("100m", "tiny") else torch.bfloat16
        with torch.device(self.device if size in ("1b", "8b") else "cpu"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        partial = target.with_suffix(".partial")
        model.save_pretrained(partial)
        self.tokenizer.save_pretrained(partial)
        partial.rename(target)
        del model
        release()
        return target


def row(name: str, **figures: Any) -> None:
    """Print one row of the table."""
    print("ROW " + json.dumps({"name": name, **figures}), flush=True)


@contextmanager
def attempt(name: str) -> Iterator[None]:
    """Go on after a failure, or where a package is missing: a row says so."""
    try:
        yield
    except ImportError as error:
        row(name, left_out=str(error))
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        row(name, error=f"{type(error).__name__}: {str(error)[-300:]}")
    require_usable()
    release()


def require_usable() -> None:
    """End this process where an earlier failure has left its device of no use."""
    if torch.cuda.is_available():
        try:
            torch.cuda.synchronize()
        except RuntimeError:  # an illegal access: every later call would fail with it
            traceback.print_exc()
            sys.stdout.flush()
            os._exit(UNUSABLE)


def release() -> None:
    """Hand the device's memory back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def milliseconds(call: Callable[[], Any], device: str, repeats: int) -> float:
    """The median of several calls, after one that compiles."""
    from penchant.core.timing import seconds_of

    call()
    times = sorted(seconds_of(call, torch.device(device))[0] for _ in range(repeats))
    return 1000 * times[len(times) // 2]
