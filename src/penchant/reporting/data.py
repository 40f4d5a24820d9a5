"""What a run was trained on: the audit of its records, and what tokenising did to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penchant.reporting.reading import Run, number
from penchant.reporting.words import shown

# Told where there are any.
LEFT_OUT = {"num_ties": "Ties, left out", "num_refused": "Rows refused"}


def audit(run: Run) -> list[tuple[str, str]]:
    """What was counted in the records before the first step; empty for runs that saved none."""
    data = run.data.get("data")
    if not isinstance(data, dict):
        return []
    counts = {"num_prompts": "Distinct prompts", **LEFT_OUT}
    rows = [(name, _count(data, key)) for key, name in counts.items()]
    faults = data.get("faults")
    if isinstance(faults, dict):
        named = ((name.replace("-", " ").capitalize(), one) for name, one in faults.items())
        rows += [(name, _count(one, "num")) for name, one in named if isinstance(one, dict)]
    numbers = [(name, f"{count:,.0f}") for name, count in rows if count]
    return [("Records", _records(data)), *numbers, *_preferences(data)]


def _records(data: Mapping[str, Any]) -> str:
    train, held_out = _count(data, "num_train"), _count(data, "num_held_out")
    chats = _count(data, "num_chat")
    kind = "" if not chats else ", as messages" if chats == train else f", {chats:,.0f} as messages"
    return f"{train:,.0f} for training{kind}; {held_out:,.0f} held out"


def _preferences(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    length, noise = data.get("length"), data.get("noise")
    if isinstance(length, dict):
        longer, shorter = _count(length, "longer_chosen"), _count(length, "shorter_chosen")
        if longer + shorter:
            share = longer / (longer + shorter)
            rows.append(("Longer answer chosen", f"in {share:.0%} of pairs of unequal length"))
    if isinstance(noise, dict) and (rated := _count(noise, "num_rated")):
        split = _count(noise, "num_split") / rated
        wrong = _count(noise, "flip_probability")
        rows.append((
            "Votes", f"{rated:,.0f} pairs have them, {split:.0%} not unanimous; "
            f"about {wrong:.0%} of the labels are wrong, as they tell",
        ))  # fmt: skip
    return rows


def _count(values: Mapping[str, Any], key: str) -> float:
    return number(values.get(key)) or 0.0


def tokenising(run: Run) -> list[tuple[str, list[tuple[str, str]]]]:
    """By part of the data: its records, what was cut and dropped, the longest."""
    parts = (run.summary or {}).get("tokenising")
    if not isinstance(parts, dict):
        return []
    return [
        (name, [(key.replace("_", " "), shown(v)) for key, v in part.items() if key != "noun"])
        for name, part in parts.items()
        if isinstance(part, dict)
    ]
