"""A five-point beta sweep beside one run of the same length that computes its own reference.

python bench/sweep_cost.py --pairs 48
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import records
from compare import demo_model

BETAS = "0.05,0.1,0.2,0.3,0.5"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=48, help="a quarter of them held out")
    parser.add_argument("--model", help="default: SmolLM2-135M-Instruct, as in the demo")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    _, rows = records.load(options.pairs, 0, None)
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "pairs.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        for number in range(options.rounds):
            folder = Path(scratch) / str(number)
            shared = [
                *("--model", options.model or demo_model(), "--data", str(data)),
                *("--train_fraction", "0.75", "--gradient_accumulation_steps", "1"),
                *("--eval_samples", "0", "--cache_dir", str(folder / "cache")),
            ]
            one = seconds("train", "dpo", *shared, "--output", str(folder / "run"))
            five = seconds("sweep", "dpo", *shared, "--output", str(folder / "sweep"),
                           "--beta", BETAS)  # fmt: skip
            print(f"one run {one:.0f} s, sweep of five {five:.0f} s: {five / one:.2f}x", flush=True)


def seconds(*words: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "penchant", *words], check=True, capture_output=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
