"""What the checks and the audit say of preferences that cannot all hold."""

from __future__ import annotations

import random

from penchant.data.cycles import count_contradicted, count_in_cycles
from penchant.data.records import Pair


def over(better: str, worse: str, prompt: str = "p") -> Pair:
    return Pair(prompt, better, worse, "list:1")


def test_a_cycle_is_counted_without_what_hangs_on_it_and_within_its_prompt() -> None:
    chain = [over("a", "b"), over("b", "c"), over("a", "c")]
    assert count_in_cycles(chain) == 0
    cycle = [*chain[:2], over("c", "a"), over("a", "d"), over("c", "a", "q"), over("x", "b", "q")]
    assert count_in_cycles(cycle) == 3
    assert count_contradicted(cycle) == 0
    assert count_in_cycles([*cycle, over("a", "c")]) == 0  # c over a is a contradiction then


def test_the_counts_are_those_of_inspect() -> None:
    from penchant.audit import inspect

    draw = random.Random(5)
    pairs = [over(*draw.sample("abcdef", 2), prompt=draw.choice("pqrs")) for _ in range(30)]
    rows = [{"prompt": x.prompt, "chosen": x.chosen, "rejected": x.rejected} for x in pairs]
    found = {one.id: len(one.rows) for one in inspect(rows).findings}
    assert found.get("contradictions", 0) == count_contradicted(pairs) > 0
    assert found.get("cycles", 0) == count_in_cycles(pairs) > 0
