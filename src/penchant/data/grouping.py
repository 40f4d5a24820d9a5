"""Bring together values that share a key, on disk: memory does not grow with their number."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import groupby
from operator import itemgetter

from penchant.core.screen import track

SCHEMA = """
pragma journal_mode = off;
pragma synchronous = off;
create table groups (key blob primary key, number integer) without rowid;
create table entries (number integer, value text);
"""


def digest(key: object) -> bytes:
    """16 bytes that stand for a JSON value: equal values have equal ones."""
    text = json.dumps(key, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def grouped(entries: Iterable[tuple[object, object]]) -> Iterator[list[object]]:
    """Group values by key.

    Args:
        entries: keys with their values; both as JSON has them (tuples come back as lists).

    Returns:
        The values of each key, in their order; the keys by first occurrence.
    """
    # The empty name is a private file, which SQLite deletes when it is closed.
    with closing(sqlite3.connect("")) as database:
        database.executescript(SCHEMA)
        database.executemany("insert into entries values (?, ?)", _numbered(database, entries))
        database.execute("create index by_group on entries (number)")
        (num_entries,) = database.execute("select count(*) from entries").fetchone()
        rows = database.execute("select number, value from entries order by number, rowid")
        shown = track(rows, "bringing together", num_entries)
        for _, group in groupby(shown, key=itemgetter(0)):
            yield [json.loads(value) for _, value in group]


def _numbered(
    database: sqlite3.Connection, entries: Iterable[tuple[object, object]]
) -> Iterator[tuple[int, str]]:
    """Give each entry the number of its group."""
    number = 0
    for key, value in entries:
        name = digest(key)
        row = database.execute("select number from groups where key = ?", (name,)).fetchone()
        if row is None:
            row = (number,)
            database.execute("insert into groups values (?, ?)", (name, number))
            number += 1
        yield row[0], json.dumps(value, default=str)
