"""The canonical records, pairs and labels, and what reading a source of them yields."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Generic, Literal, Protocol, TypedDict, TypeVar

from typing_extensions import NotRequired, TypeIs

from penchant.core.errors import UserError

MAX_FILES = 20


class DataError(UserError):
    """The user's data is at fault, and the message says where and how to fix it."""


class SplitError(DataError):
    """A source has several splits, and not the one that was asked for.

    Attributes:
        names: of those that it has.
    """

    def __init__(self, what: str, names: Iterable[object]) -> None:
        super().__init__(what)
        self.names = [str(name) for name in names if name]


# What a message may call the thoughts before its content.
REASONING: tuple[Literal["reasoning_content", "reasoning", "thinking"], ...] = (
    "reasoning_content",
    "reasoning",
    "thinking",
)


class Message(TypedDict):
    """One turn of a chat, with what else the chat template is given of it.

    Attributes:
        reasoning_content, reasoning, thinking: what was thought before the content, by the name
            that the data use.
        tool_calls: functions that the assistant calls, as `{"function": {"name": ...}}`.
        name, tool_call_id: of the function that a tool message answers for.
        tools: the functions on offer; only the first message of a prompt has them.
        chat_template_kwargs: options of the template, such as `enable_thinking`; likewise.
    """

    role: str
    content: str
    reasoning_content: NotRequired[str]
    reasoning: NotRequired[str]
    thinking: NotRequired[str]
    tool_calls: NotRequired[list[dict[str, Any]]]
    name: NotRequired[str]
    tool_call_id: NotRequired[str]
    tools: NotRequired[list[dict[str, Any]]]
    chat_template_kwargs: NotRequired[dict[str, Any]]


Messages = tuple[Message, ...]
Text = str | Messages


class Record(Protocol):
    """What a pair, a label and a prompt have in common."""

    noun: ClassVar[str]

    @property
    def prompt(self) -> Text:
        """What the completions continue."""

    @property
    def where(self) -> str:
        """The file and 1-based line or row."""

    def content(self) -> list[object]:
        """What makes the record what it is, as JSON: all but `where`."""


R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class Label:
    """One judged completion: `completion` was found good or bad as a continuation of `prompt`.

    Prompt and completion are both strings, or both tuples of messages, like those of a `Pair`.

    Args:
        prompt: what the completion continues.
        completion: the completion, without the prompt.
        desirable: whether more like it is wanted.
        where: the file and 1-based line or row, such as `labels.jsonl:17`.
    """

    noun: ClassVar[str] = "label"
    prompt: Text
    completion: Text
    desirable: bool
    where: str

    def content(self) -> list[object]:
        """What makes the label what it is, as JSON: all but `where`."""
        return [self.prompt, self.completion, self.desirable]


@dataclass(frozen=True, slots=True)
class Pair:
    """One preference: `chosen` was preferred to `rejected` as a continuation of `prompt`.

    Either all three are strings or all three are tuples of messages. A chat completion is
    normally one assistant message; with several turns it starts and ends with one.

    Args:
        prompt: what both completions continue.
        chosen: the preferred completion, without the prompt.
        rejected: the other completion, without the prompt.
        where: the file and 1-based line or row, such as `pairs.jsonl:17`.
        margin: by how much chosen was found better, at least 0, where that is known.
        agreement: the share of several votes that agrees with the preference, where that is
            known.
    """

    noun: ClassVar[str] = "pair"
    prompt: Text
    chosen: Text
    rejected: Text
    where: str
    margin: float | None = None
    agreement: float | None = None

    def content(self) -> list[object]:
        """What makes the pair what it is, as JSON: all but `where`, and what is not known."""
        strength = {"margin": self.margin, "agreement": self.agreement}
        known = {name: value for name, value in strength.items() if value is not None}
        return [self.prompt, self.chosen, self.rejected, *([known] if known else [])]

    def labels(self) -> tuple[Label, Label]:
        """The pair as two judged completions, the desirable one first."""
        return (
            Label(self.prompt, self.chosen, True, self.where),
            Label(self.prompt, self.rejected, False, self.where),
        )


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
class Data(Generic[R]):
    """The records of one source, with everything that was left out of them.

    Args:
        records: the usable ones, at least one, in the order of the source.
        refused: one entry for each row that was not usable.
        layouts: the names of the layouts that the rows are in, one for most sources.
        source: what was read, as the user named it.
        ties: rows labelled a tie, which hold no preference.
        repeated: rows of pairs or labels read for their prompts, whose prompt an earlier row gave.
    """

    records: list[R]
    refused: list[Refusal]
    layouts: tuple[str, ...]
    source: str
    ties: int = 0
    repeated: int = 0

    @property
    def layout(self) -> str:
        """The layouts in words."""
        return " and ".join(self.layouts)

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of the records' content and order, not of their `where`."""
        return fingerprint(self.records)

    def summary(self) -> str:
        """Say in a few lines what was read and what was left out, and why."""
        what = counted(len(self.records), self.records[0].noun)
        if judged := [record.desirable for record in self.records if isinstance(record, Label)]:
            good = sum(judged)
            what += f" ({good} desirable, {len(judged) - good} undesirable)"
        text = f"read {what} from {self.source}, layout: {self.layout}"
        if self.ties:
            text += f"; {counted(self.ties, 'tie')} left out"
        if self.repeated:
            text += f"; {counted(self.repeated, 'row')} with a prompt read before left out"
        text += self._by_file()
        if not self.refused:
            return text
        from penchant.data.tally import describe_refusals

        refused = counted(len(self.refused), "row")
        return f"{text}; {refused} refused\n{describe_refusals(self.refused)}"

    def _by_file(self) -> str:
        """How many records each file gave, in the order of reading; nothing for one file."""
        places = [*(one.where for one in self.records), *(one.where for one in self.refused)]
        counts = dict.fromkeys(map(file_of, places))
        by_file = Counter(file_of(record.where) for record in self.records)
        if len(counts) < 2:
            return ""
        shown = [f"{file} {by_file[file]}" for file in list(counts)[:MAX_FILES]]
        more = f" and {len(counts) - MAX_FILES} more files" if len(counts) > MAX_FILES else ""
        return f"; by file: {', '.join(shown)}{more}"


def file_of(where: str) -> str:
    """The file of a place such as `pairs.jsonl:17`."""
    return where.rpartition(":")[0]


def counted(number: int, noun: str) -> str:
    """Write a number with its noun, in the singular or plural: "1 tie", "2 ties"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def is_chat(text: Text) -> TypeIs[Messages]:
    """Whether a text is messages rather than a plain string."""
    return not isinstance(text, str)


def prompt_key(record: Record) -> str:
    """Return the prompt as canonical JSON: equal prompts, and only those, have equal keys."""
    return canonical(record.prompt)


def fingerprint(records: Iterable[Record]) -> str:
    """Return a hex digest of the content and order of records.

    Args:
        records: pairs or labels; their `where` is left out, so that a renamed file keeps its
            digest.

    Returns:
        32 hexadecimal digits (BLAKE2b).
    """
    digest = hashlib.blake2b(digest_size=16)
    for record in records:
        digest.update(canonical(record.content()).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def canonical(value: object) -> str:
    """A text as JSON: equal texts, and only those, have equal ones."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
