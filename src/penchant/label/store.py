"""Answers in SQLite, committed as they are given: a kill loses none, several answer at once."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from penchant.data.records import DataError, counted

VERSION = 1
CLAIM_SECONDS = 1800
SCHEMA = (
    "CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    # A row is an item shown to an annotator; without a label it waits for the answer.
    """CREATE TABLE tasks (
        annotator TEXT NOT NULL,
        item INTEGER NOT NULL,
        swapped INTEGER NOT NULL CHECK (swapped IN (0, 1)),
        shown_at REAL NOT NULL,
        label TEXT CHECK (label IN ('a', 'b', 'tie', 'both_bad', 'skip')),
        strength INTEGER CHECK (strength BETWEEN 1 AND 3),
        reason TEXT NOT NULL DEFAULT '',
        seconds REAL,
        PRIMARY KEY (annotator, item)
    ) WITHOUT ROWID""",
)
OPEN_TASK = """SELECT item, swapped, reason FROM tasks
    WHERE annotator = ? AND label IS NULL ORDER BY shown_at DESC LIMIT 1"""
# What one annotator has answered, and what has enough answers of others, given or under way.
TAKEN = """SELECT item FROM tasks WHERE annotator = ? AND label IS NOT NULL UNION
    SELECT item FROM tasks
    WHERE annotator != ? AND (label != 'skip' OR (label IS NULL AND shown_at > ?))
    GROUP BY item HAVING count(*) >= ?"""


@dataclass(frozen=True, slots=True)
class Task:
    """An item in front of an annotator.

    Args:
        item: by number.
        swapped: whether its completion b is on the left.
        reason: of an answer to it that was taken back.
        chosen: left or right, where that is its answer and only the strength is asked; or empty.
    """

    item: int
    swapped: bool
    reason: str = ""
    chosen: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What an annotator said of an item: `label` is a, b, tie, both_bad or skip."""

    item: int
    annotator: str
    label: str
    strength: int | None
    reason: str
    seconds: float
    swapped: bool


