"""One TRL run for the comparison, as TRL is best used; prints its outcome as JSON."""

from __future__ import annotations

import importlib
import importlib.util
import os
import resource
import tempfile
import time
from typing import Any

import torch
from accelerate.utils import set_seed
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)

import records
from methods import COUNTERPARTS
from positions import Positions
from settings import Outcome, Settings

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"


class Clock(TrainerCallback):
    """Wall-clock seconds of every step, from one step's end to the next one's, and positions."""

    def __init__(self, laid_out: Positions) -> None:
        self.seconds: list[float] = []
        self.positions: list[int] = []
        self._laid_out = laid_out

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._last = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self.positions.append(self._laid_out.since())
        self._last = now


def in_order(trainer: type) -> type:
    """A trainer that visits the rows as they stand, so that both see the same batches."""

    def sampler(self: Any, *_: Any, **__: Any) -> torch.utils.data.Sampler[int]:
        return torch.utils.data.SequentialSampler(self.train_dataset)

    return type("InOrder", (trainer,), {"_get_train_sampler": sampler})


def trainer_of(kind: str) -> tuple[Any, Any]:
    """TRL's trainer and its configuration."""
    home = f"trl.experimental.{kind.lower()}" if kind in ("ORPO", "CPO") else "trl"
    module = importlib.import_module(home)
    return getattr(module, f"{kind}Trainer"), getattr(module, f"{kind}Config")


def peak_bytes() -> int:
    # Not Penchant's own function: importing Penchant sets up its allocator.
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    settings = Settings.from_argument()
    kind, arguments, _ = COUNTERPARTS[settings.method]
    cuda = torch.cuda.is_available()
    flash = cuda and importlib.util.find_spec("flash_attn") is not None
    set_seed(settings.seed)
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    _, rows = records.for_method(settings, tokenizer.bos_token)
    factory = AutoModelForSequenceClassification if kind == "Reward" else AutoModelForCausalLM
    model: Any = factory.from_pretrained(
        settings.model,
        dtype=torch.bfloat16 if cuda and settings.mode == "lora" else torch.float32,
        attn_implementation="flash_attention_2" if flash else "sdpa",
    )
    if settings.mode == "lora":
        lora = LoraConfig(
            r=16, lora_alpha=32, target_modules=settings.target_modules,
            task_type="SEQ_CLS" if kind == "Reward" else "CAUSAL_LM",
        )  # fmt: skip
        model = get_peft_model(model, lora)
    trainer_class, config_class = trainer_of(kind)
    with tempfile.TemporaryDirectory() as folder:
        config = config_class(
            output_dir=folder,
            per_device_train_batch_size=settings.batch_size,
            max_steps=settings.steps,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="constant",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            gradient_checkpointing=False,
            max_length=settings.max_length,
            bf16=settings.precision == "bf16",
            use_cpu=not cuda,
            seed=settings.seed,
            **arguments,
        )
        clock = Clock(Positions(model))
        trainer = in_order(trainer_class)(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[clock],
        )
        trainer.train()
    Outcome(
        losses=[entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        seconds=clock.seconds,
        memory_peak_bytes=peak_bytes(),
        positions=clock.positions,
    ).print()


if __name__ == "__main__":
    main()
