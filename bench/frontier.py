"""The frontier: reward against divergence, for every method and several strengths of each.

python bench/frontier.py                              the tiny story model, two seeds
python bench/frontier.py --methods dpo,ppo --seeds 0  some of it; what is done is not done again
python bench/frontier.py --model M --length 32 --share 0.375 --rate 0.3 --strengths 2 --output O
                                                      a larger model: fewer pairs, steps and points

In the form of Fig. 2 of Rafailov et al. 2023 (https://arxiv.org/abs/2305.18290). Stories are to end
well. The signal that methods learn from is a short list of words (`kind_words`), with noise where
pairs are made of it; what is reported is VADER's sentiment, which is of other authors and weighs
thousands of words. Divergences are those of the policy's own answers from the model, by sequence.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import penchant
import records
from learning import COMMON, LENGTH, PROMPTS, SETTINGS
from penchant.data.batch import Group
from penchant.models.load import end_token_ids, load_causal_model, load_tokenizer
from penchant.models.scoring import Scorer, segment_sums
from penchant.rl.rewards.ready import sentiment
from penchant.rl.sampling.base import Draw, Sampling
from penchant.rl.sampling.sampler import CachedSampler

GOOD = frozenset(
    ("happy", "happily", "smiled", "fun", "love", "loved", "nice", "friends", "friend", "laughed",
     "good", "kind")
)  # fmt: skip
BAD = frozenset(
    ("sad", "cried", "scared", "angry", "hurt", "bad", "fell", "lost", "mean", "broke", "cry",
     "afraid")
)  # fmt: skip
ANSWERS = 16  # of the model to each prompt, of which pairs are made
PAIRS = 8  # to each prompt
NOISE = 0.5  # deviation that is added to each score before answers are compared
OFFLINE = {
    "num_train_epochs": 2, "learning_rate": 1e-3, "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 2, "max_length": 96, "save_steps": 10_000,
}  # fmt: skip
STRENGTHS: dict[str, tuple[str, tuple[float, ...]]] = {
    "dpo": ("beta", (0.01, 0.03, 0.1, 0.3, 1.0)),
    "ipo": ("beta", (0.1, 0.3, 1.0)),
    "kto": ("beta", (0.03, 0.1, 0.3)),
    "orpo": ("beta", (0.1, 0.5, 2.0)),
    "simpo": ("beta", (0.5, 2.0, 8.0)),
    "cpo": ("beta", (0.03, 0.1, 0.3)),
    "ppo": ("init_kl_coef", (0.02, 0.1, 0.3)),
    "grpo": ("beta", (0.05, 0.15, 0.5)),
    "rloo": ("beta", (0.05, 0.15, 0.5)),
    "online_dpo": ("beta", (0.3, 1.0, 3.0)),
}
ONLINE: dict[str, dict[str, Any]] = {
    "ppo": {**SETTINGS["ppo"], "adap_kl_ctrl": False, "max_steps": 240},
    "grpo": {**SETTINGS["grpo"], "max_steps": 80},
    "rloo": {**SETTINGS["rloo"], "max_steps": 100},
    "online_dpo": {"num_generations": 4, "learning_rate": 2e-4, "max_steps": 160},
}


@dataclass(frozen=True)
class Point:
    """What one run came to: means over prompts, and their standard errors."""

    method: str
    strength: str
    seed: int
    signal: float
    reward: float
    reward_error: float
    kl: float
    kl_error: float
    seconds: float


def kind_words(completions: Sequence[str], **_: Any) -> list[float]:
    """Good words less bad ones, at most two either way."""
    return [
        max(-2.0, min(2.0, float(_count(text, GOOD) - _count(text, BAD)))) for text in completions
    ]


def _count(text: str, words: frozenset[str]) -> int:
    return sum(word.strip(".,!?\"'").lower() in words for word in text.split())


class Task:
    """Prompts, the model's answers to them, and how a policy is measured."""

    def __init__(self, model: str, length: int, share: float = 1.0, rate: float = 1.0) -> None:
        self.name, self.length, self.share, self.rate = model, length, share, rate
        self.tokenizer = load_tokenizer(model)
        self.base = load_causal_model(model, dtype=torch.float32).eval()
        self.prompts = [self.tokenizer(row["prompt"])["input_ids"] for row in PROMPTS]

    def draw(self, model: Any, n: int, seed: int) -> list[list[Any]]:
        """`n` answers to each prompt."""
        scorer = Scorer(model, self.tokenizer.pad_token_id)
        sampler = CachedSampler(scorer, end_token_ids(model), 64)
        return sampler.sample(self.prompts, Draw(Sampling(self.length), seed, n))

    def texts(self, answers: list[list[Any]]) -> list[list[str]]:
        """Of the answers to each prompt."""
        decode = self.tokenizer.decode
        return [[decode(one.ids, skip_special_tokens=True) for one in row] for row in answers]

    def pairs(self, seed: int) -> list[dict[str, str]]:
        """Answers of the model, compared by the signal with noise."""
        chance = random.Random(seed)
        rows = []
        for asked, texts in zip(
            PROMPTS, self.texts(self.draw(self.base, ANSWERS, seed)), strict=True
        ):
            scores = [value + chance.gauss(0, NOISE) for value in kind_words(texts)]
            for _ in range(round(PAIRS * self.share)):
                one, other = chance.sample(range(len(texts)), 2)
                if scores[one] < scores[other]:
                    one, other = other, one
                rows.append({**asked, "chosen": texts[one], "rejected": texts[other]})
        return rows

    @torch.no_grad()
    def measure(self, folder: Path, **known: Any) -> Point:
        """Answers of a saved policy: their reward, and how far they are from the model."""
        model = load_causal_model(str(folder), dtype=torch.float32).eval()
        answers = self.draw(model, 4, seed=1_000_003)
        reference = Scorer(self.base, self.tokenizer.pad_token_id)
        divergences = []
        for prompt, row in zip(self.prompts, answers, strict=True):
            batch = reference.batch([Group(prompt, tuple(one.ids for one in row))])
            theirs = segment_sums(batch, reference(batch))
            own = torch.tensor([sum(one.logprobs) for one in row])
            divergences.append(float((own - theirs).mean()))
        texts = self.texts(answers)
        reward, reward_error = _mean([statistics.mean(sentiment(completions=t)) for t in texts])
        kl, kl_error = _mean(divergences)
        signal = statistics.mean(statistics.mean(kind_words(t)) for t in texts)
        return Point(
            signal=signal, reward=reward, reward_error=reward_error, kl=kl, kl_error=kl_error,
            **known,
        )  # fmt: skip

    def best_of(self, sizes: Iterable[int]) -> list[Point]:
        """The best of n answers by the signal, at log n - (n - 1) / n nats from the model.

        The bound of Stiennon et al. 2020 (https://arxiv.org/abs/2009.01325), app. G.3.
        """
        texts = self.texts(self.draw(self.base, max(sizes), seed=1_000_003))
        signals = [kind_words(row) for row in texts]
        golds = [sentiment(completions=row) for row in texts]
        points = []
        for n in sizes:
            chosen = [
                [max(range(i, i + n), key=row.__getitem__) for i in range(0, len(row) - n + 1, n)]
                for row in signals
            ]
            rewards = [
                statistics.mean(gold[i] for i in best)
                for gold, best in zip(golds, chosen, strict=True)
            ]
            signal = statistics.mean(
                statistics.mean(row[i] for i in best)
                for row, best in zip(signals, chosen, strict=True)
            )
            reward, error = _mean(rewards)
            nats = math.log(n) - (n - 1) / n
            points.append(Point("best of n", f"n={n}", 0, signal, reward, error, nats, 0.0, 0.0))
        return points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--methods", default=",".join(STRENGTHS))
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--model", help="default: stories260k")
    parser.add_argument("--length", type=int, default=LENGTH, help="tokens of an answer")
    parser.add_argument("--share", type=float, default=1.0, help="of the pairs and online steps")
    parser.add_argument("--rate", type=float, default=1.0, help="times every learning rate")
    parser.add_argument("--strengths", type=int, default=5, help="of each method, at most")
    parser.add_argument("--output", type=Path, default=Path("runs/frontier"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    model = options.model or str(records.shared_folder() / "models" / "stories260k")
    task = Task(model, options.length, options.share, options.rate)
    require_same(options.output, {
        "model": model, "length": options.length, "share": options.share, "rate": options.rate,
    })  # fmt: skip
    file = options.output / "points.jsonl"
    points = (
        [Point(**json.loads(line)) for line in file.read_text().splitlines()]
        if file.exists()
        else []
    )
    done = {(point.method, point.strength, point.seed) for point in points}
    for seed in map(int, options.seeds.split(",")):
        pairs = task.pairs(seed)
        for method in options.methods.split(","):
            key, values = STRENGTHS[method]
            for value in values[:: math.ceil(len(values) / options.strengths)]:
                known = {"method": method, "strength": f"{key}={value:g}", "seed": seed}
                if tuple(known.values()) in done:
                    continue
                point = one(task, pairs, known, {key: value}, options.output)
                points.append(point)
                with file.open("a") as lines:
                    lines.write(json.dumps(asdict(point)) + "\n")
                print(json.dumps(asdict(point)), flush=True)
    points += task.best_of((1, 2, 4, 8, 16))
    Console().print(table(points))
    plot(points, options.output / "frontier.png")
    print(f"{options.output / 'frontier.png'}")


def require_same(folder: Path, settings: dict[str, Any]) -> None:
    """Refuse a folder whose points are of other settings; one strength may be added to others."""
    file = folder / "settings.json"
    if not file.exists():
        file.write_text(json.dumps(settings))
    elif (before := json.loads(file.read_text())) != settings:
        raise SystemExit(f"{folder} holds points of {before}, not of {settings}; name another")


def one(
    task: Task,
    pairs: list[dict[str, str]],
    known: dict[str, Any],
    keys: dict[str, Any],
    output: Path,
) -> Point:
    """Train and measure one policy."""
    method = known["method"]
    run = output / f"{method}-{known['strength']}-{known['seed']}"
    if method in ONLINE:
        settings = {**COMMON, "reward": [kind_words], **ONLINE[method], **keys}
        settings["max_completion_length"] = task.length
        settings["max_steps"] = round(settings["max_steps"] * task.share)
        data: Any = PROMPTS
    else:
        settings = {**OFFLINE, **({"unpair": True} if method == "kto" else {}), **keys}
        data = pairs
    settings["learning_rate"] *= task.rate
    started = time.perf_counter()
    penchant.train(
        method,
        model=task.name,
        data=data,
        output=run,
        seed=known["seed"],
        overwrite=True,
        **settings,
    )
    seconds = time.perf_counter() - started
    return task.measure(run / "model", seconds=seconds, **known)


def table(points: list[Point]) -> Table:
    """A row for each strength, over its seeds."""
    found = Table(
        "method", "strength", "signal", "reward (VADER)", "KL, nats per answer", "seconds"
    )

    def spread(rows: list[Point], name: str, digits: int) -> str:
        """The mean over seeds, with its standard error over prompts."""
        mean = statistics.mean(getattr(row, name) for row in rows)
        errors = [getattr(row, f"{name}_error") for row in rows]
        error = math.sqrt(sum(one**2 for one in errors)) / len(errors)
        return f"{mean:.{digits}f} ± {error:.{digits}f}"

    for key in dict.fromkeys((point.method, point.strength) for point in points):
        rows = [point for point in points if (point.method, point.strength) == key]
        found.add_row(
            *key,
            f"{statistics.mean(row.signal for row in rows):.2f}",
            spread(rows, "reward", 3),
            spread(rows, "kl", 2),
            f"{statistics.mean(row.seconds for row in rows):.0f}",
        )
    return found


def plot(points: list[Point], file: Path) -> None:
    """Reward against divergence, with standard errors over prompts."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 6))
    for number, method in enumerate(dict.fromkeys(point.method for point in points)):
        rows = sorted((p for p in points if p.method == method), key=lambda p: p.kl)
        axes.errorbar(
            [row.kl for row in rows], [row.reward for row in rows],
            xerr=[row.kl_error for row in rows], yerr=[row.reward_error for row in rows],
            label=method, color=f"C{number % 10}", marker="os^D"[number // 10 + number % 3],
            linestyle="--" if method == "best of n" else "none", capsize=2, markersize=5,
        )  # fmt: skip
    axes.set_xlabel("KL of the policy's own answers from the model, nats per answer")
    axes.set_ylabel("reward (VADER's sentiment)")
    axes.set_xscale("symlog", linthresh=1)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120, bbox_inches="tight")


def _mean(values: list[float]) -> tuple[float, float]:
    """Mean and standard error, prompts being independent."""
    return statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))


if __name__ == "__main__":
    main()
