"""Answers as rows that `penchant data build` takes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from penchant.core.atomic import write_atomically
from penchant.core.commands import typeable
from penchant.data.opening import Sources
from penchant.data.records import DataError, Pair, counted
from penchant.data.rows.messages import plain
from penchant.label.agreement import Agreement
from penchant.label.session import database_path, open_session
from penchant.label.store import Answer


@dataclass(frozen=True)
class Export:
    """What was written."""

    rows: int
    items: int
    skipped: int
    agreement: Agreement
    output: Path

    def summary(self) -> str:
        """Say in a few lines what was written and what was left out."""
        skipped = f"; {counted(self.skipped, 'skip')} left out" if self.skipped else ""
        return (
            f"wrote {counted(self.rows, 'answer')} to {counted(self.items, 'item')} "
            f"to {self.output}{skipped}\nagreement: {self.agreement}\nnext: "
            + typeable(f"penchant data build {quote(str(self.output))} --output train.jsonl")
        )


def export_answers(
    file: str | Path | Sequence[str | Path],
    output: Path,
    *,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    strict: bool = False,
) -> Export:
    """Write the answers to a file, one row an answer, skips left out.

    Args:
        file: what was labelled; it need not be served at the time, but may be.
        output: a new `.jsonl` file; it is there whole or not at all.
        split, columns: as they were for labelling.
        strict: any refused row of the file is an error.

    Returns:
        What was written. A row has prompt, completion_a, completion_b, label (a, b, tie or
        both_bad), annotator, strength (1 to 3 or null), reason, seconds and where.

    Raises:
        DataError: there are no answers, the file has changed, or `output` cannot be written.
    """
    _require_new(output)
    sources = Sources.of(file, split, columns)
    if not (database := database_path(sources)).exists():
        raise DataError(f"{sources.name} has no answers, {database} does not exist; label it first")
    session = open_session(sources, strict=strict)
    answers = list(session.store.answers())
    kept = [one for one in answers if one.label != "skip"]
    if not kept:
        raise DataError(
            f"{session.store.path} holds no answers but skips; label {sources.name} first"
        )
    try:
        write_atomically(output, _text(session.data.records, kept), new=True)
    except OSError as error:
        raise DataError(f"cannot write {output}: {error.strerror}; set output") from error
    skipped = len(answers) - len(kept)
    items = len({one.item for one in kept})
    done = Export(len(kept), items, skipped, session.agreement(), output)
    session.store.close()
    return done


def _require_new(output: Path) -> None:
    if output.suffix != ".jsonl":
        raise DataError(f"{output} is written as JSON Lines; give export a name in .jsonl")
    if output.exists():
        raise DataError(f"{output} exists and is not overwritten; give export another name")


def _text(pairs: Sequence[Pair], answers: Sequence[Answer]) -> str:
    rows = (_row(pairs[one.item], one) for one in answers)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _row(pair: Pair, answer: Answer) -> dict[str, object]:
    return {
        "prompt": plain(pair.prompt),
        "completion_a": plain(pair.chosen),
        "completion_b": plain(pair.rejected),
        "label": answer.label,
        "annotator": answer.annotator,
        "strength": answer.strength,
        "reason": answer.reason,
        "seconds": answer.seconds,
        "where": pair.where,
    }
