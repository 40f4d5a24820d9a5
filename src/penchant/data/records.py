"""The canonical preference pair, and what reading a source of pairs yields."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypedDict

from typing_extensions import TypeIs

from penchant.errors import UserError

NUM_EXAMPLES = 3


class DataError(UserError):
    """The user's data is at fault, and the message says where and how to fix it."""


class Message(TypedDict):
    """One turn of a chat."""

    role: str
    content: str


Messages = tuple[Message, ...]
Text = str | Messages


@dataclass(frozen=True, slots=True)
class Pair:
    """One preference: `chosen` was preferred to `rejected` as a continuation of `prompt`.

    Either all three are strings or all three are tuples of messages. A chat completion is
    normally one assistant message; it starts and ends with one.

    Args:
        prompt: what both completions continue.
        chosen: the preferred completion, without the prompt.
        rejected: the other completion, without the prompt.
        where: the file and 1-based line or row, such as `pairs.jsonl:17`.
    """

    prompt: Text
    chosen: Text
    rejected: Text
    where: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row that was not used.

    Args:
        where: the file and 1-based line or row.
        reason: a short stable phrase, by which refusals are counted.
        detail: the field and value at fault, and the fix where there is one.
    """

    where: str
    reason: str
    detail: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}: {self.detail}"


@dataclass(frozen=True)
class PairData:
    """The pairs of one source, with everything that was left out of them.

    Args:
        pairs: the usable pairs, in the order of the source.
        refused: one entry for each row that was not usable.
        ties: rows labelled a tie, which hold no preference.
        layout: the name of the layout that the rows are in.
        source: what was read, as the user named it.
        fingerprint: hex digest of the pairs' content and order, not of their `where`.
    """

    pairs: list[Pair]
    refused: list[Refusal]
    ties: int
    layout: str
    source: str
    fingerprint: str

    def summary(self) -> str:
        """Say in a few lines what was read and what was left out, and why."""
        first = f"read {counted(len(self.pairs), 'pair')} from {self.source}, layout: {self.layout}"
        if self.ties:
            first += f"; {counted(self.ties, 'tie')} left out"
        if not self.refused:
            return first
        refused = counted(len(self.refused), "row")
        return f"{first}; {refused} refused\n{describe_refusals(self.refused)}"


def counted(number: int, noun: str) -> str:
    """Write a number with its noun, in the singular or plural: "1 tie", "2 ties"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def is_chat(text: Text) -> TypeIs[Messages]:
    """Whether a text is messages rather than a plain string."""
    return not isinstance(text, str)


def describe_refusals(refused: Iterable[Refusal]) -> str:
    """Count refusals by reason, most frequent first, with a few examples of each."""
    by_reason: dict[str, list[Refusal]] = defaultdict(list)
    for refusal in refused:
        by_reason[refusal.reason].append(refusal)
    lines = []
    for reason, group in sorted(by_reason.items(), key=lambda item: -len(item[1])):
        lines.append(f"  {len(group)} refused: {reason}")
        lines += [f"    {one.where}: {one.detail}" for one in group[:NUM_EXAMPLES]]
        if len(group) > NUM_EXAMPLES:
            lines.append(f"    and {len(group) - NUM_EXAMPLES} more")
    return "\n".join(lines)


def prompt_key(pair: Pair) -> str:
    """Return the prompt as canonical JSON: equal prompts, and only those, have equal keys."""
    return _canonical(pair.prompt)


def fingerprint(pairs: Iterable[Pair]) -> str:
    """Return a hex digest of the content and order of pairs.

    Args:
        pairs: the pairs; their `where` is left out, so that a renamed file keeps its digest.

    Returns:
        32 hexadecimal digits (BLAKE2b).
    """
    digest = hashlib.blake2b(digest_size=16)
    for pair in pairs:
        digest.update(_canonical([pair.prompt, pair.chosen, pair.rejected]).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
