"""Does it learn? Stories with a sentiment reward: PPO, GRPO and RLOO beside best-of-n.

python bench/learning.py                     three methods, three seeds, the tiny story model
python bench/learning.py --methods ppo --seeds 0 --controller     fixed against adaptive KL
python bench/learning.py --methods ppo --seeds 0 --scale 100      large rewards, not normalised
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import penchant
import records
from penchant.rl.rewards.ready import sentiment
from penchant.rl.sampling.base import Draw, Sampling
from penchant.rl.sampling.sampler import CachedSampler

KINDS = ("little", "big", "small", "young")
HEROES = (
    *("girl", "boy", "dog", "cat", "bird", "king", "queen", "bear"),
    *("fish", "mouse", "horse", "rabbit", "fox", "duck", "frog", "tree"),
)
PROMPTS = [{"prompt": f"Once upon a time there was a {k} {h}"} for h in HEROES for k in KINDS]
LENGTH = 48
# Of a whole answer, in nats.
HEALTHY = (0.5, 10.0)
COMMON = {
    "reward": "sentiment",
    "batch_size": 32,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "max_completion_length": LENGTH,
    "max_length": 96,
    "lr_scheduler_type": "constant",
    "save_steps": 10_000,
    "log_completions": 2,
}
GROUPED = {"num_generations": 8, "log_completions": 8}
SETTINGS: dict[str, dict[str, Any]] = {
    "ppo": {
        "init_kl_coef": 0.05, "target_kl": 6.0, "horizon": 100, "ppo_epochs": 2, "vf_coef": 0.5,
        "cliprange_value": 5.0, "learning_rate": 3e-4, "max_steps": 400,
        "batch_size": 64, "per_device_train_batch_size": 16,
    },
    "grpo": {
        **GROUPED, "num_iterations": 2, "beta": 0.15, "learning_rate": 5e-4, "max_steps": 120,
    },
    "rloo": {**GROUPED, "beta": 0.15, "learning_rate": 5e-4, "max_steps": 200},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--methods", default="ppo,grpo,rloo")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--model", help="default: stories260k")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of a run")
    parser.add_argument("--best_of", default="1,2,4,8,16", help="sizes of best-of-n; empty: none")
    parser.add_argument("--output", type=Path, default=Path("runs/learning"))
    options = parser.parse_args()
    shared = records.shared_folder()
    model = options.model or str(shared / "models" / "stories260k")
    keys = dict(one.split("=", 1) for one in options.set)
    starts = best_of(model, [1])[0][1]
    print(f"the model's own mean reward: {starts:.3f}")
    table = Table("method", "reward before", "after", "KL, nats per answer", "length", "seconds")
    for method in filter(None, options.methods.split(",")):
        found = [one(method, model, int(s), keys, options.output) for s in options.seeds.split(",")]
        for row in found:
            print(method, json.dumps(row), flush=True)
        table.add_row(method, *(_spread([row[key] for row in found]) for key in found[0]))
    if options.best_of:
        for n, reward, nats in best_of(model, [int(n) for n in options.best_of.split(",")]):
            table.add_row(f"best of {n}", "", f"{reward:.3f}", f"{nats:.2f}", "", "")
    Console().print(table)


def one(method: str, model: str, seed: int, keys: dict[str, str], output: Path) -> dict[str, float]:
    """One run: mean reward and divergence of its first and of its last batches."""
    started = time.perf_counter()
    run = (
        output
        / f"{method}-seed-{seed}"
        / ("-".join(f"{k}={v}" for k, v in keys.items()) or "as-is")
    )
    settings = {**COMMON, **SETTINGS[method], **keys}
    penchant.train(method, model=model, data=PROMPTS, output=run, seed=seed, **settings)
    batches: dict[float, dict[str, float]] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if "iteration" in record:  # else of a monitor or an evaluation
            batches[record["iteration"]] = record
    rows = list(batches.values())
    tail = rows[-max(1, len(rows) // 6) :]
    return {
        "before": statistics.mean(row["reward/mean"] for row in rows[:2]),
        "after": statistics.mean(row["reward/mean"] for row in tail),
        "kl": statistics.mean(row["kl/sequence"] for row in tail),
        "length": statistics.mean(row["completion/length"] for row in tail),
        "seconds": time.perf_counter() - started,
    }


def best_of(model: str, sizes: list[int]) -> list[tuple[int, float, float]]:
    """Expected reward of the best of n answers, at log n - (n - 1) / n nats from the model.

    The bound of Stiennon et al. 2020 (https://arxiv.org/abs/2009.01325), app. G.3.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from penchant.models.load import end_token_ids
    from penchant.models.scoring import Scorer

    loaded = AutoModelForCausalLM.from_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    sampler = CachedSampler(Scorer(loaded, tokenizer.eos_token_id), end_token_ids(loaded), 64)
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in PROMPTS]
    answers = sampler.sample(prompts, Draw(Sampling(LENGTH), 0, max(sizes)))
    texts = [[tokenizer.decode(c.ids, skip_special_tokens=True) for c in row] for row in answers]
    rewards = torch.tensor([sentiment(completions=row) for row in texts])  # [prompts, n]
    return [
        (n, float(rewards.unfold(1, n, n).amax(-1).mean()), math.log(n) - (n - 1) / n)
        for n in sizes
    ]


def _spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.3f}"
    return mean + (f" ({', '.join(f'{v:.3f}' for v in values)})" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
