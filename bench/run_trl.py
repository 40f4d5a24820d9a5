"""One TRL run for the comparison, as TRL is best used; prints its outcome as JSON."""

from __future__ import annotations

import importlib.util
import resource
import tempfile
import time
from typing import Any

import torch
from accelerate.utils import set_seed
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer

import records
from settings import Outcome, Settings


class Clock(TrainerCallback):
    """Wall-clock seconds of every step, from one step's end to the next one's."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._last = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now


class InOrder(DPOTrainer):
    """Visits the rows as they stand, so that both trainers see the same batches."""

    def _get_train_sampler(self, *_: Any, **__: Any) -> torch.utils.data.Sampler[int]:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def peak_bytes() -> int:
    # Not Penchant's own function: importing Penchant sets up its allocator.
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    settings = Settings.from_argument()
    _, rows = records.load(settings.steps * settings.batch_size, settings.seed, settings.lengths)
    cuda = torch.cuda.is_available()
    flash = cuda and importlib.util.find_spec("flash_attn") is not None
    set_seed(settings.seed)
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    model: Any = AutoModelForCausalLM.from_pretrained(
        settings.model,
        dtype=torch.bfloat16 if cuda and settings.mode == "lora" else torch.float32,
        attn_implementation="flash_attention_2" if flash else "sdpa",
    )
    if settings.mode == "lora":
        lora = LoraConfig(
            r=16, lora_alpha=32, target_modules=settings.target_modules, task_type="CAUSAL_LM"
        )
        model = get_peft_model(model, lora)
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
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
        )
        clock = Clock()
        trainer = InOrder(
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
    ).print()


if __name__ == "__main__":
    main()
