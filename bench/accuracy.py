"""Held-out accuracy on real human preferences: PandaLM's votes, split by prompt, every method.

python bench/accuracy.py                     every method, one seed, a short run each
python bench/accuracy.py --methods dpo --seeds 0,1,2 --max_steps 0
Goes on where it was stopped: a run that is complete is not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import penchant
import records
from compare import demo_model
from penchant.core.evaluation import Evaluation
from penchant.data.records import Pair
from penchant.data.split import split_by_prompt

# Methods without sampling, and steps and learning rate of a short run of LoRA; others: STEPS, RATE.
METHODS = [name for name, method in penchant.METHODS.items() if not method.samples]
STEPS, RATE = 32, 2e-4
SETTINGS: dict[str, tuple[int, float]] = {
    "simpo": (32, 3e-4),  # likelihoods without a reference begin with the model's own taste
    "orpo": (84, 5e-4),  # as these do, beside a supervised term that is larger
    "reward": (84, 3e-4),  # the head starts at random
}


def rows(pairs: list[Pair]) -> list[dict[str, Any]]:
    return [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--max_steps", type=int, help="of 8 pairs; 0: one epoch of 16")
    parser.add_argument("--learning_rate", type=float, help="default: as in SETTINGS")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of a run")
    parser.add_argument("--model", help="default: SmolLM2-135M-Instruct, as in the demo")
    parser.add_argument("--output", type=Path, default=Path("runs/accuracy"))
    options = parser.parse_args()
    pairs = records.pandalm()
    table = Table("method", "accuracy", "by seed", "margin", "KL, nats per token", "examples/s")
    for method in options.methods.split(","):
        found, speed = [], 0.0
        for seed in map(int, options.seeds.split(",")):
            after, speed = one(method, seed, pairs, options)
            found.append(after)
            print(method, seed, asdict(after), f"{speed:.2f} examples/s", flush=True)
        accuracies = [after.accuracy for after in found]
        table.add_row(
            method,
            f"{statistics.mean(accuracies):.3f}",
            ", ".join(f"{a:.3f}" for a in accuracies),
            f"{statistics.mean(after.margin for after in found):.3f}",
            "-" if found[0].kl is None else f"{found[0].kl:.4f}",
            f"{speed:.2f}",
        )
    Console().print(table)


def one(
    method: str, seed: int, pairs: list[Pair], options: argparse.Namespace
) -> tuple[Evaluation, float]:
    run = options.output / f"{method}-seed-{seed}"
    train, held_out = split_by_prompt(pairs, 0.8, seed)
    labels = penchant.METHODS[method].data == "labels"
    steps, rate = SETTINGS.get(method, (STEPS, RATE))
    steps = steps if options.max_steps is None else options.max_steps
    result = penchant.train(
        method,
        model=options.model or demo_model(),
        data=rows(train),
        output=run,
        learning_rate=options.learning_rate or rate,
        max_steps=steps or None,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2 if labels or not steps else 1,
        seed=seed,
        resume=True,
        **({"unpair": True} if labels else {}),
        **dict(one.split("=", 1) for one in options.set),
    )
    saved = run / f"held-out-{result.steps}.json"
    if not saved.exists():
        # Once, behind training: an untrained policy's implicit rewards are all 0.
        found = penchant.evaluate(model=run, data=rows(held_out))
        saved.write_text(json.dumps(asdict(found)))
    return Evaluation(**json.loads(saved.read_text())), result.examples_per_second


if __name__ == "__main__":
    main()
