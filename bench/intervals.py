"""How often the 95% intervals of win rates hold the truth, on data whose truth is known.

And how often one of two equal models is called better.

python bench/intervals.py
"""

from __future__ import annotations

import argparse
import math
import random

from rich.console import Console
from rich.table import Table

from penchant.core.length_control import length_controlled
from penchant.core.resampling import difference, share

# Prompts, and how many of them are decided: all, or a tenth and less.
DECIDED = (
    *((num, num) for num in (4, 5, 7, 10, 13, 20, 23, 33, 50, 100)),
    *((50, 5), (100, 4), (100, 11), (400, 40)),
)  # fmt: skip


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def repeated(source: random.Random, rate: float, prompts: int) -> tuple[list[float], list[str]]:
    """Four answers a prompt, whose win rates are 0.25 higher or lower by prompt."""
    wins, names = [], []
    for number in range(prompts):
        own = rate + source.choice((-0.25, 0.25))
        wins += [float(source.random() < own) for _ in range(4)]
        names += [str(number)] * 4
    return wins, names


def held(found: object, truth: float) -> bool:
    return found.low <= truth <= found.high  # type: ignore[attr-defined]


def false_verdicts(prompts: int, decided: int) -> tuple[float, float]:
    """How often one of two equal models is called better, where so many prompts are decided.

    Exact: over every number of wins, as often as fair coins give it. By the interval alone, and by
    the verdict, which asks the sign test too.
    """
    names = [str(i) for i in range(prompts)]
    by_interval = by_verdict = 0.0
    for wins in range(decided + 1):
        values = [0.5] * wins + [-0.5] * (decided - wins) + [0.0] * (prompts - decided)
        lead = difference(values, names)
        assert lead is not None, "there are verdicts"
        chance = math.comb(decided, wins) / 2**decided
        by_interval += chance * (not lead.holds_zero)
        by_verdict += chance * (not lead.by_chance)
    return by_interval, by_verdict


def equal_models() -> Table:
    """Two equal models with few prompts, or few of them decided."""
    table = Table("prompts", "decided", "better by interval", "better by verdict")
    for prompts, decided in DECIDED:
        shares = (f"{100 * share:.1f}%" for share in false_verdicts(prompts, decided))
        table.add_row(str(prompts), str(decided), *shares)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=400)
    options = parser.parse_args()
    trials = range(options.trials)
    source = random.Random(0)
    table = Table("prompts", "truth", "win rate", "four a prompt", "as if apart", "equal lengths")
    for num in (5, 10, 20, 50, 100, 400):
        for truth in (0.5, 0.7):
            counts = [0, 0, 0, 0]
            for _ in trials:
                names = [str(i) for i in range(num)]
                wins = [float(source.random() < truth) for _ in names]
                counts[0] += held(share(wins, names), truth)
                several, prompts = repeated(source, truth, num)
                counts[1] += held(share(several, prompts), truth)
                counts[2] += held(share(several, list(map(str, range(4 * num)))), truth)
                # Longer answers win more often: e ** 1 to one for each deviation of the difference.
                longer = [source.gauss(50, 100) for _ in names]
                rate = [sigmoid(math.log(truth / (1 - truth)) + math.tanh(d / 100)) for d in longer]
                won = [float(source.random() < p) for p in rate]
                fitted = length_controlled(won, longer, names)
                assert fitted is not None, "lengths differ"
                counts[3] += held(fitted.share, truth)
            shares = (f"{100 * count / options.trials:.1f}%" for count in counts)
            table.add_row(str(num), f"{truth:g}", *shares)
    Console().print(table)
    Console().print(equal_models())


if __name__ == "__main__":
    main()
