"""One Penchant run for the comparison; prints its outcome as JSON."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from transformers import AutoTokenizer

import penchant
import records
from methods import COUNTERPARTS
from settings import Outcome, Settings


def main() -> None:
    settings = Settings.from_argument()
    spec = penchant.METHODS[settings.method]
    bos = AutoTokenizer.from_pretrained(settings.model).bos_token
    _, rows = records.for_method(settings, bos)
    reference = "adapter" if settings.mode == "lora" else "copy"
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        result = penchant.train(
            settings.method,
            model=settings.model,
            data=rows,
            output=output,
            lora_r=16 if settings.mode == "lora" else 0,
            lora_target_modules=",".join(settings.target_modules),
            reference=reference if spec.needs_reference else "none",
            learning_rate=settings.learning_rate,
            lr_scheduler_type="constant",
            warmup_ratio=0.0,
            per_device_train_batch_size=settings.batch_size,
            gradient_accumulation_steps=1,
            max_length=settings.max_length,
            max_prompt_length=settings.max_length - 1,
            precision=settings.precision,
            attention=settings.attention,
            gradient_checkpointing="off",
            shuffle=False,
            seed=settings.seed,
            **COUNTERPARTS[settings.method][2],
        )
        lines = (output / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    Outcome(
        losses=[step["loss"] for step in steps],
        seconds=[step["tokens"] / step["tokens_per_second"] for step in steps],
        memory_peak_bytes=result.memory_peak_bytes,
        positions=[round(step["tokens"]) for step in steps],
    ).print()


if __name__ == "__main__":
    main()
