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


def pairs(run: Run) -> list[Pair]:
    """Answers of `samples.jsonl`, then of `monitor.jsonl` to other prompts."""
    by_prompt: dict[str, Pair] = {}
    for records in (run.samples, run.monitored):
        for prompt, answers in _by_prompt(records).items():
            by_prompt.setdefault(prompt, _pair(answers))
    return list(by_prompt.values())[:NUM_PAIRS]


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
    for kind, i, j, k, m in matcher.get_opcodes():
        for side, words in zip(marked, (left[i:j], right[k:m]), strict=True):
            if words:
                side.append((kind != "equal", "".join(words)))
    return marked
