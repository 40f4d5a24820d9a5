"""Held-out accuracy on real human preferences: DPO on PandaLM's votes, several seeds.

python bench/accuracy.py --seeds 0,1,2
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import penchant
import records
from compare import demo_model
from penchant.data.read import read_pairs
from penchant.data.records import Pair
from penchant.data.split import split_by_prompt


def rows(pairs: list[Pair]) -> list[dict[str, Any]]:
    return [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--model", help="default: SmolLM2-135M-Instruct, as in the demo")
    parser.add_argument("--output", type=Path, default=Path("runs/accuracy"))
    options = parser.parse_args()
    data = records.shared_folder() / "data" / "pandalm.jsonl"
    if not data.exists():
        raise SystemExit(f"needs {data}; set PENCHANT_SHARED")
    accuracies = []
    for seed in options.seeds.split(","):
        train, held_out = split_by_prompt(read_pairs(data).pairs, 0.8, int(seed))
        run = options.output / f"seed-{seed}"
        result = penchant.train(
            "dpo",
            model=options.model or demo_model(),
            data=rows(train),
            output=run,
            learning_rate=5e-5,
            beta=0.1,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=2,
            seed=int(seed),
            resume=True,
        )
        # Once, behind training: an untrained policy's implicit rewards are all 0.
        after = penchant.evaluate(model=run, data=rows(held_out))
        accuracies.append(after.accuracy)
        print(
            f"seed {seed}: accuracy {after.accuracy:.3f}, margin {after.margin:.3f}, "
            f"kl {after.kl:.4f} nats a token, {len(train)} training and {after.num_pairs} "
            f"held-out pairs, {result.examples_per_second:.2f} pairs/s, "
            f"{result.train_seconds:.0f} s",
            flush=True,
        )
    print(f"mean of {len(accuracies)} seeds: {statistics.mean(accuracies):.3f}")


if __name__ == "__main__":
    main()