class Store:
    """The answers to one file.

    Args:
        path: the database; made when there is none.
        fingerprint: of the pairs that are labelled; a database of others is refused.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path = path
        try:
            # One event loop makes all calls, but a test's client runs it in a thread of its own.
            self._database = sqlite3.connect(
                path, timeout=30, isolation_level=None, check_same_thread=False
            )
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._prepare(fingerprint)
        except sqlite3.Error as error:
            raise DataError(
                f"cannot keep answers in {path}: {error}; it must be a database of penchant "
                "label, or new, in a folder that can be written"
            ) from error

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def _prepare(self, fingerprint: str) -> None:
        with self._transaction() as database:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if not version and not tables:
                for statement in SCHEMA:
                    database.execute(statement)
                database.execute("INSERT INTO about VALUES ('fingerprint', ?)", [fingerprint])
                database.execute(f"PRAGMA user_version = {VERSION}")
                return
            if version != VERSION:
                raise DataError(
                    f"{self.path} is not a database of penchant label in version {VERSION} "
                    f"(it says {version}); move it away, or use the release that wrote it"
                )
            (stored,) = database.execute("SELECT value FROM about").fetchone()
        if stored != fingerprint:
            raise DataError(
                f"the file has changed since {counted(self.num_answers(), 'answer')} to it went "
                f"into {self.path}: its pairs are others, or in another order, or rows are "
                "refused that have part of their prompt in a column beside it; restore the file, "
                "rename such a column, label the changed one under another name, or move the "
                "database away"
            )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield self._database
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def next_task(
        self, annotator: str, num_items: int, overlap: int, swap: Callable[[int], bool]
    ) -> Task | None:
        """Give an annotator the item that waits for them, or else the first one with room.

        Args:
            annotator: by name.
            num_items: how many items the file has.
            overlap: how many annotators answer an item. An item before another annotator counts
                as answered for half an hour.
            swap: says of an item whether its completion b is on the left.

        Returns:
            The item, or None when none is left.
        """
        now = time.time()
        with self._transaction() as database:
            waiting = database.execute(OPEN_TASK, [annotator]).fetchone()
            if waiting:
                item, swapped, reason = waiting
                task = Task(item, bool(swapped), reason)
                database.execute(
                    "UPDATE tasks SET shown_at = ? WHERE annotator = ? AND item = ?",
                    [now, annotator, item],
                )
                return task
            free = next(self._free(annotator, range(num_items), overlap), None)
            if free is None:
                return None
            task = Task(free, swap(free))
            database.execute(
                "INSERT INTO tasks (annotator, item, swapped, shown_at) VALUES (?, ?, ?, ?)",
                [annotator, free, task.swapped, now],
            )
            return task

    def claim(self, annotator: str, items: Iterable[int], overlap: int, at_most: int) -> list[int]:
        """Give an annotator who answers many at a time the first items with room, a on the left.

        What waits for them is among these. Those that they do not answer they `release`.

        Args:
            annotator, overlap: as for `next_task`.
            items: that they want, in their order.
            at_most: how many.
        """
        now = time.time()
        with self._transaction() as database:
            claimed = list(islice(self._free(annotator, items, overlap), at_most))
            database.executemany(
                "INSERT INTO tasks (annotator, item, swapped, shown_at) VALUES (?, ?, 0, ?) "
                "ON CONFLICT (annotator, item) "
                "DO UPDATE SET swapped = 0, shown_at = excluded.shown_at",
                [(annotator, item, now) for item in claimed],
            )
        return claimed

    def release(self, annotator: str, items: Sequence[int]) -> None:
        """Take back items that an annotator was given and has not answered."""
        with self._transaction() as database:
            database.executemany(
                "DELETE FROM tasks WHERE annotator = ? AND item = ? AND label IS NULL",
                [(annotator, item) for item in items],
            )

    def _free(self, annotator: str, items: Iterable[int], overlap: int) -> Iterator[int]:
        """Of these, those that an annotator has not answered and others have left room in."""
        latest = time.time() - CLAIM_SECONDS
        rows = self._database.execute(TAKEN, [annotator, annotator, latest, overlap])
        taken = {item for (item,) in rows}
        return (item for item in items if item not in taken)

    def answer(self, annotator: str, item: int, side: str, reason: str = "") -> bool:
        """Commit an answer to the item that waits for an annotator.

        Args:
            annotator: by name.
            item: the one on their page.
            side: left, right, tie, both_bad or skip.
            reason: in the annotator's words; may be empty.

        Returns:
            False when the item does not wait for them: it was answered from another tab.
        """
        with self._transaction() as database:
            waiting = database.execute(
                "SELECT swapped, shown_at FROM tasks "
                "WHERE annotator = ? AND item = ? AND label IS NULL",
                [annotator, item],
            ).fetchone()
            if waiting is None:
                return False
            swapped, shown_at = waiting
            decided = side in ("left", "right")
            label = ("b" if (side == "left") == bool(swapped) else "a") if decided else side
            database.execute(
                "UPDATE tasks SET label = ?, reason = ?, seconds = ? "
                "WHERE annotator = ? AND item = ?",
                [label, reason, max(0.0, round(time.time() - shown_at, 3)), annotator, item],
            )
        return True

    def unweighed(self, annotator: str, item: int) -> Task | None:
        """The item as an annotator decided it, where the strength is not said yet."""
        row = self._database.execute(
            """SELECT swapped, label FROM tasks WHERE annotator = ? AND item = ?
            AND label IN ('a', 'b') AND strength IS NULL""",
            [annotator, item],
        ).fetchone()
        if row is None:
            return None
        swapped, label = row
        chosen = "left" if (label == "b") == bool(swapped) else "right"
        return Task(item, bool(swapped), chosen=chosen)

    def weigh(self, annotator: str, item: int, chosen: str, strength: int) -> bool:
        """Commit by how much the chosen completion is better to an annotator's decision.

        Args:
            annotator: by name.
            item: the one that was decided.
            chosen: left or right, as it was when the strength was asked.
            strength: 1 to 3.

        Returns:
            False when they did not decide so, or its strength was said already: the decision was
            taken back in another tab, and the item may have another one since.
        """
        with self._transaction() as database:
            decided = self.unweighed(annotator, item)
            if decided is None or decided.chosen != chosen:
                return False
            database.execute(
                "UPDATE tasks SET strength = ? WHERE annotator = ? AND item = ?",
                [strength, annotator, item],
            )
        return True

    def undo(self, annotator: str, item: int) -> bool:
        """Take back an annotator's answer to an item, which waits for them again before others.

        Returns:
            False when there is none.
        """
        with self._transaction() as database:
            done = database.execute(
                "UPDATE tasks SET label = NULL, strength = NULL, seconds = NULL, shown_at = ? "
                "WHERE annotator = ? AND item = ? AND label IS NOT NULL",
                [time.time(), annotator, item],
            )
        return done.rowcount == 1

    def answers(self) -> Iterator[Answer]:
        """Every answer, skips too, in the order of the items and then of the names."""
        rows = self._database.execute(
            "SELECT item, annotator, label, strength, reason, seconds, swapped FROM tasks "
            "WHERE label IS NOT NULL ORDER BY item, annotator"
        )
        for item, annotator, label, strength, reason, seconds, swapped in rows:
            yield Answer(item, annotator, label, strength, reason, seconds, bool(swapped))

    def num_answers(self, annotator: str | None = None) -> int:
        """How many answers there are, of all or of one annotator; skips count."""
        (number,) = self._database.execute(
            "SELECT count(*) FROM tasks WHERE label IS NOT NULL AND ? IN (annotator, '')",
            [annotator or ""],
        ).fetchone()
        return int(number)

    def num_complete(self, overlap: int) -> int:
        """How many items have as many answers as are wanted; skips do not count."""
        (number,) = self._database.execute(
            "SELECT count(*) FROM (SELECT 1 FROM tasks WHERE label != 'skip' "
            "GROUP BY item HAVING count(*) >= ?)",
            [overlap],
        ).fetchone()
        return int(number)

    def num_open(self, annotator: str, num_items: int, overlap: int) -> int:
        """How many items an annotator has not answered and others have left room in.

        Args:
            annotator, num_items, overlap: as for `next_task`; what others look at now is not
                counted as answered.
        """
        (number,) = self._database.execute(
            """SELECT count(*) FROM (SELECT 1 FROM tasks GROUP BY item HAVING
            sum(annotator = ? AND label IS NOT NULL) > 0
            OR sum(annotator != ? AND label IS NOT NULL AND label != 'skip') >= ?)""",
            [annotator, annotator, overlap],
        ).fetchone()
        return num_items - int(number)

    def annotators(self) -> list[str]:
        """Everyone who has answered, by name."""
        rows = self._database.execute(
            "SELECT DISTINCT annotator FROM tasks WHERE label IS NOT NULL ORDER BY annotator"
        )
        return [name for (name,) in rows]
