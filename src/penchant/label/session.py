"""What is labelled and by whom: the pairs of a file, the answers to them, and who may give some."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from penchant.core.commands import typeable
from penchant.core.errors import ConfigError
from penchant.data.opening import Sources, path_names
from penchant.data.records import Data, Pair
from penchant.label.agreement import Agreement, measure_agreement
from penchant.label.reading import read_comparisons
from penchant.label.store import Answer, Store, Task

if TYPE_CHECKING:
    from penchant.data.opening import Source

MAX_NAME = 40
QUESTION = "Which answer is better?"


@dataclass(frozen=True, slots=True)
class Work:
    """What one annotator has done.

    Args:
        annotator: by name.
        labels: how often each label was given.
        left: among the decided answers, the share that chose the left one; None without any.
    """

    annotator: str
    labels: Counter[str]
    left: float | None


@dataclass(frozen=True)
class Session:
    """A file that is being labelled.

    Args:
        data: its pairs; `chosen` is shown as completion a and `rejected` as b.
        store: the answers.
        annotators: the names that may answer; any when empty.
        overlap: how many annotators answer an item.
        seed: of the left and right order.
        question: that is asked of each pair.
        guidelines: as text or Markdown, shown on request; empty for none.
        argument: the file as a command line names it, with how it is read.
        asks_strength: by how much the chosen answer is better, after each choice.
    """

    data: Data[Pair]
    store: Store
    annotators: tuple[str, ...] = ()
    overlap: int = 1
    seed: int = 0
    question: str = QUESTION
    guidelines: str = ""
    argument: str = "FILE"
    asks_strength: bool = True

    @property
    def export_command(self) -> str:
        """What is typed to write the answers into a file."""
        return typeable(f"penchant label {self.argument} --export answers.jsonl")

    def next_task(self, annotator: str) -> Task | None:
        """What to show an annotator, or None when nothing is left for them."""

        def swap(item: int) -> bool:
            return random.Random(f"{self.seed}/{item}/{annotator}").random() < 0.5

        return self.store.next_task(annotator, len(self.data.records), self.overlap, swap)

    def num_open(self, annotator: str) -> int:
        """Pairs that an annotator may still be asked for, whoever answers them first."""
        return self.store.num_open(annotator, len(self.data.records), self.overlap)

    def agreement(self) -> Agreement:
        """How far the annotators agree; skips are no answers."""
        given = (one for one in self.store.answers() if one.label != "skip")
        return measure_agreement(
            [one.label for one in group] for _, group in groupby(given, key=lambda one: one.item)
        )

    def work(self) -> list[Work]:
        """What each annotator has done, by name."""
        answers = sorted(self.store.answers(), key=lambda one: one.annotator)
        by_name = groupby(answers, key=lambda one: one.annotator)
        return [_work(name, list(group)) for name, group in by_name]


def _work(annotator: str, answers: Sequence[Answer]) -> Work:
    left = [(one.label == "b") == one.swapped for one in answers if one.label in ("a", "b")]
    share = sum(left) / len(left) if left else None
    return Work(annotator, Counter(one.label for one in answers), share)


def open_session(
    source: Source,
    *,
    annotators: Sequence[str] = (),
    overlap: int = 1,
    seed: int = 0,
    strict: bool = False,
    question: str = QUESTION,
    guidelines: str = "",
    asks_strength: bool = True,
) -> Session:
    """Read what is to be labelled and open the answers next to it, in FILE.labels.sqlite.

    Raises:
        ConfigError: a name or the overlap is impossible, or the question is empty.
        DataError: the file cannot be read, or it has changed since it was labelled.
    """
    names = tuple(check_name(name) for name in annotators)
    if len(set(names)) < len(names):
        raise ConfigError(f"annotators must differ, got {', '.join(names)}; set annotators")
    if overlap < 1 or (names and overlap > len(names)):
        most = f" and at most {len(names)}, the number of annotators" if names else ""
        raise ConfigError(f"overlap must be at least 1{most}, got {overlap}; set overlap")
    if not question.strip():
        raise ConfigError("the question is empty; set question, or leave it out")
    sources = Sources.of(source)
    database = database_path(sources)
    # Answers lie beside a file: a name is never taken for an id on the hub.
    sources = replace(sources, data=[Path(name) for name in path_names(sources.data)])
    data = read_comparisons(sources, strict=strict)
    store = Store(database, data.fingerprint)
    return Session(
        data,
        store,
        names,
        overlap=overlap,
        seed=seed,
        question=question.strip(),
        guidelines=guidelines,
        argument=sources.argument,
        asks_strength=asks_strength,
    )


def database_path(sources: Sources) -> Path:
    """Where the answers are: beside the first file or folder; its name says of how many."""
    names = path_names(sources.data)
    if not names:
        raise ConfigError("answers are kept beside a file; give a file or a folder to label")
    first = Path(names[0]).expanduser().resolve()
    more = f"+{len(names) - 1}" if names[1:] else ""
    # A pattern would make a name that shells expand.
    stem = re.sub(r"[*?\[\]]", "_", first.name)
    return first.with_name(f"{stem}{more}.labels.sqlite")


def check_name(name: str) -> str:
    """Return an annotator's name without spaces around it.

    Raises:
        ConfigError: it is empty, long, or has characters that cannot be seen.
    """
    stripped = name.strip()
    if not stripped or len(stripped) > MAX_NAME or not stripped.isprintable():
        raise ConfigError(
            f"an annotator's name must have 1 to {MAX_NAME} printable characters, "
            f"got {name[: MAX_NAME + 1]!r}"
        )
    return stripped
