"""One PPO run of Penchant for the comparison; prints its outcome as JSON."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

import penchant


def share_of_even_ids(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [sum(i % 2 == 0 for i in ids) / len(ids) for ids in completion_ids]


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    data = [{"prompt": tokenizer.decode(ids)} for ids in settings["prompts"]]
    mini_batches = settings["batch_size"] // settings["mini_batch_size"]
    separate = settings["separate"]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        keys: dict[str, Any] = {
            "model": settings["model"],
            "reward": settings["reward"] or share_of_even_ids,
            "output": str(run),
            "batch_size": settings["batch_size"],
            "ppo_epochs": settings["ppo_epochs"],
            # The same mini-batch in two passes: half the activations, the same update.
            "per_device_train_batch_size": settings["mini_batch_size"] // 2,
            "gradient_accumulation_steps": 2,
            "per_device_eval_batch_size": 16,
            "max_completion_length": settings["max_completion_length"],
            "max_length": 256,
            "max_steps": settings["batches"] * mini_batches * settings["ppo_epochs"],
            "learning_rate": settings["learning_rate"],
            "lora_target_modules": "q_proj,k_proj,v_proj,o_proj",
            "warmup_ratio": 0.0,
            "save_steps": 10_000,
            "shuffle": False,
            "value_model": "copy" if separate else "shared",
            "reference": "copy" if separate else "adapter",
            "share_reward_adapter": not separate,
        }
        result = penchant.train("ppo", data=data, **keys)
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        parts = json.loads((run / "summary.json").read_text())["memory_held"]
    batches: dict[float, list[dict[str, float]]] = {}
    for row in rows:
        batches.setdefault(row["iteration"], []).append(row)
    seconds = [sum(r["tokens"] / r["tokens_per_second"] for r in b) for b in batches.values()]
    positions = [round(sum(r["tokens"] for r in b)) for b in batches.values()]
    generation = [batch[0]["seconds/generation"] for batch in batches.values()]
    outcome = {
        "seconds": seconds,
        "positions": positions,
        "generation_share": sum(generation) / sum(seconds),
        "memory_peak_bytes": result.memory_peak_bytes,
        "held_bytes": sum(size for name, size in parts.items() if "gradients" not in name),
        "first": rows[0],
    }
    print("OUTCOME " + json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main()
