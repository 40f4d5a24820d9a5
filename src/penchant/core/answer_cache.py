"""Answers of services by the hash of their request, in a file of SQLite or in memory."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from penchant.core.errors import ConfigError


class AnswerCache:
    """Answers by the hash of their request, each committed as it comes."""

    def __init__(self, file: Path | None) -> None:
        self.file, self._lock = file, threading.Lock()
        with self._explained():
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(
                file or ":memory:", timeout=30, isolation_level=None, check_same_thread=False
            )
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, text TEXT NOT NULL)"
            )

    def get(self, key: str) -> str | None:
        """The text of an answer; None where it is not known."""
        with self._explained():
            row = self._database.execute("SELECT text FROM answers WHERE key = ?", [key]).fetchone()
        return None if row is None else str(row[0])

    def holds_any(self) -> bool:
        """Whether any answer is known."""
        with self._explained():
            return self._database.execute("SELECT 1 FROM answers LIMIT 1").fetchone() is not None

    def put(self, key: str, text: str) -> None:
        """Keep an answer; it is on the disk when this returns."""
        readable = text.encode(errors="replace").decode()  # half a character cannot be kept
        with self._explained():
            self._database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", [key, readable])

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """One thread at a time; what fails says what to do."""
        try:
            with self._lock:
                yield
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(
                f"answers cannot be kept in {self.file}: {error}; name a new file, in a folder "
                "that can be written"
            ) from None

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._database.close()


def request_key(body: Mapping[str, Any]) -> str:
    """The hash of a request, by which its answer is kept."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
