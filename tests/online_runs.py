"""Short runs of methods that sample, on a tiny model: their prompts and keys."""

from __future__ import annotations

from typing import Any

PROMPTS = [{"prompt": f"say {word}", "n": i} for i, word in enumerate("abcdefghij")]
KEYS: dict[str, Any] = {
    "batch_size": 8,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_completion_length": 6,
    "max_length": 64,
    "max_steps": 6,
    "learning_rate": 1e-2,
    "lora_r": 4,
    "eval_on_start": False,
    "eval_samples": 0,
    "save_steps": 1,
    "warmup_ratio": 0.0,
    "monitor_prompts": 0,
}
