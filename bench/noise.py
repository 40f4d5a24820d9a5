"""What flipped labels cost DPO, and what `clean` wins back: PandaLM's votes, split by prompt.

python bench/noise.py                  labels as voted; 30% of them flipped; those, cleaned
python bench/noise.py --arms cleaned   one of them
The remedy sees pairs alone, without votes. It is `label-noise` as it estimates the noise itself
(cleaned), and told the share of flipped labels, as a hundred rows judged again would (told): never
which. Where it names no row, cleaned is flipped. Goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import penchant
import records
from accuracy import RATE, STEPS, rows
from compare import demo_model
from penchant.core.evaluation import Evaluation
from penchant.data import clean
from penchant.data.split import split_by_prompt

ARMS = ("clean", "flipped", "cleaned", "told")
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--rate", type=float, default=0.3, help="share of training labels flipped")
    parser.add_argument("--max_steps", type=int, default=STEPS, help="of 8 pairs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", help="default: SmolLM2-135M-Instruct, as in the demo")
    parser.add_argument("--output", type=Path, default=Path("runs/noise"))
    options = parser.parse_args()
    model = options.model or demo_model()
    pairs = records.pandalm()
    train, held_out = split_by_prompt(pairs, 0.8, options.seed)
    turned = flips(len(train), options.rate, options.seed)
    table = Table("labels", "pairs", "wrong", "held-out accuracy", "margin", "pairs/s")
    for arm in options.arms.split(","):
        given = training_rows(arm, rows(train), turned, options)
        same = arm == "cleaned" and len(given) == len(train)
        folder = options.output / f"{'flipped' if same else arm}-seed-{options.seed}"
        wrong = sum(row["turned"] for row in given)
        texts = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in given]
        after, speed = one(folder, model, texts, rows(held_out), options)
        print(arm, len(given), wrong, asdict(after), f"{speed:.2f} pairs/s", flush=True)
        table.add_row(
            arm, str(len(given)), f"{wrong} ({wrong / len(given):.1%})",
            f"{after.accuracy:.3f}", f"{after.margin:.3f}", f"{speed:.2f}",
        )  # fmt: skip
    Console().print(table)


def flips(num_pairs: int, rate: float, seed: int) -> set[int]:
    """Which labels are reversed: this share of them, drawn once a seed."""
    return set(random.Random(seed).sample(range(num_pairs), round(rate * num_pairs)))


def training_rows(
    arm: str, pairs: list[Row], turned: set[int], options: argparse.Namespace
) -> list[Row]:
    """Rows of an arm, each with whether its label is turned: for the table, not for training."""
    if arm == "clean":
        return [{**row, "turned": False} for row in pairs]
    flipped = [
        {"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"]}
        if number in turned
        else row
        for number, row in enumerate(pairs)
    ]
    marked = [{**row, "turned": number in turned} for number, row in enumerate(flipped)]
    if arm == "flipped":
        return marked
    if arm not in ARMS:
        raise SystemExit(f"no arm is called {arm!r}: {', '.join(ARMS)}")
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "cleaned.jsonl"
        # `turned` stands beside: no reader of pairs takes it.
        told = {"noise_rate": options.rate} if arm == "told" else {}
        print(clean(marked, drop=["label-noise"], output=output, **told).summary())
        return [json.loads(line) for line in output.read_text().splitlines()]


def one(
    run: Path, model: str, train: list[Row], held_out: list[Row], options: argparse.Namespace
) -> tuple[Evaluation, float]:
    """Train and evaluate, each where that is not done already."""
    result = penchant.train(
        "dpo",
        model=model,
        data=train,
        output=run,
        learning_rate=RATE,
        max_steps=options.max_steps,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=1,
        seed=options.seed,
        resume=True,
    )
    saved = run / f"held-out-{result.steps}.json"
    if not saved.exists():
        found = penchant.evaluate(model=run, data=held_out)
        saved.write_text(json.dumps(asdict(found)))
    return Evaluation(**json.loads(saved.read_text())), result.examples_per_second


if __name__ == "__main__":
    main()
