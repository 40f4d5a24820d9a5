"""Preferences that cannot all hold: stated both ways, or in cycles."""

from __future__ import annotations

from collections.abc import Sequence

from penchant.data.records import Label, Pair, Record, canonical, prompt_key


def count_contradicted(records: Sequence[Record]) -> int:
    """Pairs that also occur the other way round; labels of completions judged both ways."""
    verdicts: dict[tuple[str, str], list[bool]] = {}
    for label in (record for record in records if isinstance(record, Label)):
        key = prompt_key(label), canonical(label.completion)
        verdicts.setdefault(key, []).append(label.desirable)
    labels = sum(len(each) for each in verdicts.values() if len(set(each)) > 1)
    pairs = [record for record in records if isinstance(record, Pair)]
    return labels + sum(map(len, _opposed(_edges(pairs)).values()))


def count_in_cycles(pairs: Sequence[Pair]) -> int:
    """Pairs on a cycle of a prompt's answers (A over B, B over C, C over A).

    Those that also occur the other way round are left out.
    """
    edges = _edges(pairs)
    opposed = _opposed(edges)
    return sum(
        _on_cycles([edge for edge in own if edge not in opposed[prompt]])
        for prompt, own in edges.items()
    )


Edge = tuple[str, str]  # the better answer and the worse one


def _edges(pairs: Sequence[Pair]) -> dict[str, list[Edge]]:
    """The preferences of each prompt."""
    edges: dict[str, list[Edge]] = {}
    for pair in pairs:
        sides = canonical(pair.chosen), canonical(pair.rejected)
        edges.setdefault(prompt_key(pair), []).append(sides)
    return edges


def _opposed(edges: dict[str, list[Edge]]) -> dict[str, list[Edge]]:
    """Those of each prompt that also occur the other way round."""
    stated = {prompt: set(own) for prompt, own in edges.items()}
    return {p: [e for e in own if (e[1], e[0]) in stated[p]] for p, own in edges.items()}


def _on_cycles(edges: Sequence[Edge]) -> int:
    """How many edges lie on a cycle: those whose worse answer leads back to the better one."""
    worse_than: dict[str, set[str]] = {}
    for better, worse in edges:
        worse_than.setdefault(better, set()).add(worse)

    def leads(start: str, end: str) -> bool:
        seen, waiting = {start}, [start]
        while waiting:
            for answer in worse_than.get(waiting.pop(), set()) - seen:
                seen.add(answer)
                waiting.append(answer)
        return end in seen

    return sum(better in worse_than and leads(worse, better) for better, worse in edges)
