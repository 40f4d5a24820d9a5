"""Peak memory of one process beside that of the largest of several that divide the weights.

python bench/sharded_memory.py                    SmolLM2-135M, ORPO on all weights, 2 processes
python bench/sharded_memory.py --processes 4 --accumulate 2

Both take the same optimizer steps, on the CPU in fp32; each of several processes takes its share
of the pairs of a pass.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

TOPICS = ("rain", "bread", "maps", "clocks", "rivers", "stars", "trees", "songs", "ships", "paper")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="default: SmolLM2-135M-Instruct, as in the demo")
    parser.add_argument("--method", default="orpo")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=16, help="of a pass of one process")
    parser.add_argument("--accumulate", type=int, default=1, help="passes of a step")
    parser.add_argument("--length", type=int, default=128, help="tokens of a pair's texts, about")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further keys")
    options = parser.parse_args()
    if options.pairs % options.processes:
        parser.error("pairs must be a multiple of processes")
    from penchant.commands.demo import demo_model

    model = options.model or demo_model()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = folder / "pairs.jsonl"
        rows = pairs(options.steps * options.pairs * options.accumulate, options.length)
        data.write_text("\n".join(map(json.dumps, rows)))
        one = peak_of(1, model, data, folder / "one", options)
        several = peak_of(options.processes, model, data, folder / "several", options)
    print(f"one process {one / 1e9:.2f} GB", end=", ")
    print(f"the largest of {options.processes} {several / 1e9:.2f} GB: {several / one:.2f} times")


def pairs(count: int, length: int) -> list[dict[str, str]]:
    """Pairs of about so many tokens each, a word a token."""
    draw = random.Random(0)

    def words(number: int) -> str:
        return " ".join(draw.choices(TOPICS, k=number))

    part = length // 4
    return [
        {"prompt": words(2 * part), "chosen": f" {words(part)}", "rejected": f" {words(part)}"}
        for _ in range(count)
    ]


def peak_of(size: int, model: str, data: Path, output: Path, options: argparse.Namespace) -> float:
    """The peak of the largest of the processes of a run, in bytes."""
    keys = {
        **{"model": model, "data": data, "output": output, "max_steps": options.steps, "lora_r": 0},
        **{"max_length": 4 * options.length, "sharding": "full" if size > 1 else "off"},
        **{"per_device_train_batch_size": options.pairs // size, "monitor_prompts": 0},
        **{"gradient_accumulation_steps": options.accumulate, "gradient_checkpointing": "off"},
        **dict(pair.split("=", 1) for pair in options.set),
    }
    words = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    done = subprocess.run(
        [sys.executable, *(launch if size > 1 else []), "-m", "penchant", "train",
         options.method, *words],
        env={**os.environ, "ACCELERATE_USE_CPU": "true"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr[-4000:])
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return max(row["memory_peak_bytes"] for row in map(json.loads, lines) if "loss" in row)


if __name__ == "__main__":
    main()
