"""Micro-batches by tokens beside micro-batches of a fixed number of pairs, at the same peak memory.

OMP_NUM_THREADS=1 python bench/tokens.py                 SmolLM2-135M, hh-harmless, 20 steps of 16
OMP_NUM_THREADS=1 python bench/tokens.py --runs 3        the median of three runs of each

Passes of 4 pairs are as long as their pairs happen to be, and the longest decides the memory. The
other side fills its passes up to just that: its `max_tokens_per_batch` is the longest fixed pass.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import records

PAIRS, PASSES = 4, 4


def keys_of(model: str, steps: int, limit: int | None) -> dict[str, Any]:
    return {
        "model": model,
        "max_steps": steps,
        "per_device_train_batch_size": PAIRS,
        "gradient_accumulation_steps": PASSES,
        "max_tokens_per_batch": limit,
        "max_length": 1024,
        "gradient_checkpointing": "off",
        "warmup_ratio": 0.0,
        "monitor_prompts": 0,
        "eval_samples": 0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--runs", type=int, default=1, help="of each side; the median counts")
    parser.add_argument("--limit", type=int, help="default: the longest pass of the fixed side")
    parser.add_argument("--model", help="default: SmolLM2-135M-Instruct, as in the demo")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(json.loads(options.child))
        return
    from penchant.commands.demo import demo_model

    model = options.model or demo_model()
    fixed = keys_of(model, options.steps, None)
    longest, mean, source = passes(fixed)
    limit = options.limit or longest
    print(f"{source}, {options.steps} steps of {PAIRS * PASSES} pairs; passes of {PAIRS} pairs are "
          f"{mean:.0f} tokens long on average, {longest} at most")  # fmt: skip
    outcomes: dict[str, list[dict[str, float]]] = {"fixed pairs": [], f"{limit} tokens": []}
    for _ in range(options.runs):
        for name, keys in zip(outcomes, (fixed, keys_of(model, options.steps, limit)), strict=True):
            outcomes[name].append(start(keys))
    speeds, peaks = [], []
    for name, found in outcomes.items():
        speeds.append(statistics.median(one["speed"] for one in found))
        peaks.append(max(one["peak"] for one in found))
        first = found[0]
        print(f"  {name:<14}{speeds[-1]:>7.3f} pairs/s  {peaks[-1] / 2**30:.2f} GiB at the peak  "
              f"{first['passes']:.0f} passes  last loss {first['loss']:.6f}")  # fmt: skip
    print(f"  {speeds[1] / speeds[0]:.3f} times the pairs per second, "
          f"{peaks[1] / peaks[0]:.3f} times the memory")  # fmt: skip


def passes(keys: dict[str, Any]) -> tuple[int, float, str]:
    """Tokens of the longest pass and of the mean one, and the name of the data."""
    from penchant.config.keys import load_config
    from penchant.training.inputs import read_inputs, read_run_data
    from penchant.training.workload import count_work

    name, rows = data(keys)
    config = load_config("dpo", {"data": "<list>", **keys})
    inputs = read_inputs(config, read_run_data(config, rows, None))
    work = count_work(config, inputs.train_set)
    return work.longest, statistics.mean(work.passes), name


def data(keys: dict[str, Any]) -> tuple[str, list[dict[str, str]]]:
    return records.load(keys["max_steps"] * PAIRS * PASSES, 0, None)


def start(keys: dict[str, Any]) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(keys)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    for line in done.stdout.splitlines():
        if line.startswith("FOUND "):
            return dict(json.loads(line.removeprefix("FOUND ")))
    raise SystemExit(f"a run failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def child(keys: dict[str, Any]) -> None:
    import penchant
    from penchant.models.scoring import Scorer

    count = 0
    forward = Scorer.forward

    def counted(self: Any, *arguments: Any, **more: Any) -> Any:
        nonlocal count
        count += self.training
        return forward(self, *arguments, **more)

    Scorer.forward = counted  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        result = penchant.train("dpo", data=data(keys)[1], output=run, **keys)
        lines = (run / "metrics.jsonl").read_text().splitlines()
    losses = [one["loss"] for one in map(json.loads, lines) if "loss" in one]
    found = {
        "speed": result.examples_per_second,
        "peak": result.memory_peak_bytes,
        "loss": losses[-1],
        "passes": count,
    }
    print("FOUND " + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
