"""The frontier: reward against divergence, for every method and several strengths of each.

python bench/frontier.py                              the tiny story model, two seeds
python bench/frontier.py --methods dpo,ppo --seeds 0  some of it; what is done is not done again
python bench/frontier.py --model M --scale larger      fewer pairs and steps, shorter answers
python bench/frontier.py --scale quick --seeds 0       a look at every method, in a minute or two

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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import penchant
import records
from learning import COMMON, LENGTH, PROMPTS, SETTINGS
from penchant.data.batch import Group, segment_sums
from penchant.models.load import end_token_ids, load_causal_model, load_tokenizer
from penchant.models.scoring import Scorer
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
    "ppo": {**SETTINGS["ppo"], "adap_kl_ctrl": False},
    "grpo": SETTINGS["grpo"],
    "rloo": SETTINGS["rloo"],
    "online_dpo": {"num_generations": 4, "learning_rate": 2e-4},
}


@dataclass(frozen=True)
class Scale:
    """How much is trained and drawn of a model.

    Attributes:
        length: tokens of an answer.
        pairs: of answers to each prompt.
        strengths: of each method, at most.
        online_rate: what multiplies the learning rates of methods that sample.
        online_steps: of each method that samples.
    """

    length: int
    pairs: int
    strengths: int
    online_rate: float
    online_steps: dict[str, int]


SCALES = {
    "tiny": Scale(LENGTH, 8, 5, 1.0, {"ppo": 240, "grpo": 80, "rloo": 100, "online_dpo": 160}),
    "quick": Scale(16, 2, 1, 1.0, {"ppo": 24, "grpo": 8, "rloo": 10, "online_dpo": 16}),
    "larger": Scale(24, 4, 2, 0.4, {"ppo": 96, "grpo": 64, "rloo": 64, "online_dpo": 64}),
}


@dataclass(frozen=True)
class Point:
    """What one run came to.

    Attributes:
        signal: what was learnt from, on average.
        rewards, kls: of each prompt, the means over its answers; nats per answer.
    """

    method: str
    strength: str
    seed: int
    signal: float
    rewards: list[float]
    kls: list[float]
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

    def __init__(self, model: str, scale: Scale, precision: str = "fp32") -> None:
        self.name, self.scale, self.precision = model, scale, precision
        self.tokenizer = load_tokenizer(model)
        self.base = load_causal_model(model, dtype=torch.float32).eval()
        self.prompts = [self.tokenizer(row["prompt"])["input_ids"] for row in PROMPTS]

    def draw(self, model: Any, n: int, seed: int) -> list[list[Any]]:
        """`n` answers to each prompt."""
        scorer = Scorer(model, self.tokenizer.pad_token_id)
        sampler = CachedSampler(scorer, end_token_ids(model), 64)
        return sampler.sample(self.prompts, Draw(Sampling(self.scale.length), seed, n))

    def texts(self, answers: list[list[Any]]) -> list[list[str]]:
        """Of the answers to each prompt."""
        decode = self.tokenizer.decode
        return [[decode(one.ids, skip_special_tokens=True) for one in row] for row in answers]

    @cache  # noqa: B019  # one task lives as long as the process
    def pairs(self, seed: int) -> list[dict[str, str]]:
        """Answers of the model, compared by the signal with noise."""
        chance = random.Random(seed)
        rows = []
        for asked, texts in zip(
            PROMPTS, self.texts(self.draw(self.base, ANSWERS, seed)), strict=True
        ):
            scores = [value + chance.gauss(0, NOISE) for value in kind_words(texts)]
            for _ in range(self.scale.pairs):
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
        rewards = [statistics.mean(sentiment(completions=row)) for row in texts]
        signal = statistics.mean(statistics.mean(kind_words(row)) for row in texts)
        return Point(signal=signal, rewards=rewards, kls=divergences, **known)

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
            nats = [math.log(n) - (n - 1) / n] * len(rewards)
            points.append(Point("best of n", f"n={n}", 0, signal, rewards, nats, 0.0))
        return points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--methods", default=",".join(STRENGTHS))
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--model", help="default: stories260k")
    parser.add_argument("--scale", choices=SCALES, default="tiny", help="how much is trained")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of training")
    parser.add_argument("--output", type=Path, default=Path("runs/frontier"))
    options = parser.parse_args()
    model = options.model or str(records.shared_folder() / "models" / "stories260k")
    folder = options.output / f"{Path(model).name}-{options.scale}-{options.precision}"
    folder.mkdir(parents=True, exist_ok=True)
    task = Task(model, SCALES[options.scale], options.precision)
    file = folder / "points.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    points = [Point(**json.loads(line)) for line in lines]
    done = {(point.method, point.strength, point.seed) for point in points}
    for known, keys in plan(options.methods, options.seeds, task.scale.strengths):
        if tuple(known.values()) not in done:
            points.append(one(task, known, keys, folder))
            with file.open("a") as stream:
                stream.write(json.dumps(asdict(points[-1])) + "\n")
            Console().print(table(points[-1:]))
    points += task.best_of((1, 2, 4, 8, 16))
    Console(width=160).print(table(points))
    plot(points, folder / "frontier.png")
    print(folder / "frontier.png")


def plan(
    methods: str, seeds: str, strengths: int
) -> Iterator[tuple[dict[str, Any], dict[str, float]]]:
    """What each point is known by, and its keys: all methods at one strength, then at the next."""
    for rank in range(strengths):
        for method, seed in product(methods.split(","), seeds.split(",")):
            key, values = STRENGTHS[method]
            chosen = values[:: math.ceil(len(values) / strengths)]
            if rank < len(chosen):
                strength = f"{key}={chosen[rank]:g}"
                yield (
                    {"method": method, "strength": strength, "seed": int(seed)},
                    {key: chosen[rank]},
                )


def one(task: Task, known: dict[str, Any], keys: dict[str, Any], folder: Path) -> Point:
    """Train and measure one policy."""
    method = known["method"]
    run = folder / f"{method}-{known['strength']}-{known['seed']}"
    if method in ONLINE:
        settings = {**COMMON, "reward": [kind_words], **ONLINE[method], **keys}
        settings["max_completion_length"] = task.scale.length
        settings["max_steps"] = task.scale.online_steps[method]
        settings["learning_rate"] *= task.scale.online_rate
        data: Any = PROMPTS
    else:
        settings = {**OFFLINE, **({"unpair": True} if method == "kto" else {}), **keys}
        data = task.pairs(known["seed"])
    started = time.perf_counter()
    penchant.train(
        method,
        model=task.name,
        data=data,
        output=run,
        seed=known["seed"],
        overwrite=True,
        precision=task.precision,
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
        """The mean, with its standard error over prompts (all seeds share them), and each seed."""
        own = [getattr(row, name) for row in rows]
        mean, error = _mean([statistics.mean(values) for values in zip(*own, strict=True)])
        each = ", ".join(f"{statistics.mean(values):.{digits}f}" for values in own)
        return f"{mean:.{digits}f} ± {error:.{digits}f}" + (f" ({each})" if len(own) > 1 else "")

    order = [*STRENGTHS, "best of n"]
    points = sorted(points, key=lambda point: (order.index(point.method), point.seed))
    for key in dict.fromkeys((point.method, point.strength) for point in points):
        rows = [point for point in points if (point.method, point.strength) == key]
        found.add_row(
            *key,
            f"{statistics.mean(row.signal for row in rows):.2f}",
            spread(rows, "rewards", 3),
            spread(rows, "kls", 1),
            f"{statistics.mean(row.seconds for row in rows):.0f}",
        )
    return found


def plot(points: list[Point], file: Path) -> None:
    """Reward against divergence, with standard errors over prompts."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 6))
    for number, method in enumerate(dict.fromkeys(point.method for point in points)):
        rows = [p for p in points if p.method == method]
        (rewards, reward_errors), (kls, kl_errors) = (
            zip(*(_mean(getattr(row, name)) for row in rows), strict=True)
            for name in ("rewards", "kls")
        )
        axes.errorbar(
            kls, rewards, xerr=kl_errors, yerr=reward_errors,
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
