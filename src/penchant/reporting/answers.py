"""Answers before and after, with the words that differ."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penchant.reporting.reading import Run
from penchant.reporting.words import shown

# A table is read by a person: beyond these, more rows and characters only weigh.
NUM_PAIRS = 200
SHOWN_CHARACTERS = 3000
# Of the words of two answers: where less is shared, marking what differs would mark all.
MUCH_SHARED = 0.5

Words = list[tuple[bool, str]]
"""Pieces of an answer, each with whether the other answer does not have it."""


@dataclass(frozen=True)
class Pair:
    """One prompt's answers at the first and at the last step that has any.

    Attributes:
        prompt: as text, roles in front.
        steps: those of the answers.
        before, after: their words; `after` is empty where the run was not that far.
        notes: what else is known of each: length, reward, KL.
    """

    prompt: str
    steps: tuple[int, int | None]
    before: Words
    after: Words
    notes: tuple[str, str]


@dataclass(frozen=True)
class Asked:
    """One prompt and the answers of all runs that met it.

    Attributes:
        prompt: as text, roles in front.
        answers: heading, note and words of each, in order; a run's first where they differ, and
            its last.
    """

    prompt: str
    answers: list[tuple[str, str, Words]]


def asked(runs: Sequence[Run]) -> list[Asked]:
    """Every prompt with the answers to it, those of several runs side by side."""
    found: dict[str, list[tuple[str, Pair]]] = {}
    for run in runs:
        for prompt, pair in pairs(run).items():
            found.setdefault(prompt, []).append((run.name, pair))
    several = len(runs) > 1
    return [_asked(answers, several) for answers in found.values()][:NUM_PAIRS]


def _asked(answers: Sequence[tuple[str, Pair]], several: bool) -> Asked:
    columns: list[tuple[str, str, Words]] = []
    starts: set[str] = set()
    for name, pair in answers:
        of = f"{name}, " if several else ""
        before = _first(pair)
        if before not in starts or pair.steps[1] is None:  # runs from one start begin alike
            starts.add(before)
            same = several and sum(_first(other) == before for _, other in answers) > 1
            words = [(False, before)] if several else pair.before
            heading = f"{'' if same else of}step {pair.steps[0]}"
            columns.append((heading, pair.notes[0], words))
        if pair.steps[1] is not None:
            columns.append((f"{of}step {pair.steps[1]}", pair.notes[1], pair.after))
    return Asked(answers[0][1].prompt, columns)


def _first(pair: Pair) -> str:
    return "".join(text for _, text in pair.before)


def pairs(run: Run) -> dict[str, Pair]:
    """Answers of `samples.jsonl`, then of `monitor.jsonl` to other prompts, by prompt."""
    by_prompt: dict[str, Pair] = {}
    for records in (run.samples, run.monitored):
        for prompt, answers in _by_prompt(records).items():
            by_prompt.setdefault(prompt, _pair(answers))
    return by_prompt


def _by_prompt(records: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    by_prompt: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        if "answer" in record:
            key = json.dumps(record.get("prompt"), sort_keys=True)
            by_prompt.setdefault(key, []).append(record)
    return by_prompt


def _pair(answers: Sequence[Mapping[str, Any]]) -> Pair:
    first = min(answers, key=lambda one: one["step"])
    last = max(answers, key=lambda one: one["step"])
    moved = last["step"] > first["step"]
    before, after = _differences(_text(first), _text(last) if moved else "", moved)
    steps = (first["step"], last["step"] if moved else None)
    notes = (_notes(first), _notes(last) if moved else "")
    return Pair(prompt_text(first.get("prompt")), steps, before, after, notes)


def prompt_text(prompt: Any) -> str:
    """A prompt as text: messages with their roles."""
    if not isinstance(prompt, list):
        return _cut(str(prompt))
    said = [one for one in prompt if isinstance(one, dict)]
    return _cut("\n".join(f"{one.get('role', '?')}: {one.get('content', '')}" for one in said))


def _text(record: Mapping[str, Any]) -> str:
    return _cut(str(record["answer"]))


def _cut(text: str) -> str:
    more = len(text) - SHOWN_CHARACTERS
    return text if more <= 0 else f"{text[:SHOWN_CHARACTERS]} ({more:,} more characters)"


def _notes(record: Mapping[str, Any]) -> str:
    notes = []
    if "num_tokens" in record:
        notes.append(f"{shown(record['num_tokens'])} tokens")
    if record.get("ended") is False:
        notes.append("cut off")
    notes += [f"{name} {shown(record[key])}" for name, key in (("reward", "reward"), ("KL", "kl"))
             if record.get(key) is not None]  # fmt: skip
    return ", ".join(notes)


def _differences(before: str, after: str, both: bool) -> tuple[Words, Words]:
    if not both:
        return [(False, before)], []
    left, right = (re.findall(r"\s+|\S+", text) for text in (before, after))
    marked: tuple[Words, Words] = ([], [])
    matcher = difflib.SequenceMatcher(None, left, right, autojunk=False)
    if matcher.ratio() < MUCH_SHARED:
        return [(False, before)], [(False, after)]
    for kind, i, j, k, m in matcher.get_opcodes():
        for side, words in zip(marked, (left[i:j], right[k:m]), strict=True):
            if words:
                side.append((kind != "equal", "".join(words)))
    return marked
