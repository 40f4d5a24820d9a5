"""Held-out accuracy on real human preferences: DPO on PandaLM's votes, several seeds.

python bench/accuracy.py --seeds 0,1,2
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import penchant
import records
from compare import demo_model


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
        result = penchant.train(
            "dpo",
            model=options.model or demo_model(),
            data=data,
            output=options.output / f"seed-{seed}",
            train_fraction=0.8,
            learning_rate=5e-5,
            beta=0.1,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=4,
            eval_samples=0,
            seed=int(seed),
            resume=True,
        )
        assert result.after is not None
        accuracies.append(result.after.accuracy)
        print(
            f"seed {seed}: accuracy {result.after.accuracy:.3f}, margin {result.after.margin:.3f}, "
            f"kl {result.after.kl:.4f} nats a token, {result.after.num_pairs} held-out pairs, "
            f"{result.examples_per_second:.2f} pairs/s, {result.train_seconds:.0f} s",
            flush=True,
        )
    print(f"mean of {len(accuracies)} seeds: {statistics.mean(accuracies):.3f}")


if __name__ == "__main__":
    main()
