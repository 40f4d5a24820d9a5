"""Over-optimisation: a proxy reward model of few pairs against the judge that labelled them.

python bench/overoptimization.py                                  three sizes, five seeds each
python bench/overoptimization.py --pairs 64 --seeds 0 --steps 60  one short run

As Gao et al. 2022 (https://arxiv.org/abs/2210.10760): the gold judge (VADER's sentiment of a story)
labels pairs of the model's own answers, a reward model learns from them, and GRPO without a
divergence penalty maximises the reward model. Every sampled answer is also given to the gold judge.
Printed are the step at which gold peaks, the one at which a guard speaks, and the fits of the gold
reward over d, the square root of the divergence: d (a - b d) and d (a - b log d).
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import penchant
import records
from frontier import ANSWERS, Task
from hacking import ALARMS, lines
from learning import COMMON, LENGTH, PROMPTS
from penchant.rl.rewards.ready import sentiment

NOISE = 0.2  # deviation that is added to the gold judge's scores before answers are compared
REWARD = {
    "num_train_epochs": 1, "learning_rate": 1e-3, "max_length": 96, "save_steps": 10_000,
    "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1,
}  # fmt: skip
FREE = {
    **COMMON, "num_generations": 8, "num_iterations": 2, "beta": 0.0, "learning_rate": 5e-4,
    "log_completions": COMMON["batch_size"], "monitor_steps": 10,
}  # fmt: skip
HELD = {**FREE, "beta": 0.15}
WINDOW = 8  # batches that are averaged
LOST = 0.1  # share of the gain after whose loss a stop comes too late


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", default="64,1024", help="of which reward models are trained")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--kinds", default="free,held", help="without and with a penalty")
    parser.add_argument("--output", type=Path, default=Path("runs/overoptimization"))
    options = parser.parse_args()
    task = Task(str(records.shared_folder() / "models" / "stories260k"), LENGTH)
    table = Table(
        "run", "gold at first", "peak", "at the end", "peak at", "alarm", "KL", "fits: R²"
    )
    for kind in options.kinds.split(","):
        for count in map(int, options.pairs.split(",")):
            for seed in map(int, options.seeds.split(",")):
                row = one(task, kind, count, seed, options.steps, options.output)
                print(json.dumps(row), flush=True)
                table.add_row(
                    f"{kind}, {count} pairs, seed {seed}",
                    *(f"{row[name]:.3f}" for name in ("first", "peak", "last")),
                    str(row["peak_step"]), str(row["alarm"]), f"{row['kl']:.1f}",
                    f"{row['square_r2']:.2f}, {row['log_r2']:.2f}",
                )  # fmt: skip
    Console().print(table)


def one(task: Task, kind: str, count: int, seed: int, steps: int, output: Path) -> dict[str, Any]:
    """Train a reward model, maximise it, and hold both against the gold judge."""
    name = f"{kind}-{count}-{seed}"
    judge = output / f"judge-{count}-{seed}"
    if not (judge / "model").exists():
        penchant.train(
            "reward", model=task.name, data=gold_pairs(task, count, seed), output=judge, seed=seed,
            overwrite=True, **REWARD,
        )  # fmt: skip
    run = output / name
    settings = {**(FREE if kind == "free" else HELD), "reward": str(judge), "max_steps": steps}
    penchant.train(
        "grpo", model=task.name, data=PROMPTS, output=run, seed=seed, overwrite=True, **settings
    )
    steps_of, gold, kl = by_batch(run)
    smooth = [statistics.mean(gold[max(0, i - WINDOW + 1) : i + 1]) for i in range(len(gold))]
    smooth = smooth[WINDOW - 1 :]
    best = max(range(len(smooth)), key=smooth.__getitem__)
    alarm = next(
        (f["step"] for f in lines(run / "findings.jsonl") if f["id"] in ALARMS and f["step"]), None
    )
    peak_step = steps_of[best + WINDOW - 1]
    late = None
    if alarm is not None:
        i = min(range(len(smooth)), key=lambda i: abs(steps_of[i + WINDOW - 1] - alarm))
        late = smooth[best] - smooth[i] > LOST * (smooth[best] - gold[0]) and alarm > peak_step
    return {
        "run": name, "first": gold[0], "peak": smooth[best], "last": smooth[-1],
        "peak_step": peak_step, "alarm": alarm, "late": late, "kl": kl[-1], **fits(gold, kl),
    }  # fmt: skip


def gold_pairs(task: Task, count: int, seed: int) -> list[dict[str, str]]:
    """The model's answers, compared by the gold judge with noise."""
    chance = random.Random(seed)
    texts = task.texts(task.draw(task.base, ANSWERS, seed))
    rows = []
    for i in range(count):
        asked, answers = PROMPTS[i % len(PROMPTS)], texts[i % len(PROMPTS)]
        some = chance.sample(answers, 2)
        scores = [value + chance.gauss(0, NOISE) for value in sentiment(completions=some)]
        chosen, rejected = some if scores[0] >= scores[1] else some[::-1]
        rows.append({**asked, "chosen": chosen, "rejected": rejected})
    return rows


def by_batch(run: Path) -> tuple[list[int], list[float], list[float]]:
    """Of each batch of answers: its step, the gold judge's mean, and the divergence."""
    texts: dict[int, list[str]] = defaultdict(list)
    for row in lines(run / "rollouts.jsonl"):
        texts[row["iteration"]].append(row["completion"])
    first: dict[int, dict[str, float]] = {}
    for row in lines(run / "metrics.jsonl"):
        if "iteration" in row:
            first.setdefault(int(row["iteration"]), row)
    batches = sorted(first.keys() & texts.keys())
    gold = [statistics.mean(sentiment(completions=texts[i])) for i in batches]
    return (
        [int(first[i]["step"]) for i in batches],
        gold,
        [first[i]["kl/sequence"] for i in batches],
    )


def fits(gold: list[float], kl: list[float]) -> dict[str, float]:
    """Coefficients and R² of both forms, by least squares over batches; gains over the first."""
    d = np.sqrt(np.maximum(kl, 1e-6))
    gain = np.asarray(gold) - gold[0]
    found = {}
    for name, bend in (("square", -d * d), ("log", -d * np.log(d))):
        (a, b), *_ = np.linalg.lstsq(np.stack([d, bend], 1), gain, rcond=None)
        left = gain - (a * d + b * bend)
        r2 = 1 - float((left**2).sum() / max(((gain - gain.mean()) ** 2).sum(), 1e-12))
        found |= {f"{name}_a": float(a), f"{name}_b": float(b), f"{name}_r2": r2}
    assert all(math.isfinite(value) for value in found.values())
    return found


if __name__ == "__main__":
    main()
