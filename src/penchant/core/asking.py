"""Ask a service over HTTP: many requests at a time, again after failures, answers kept on disk."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import logging
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from penchant.core.errors import ConfigError
from penchant.core.http import HttpError, JsonClient
from penchant.core.screen import track

logger = logging.getLogger("penchant")

T = TypeVar("T")
Item = TypeVar("Item")

# A request that cannot be read, is too large, or cannot be served: another one may be.
REFUSED = frozenset({400, 413, 422})
LONGEST_PAUSE = 30.0
EXCERPT = 200


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """Where a service answers and how it is asked.

    Attributes:
        url: such as `http://127.0.0.1:8000/v1`.
        api_key_env: the environment variable that holds the key; the key itself is in no file.
        concurrency: requests under way at a time.
        retries: further tries after one that failed.
        timeout: seconds of a try.
        cache: a file of answers, made where there is none; None: they are kept in memory.
    """

    url: str
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: int = 8
    retries: int = 5
    timeout: float = 60.0
    cache: Path | None = None


@dataclass
class Usage:
    """What was asked so far, and what it cost in the currency of the prices."""

    asked: int = 0
    cached: int = 0
    retried: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0

    def __str__(self) -> str:
        text = f"{self.asked} asked, {self.cached} known before, {self.retried} tried again, "
        text += f"{self.failed} failed"
        if tokens := self.input_tokens + self.output_tokens:
            text += f"; {tokens} tokens"
        return text + (f", cost {self.cost:.4g}" if self.cost else "")


@dataclass(frozen=True)
class Reply(Generic[T]):
    """What came of one request: a value, or why there is none."""

    value: T | None
    reason: str = ""


class UnusableError(Exception):
    """A try without a usable answer.

    Attributes:
        pause: seconds before the next try, where the server names them.
        final: the same request would be refused again.
    """

    def __init__(self, reason: str, pause: float | None = None, *, final: bool = False) -> None:
        super().__init__(reason)
        self.pause, self.final = pause, final


class Service:
    """A service that answers over HTTP.

    Args:
        settings: where and how.

    Attributes:
        usage: what was asked of it so far.
        cache: answers by the hash of their request.

    Raises:
        ConfigError: the url is none, or the cache cannot be opened.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        if not settings.url.startswith(("http://", "https://")):
            raise ConfigError(
                f"{settings.url!r} is no address of an API; write it as http://host:port/v1"
            )
        self.settings, self.usage = settings, Usage()
        key = os.environ.get(settings.api_key_env)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = JsonClient(settings.url, settings.timeout, headers)
        self.cache = Cache(settings.cache)
        self._lock = threading.Lock()

    def get(self, path: str) -> Any:
        """What is at a path.

        Raises:
            UnusableError: this request failed.
            ConfigError: every request would fail, as for a wrong key.
        """
        return self._send(lambda: self._client.get(path))

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """What the service answers; errors as of `get`."""
        return self._send(lambda: self._client.post(path, body))

    def try_again(self, attempt: Callable[[], T], retries: int | None = None) -> Reply[T]:
        """What an attempt returns, which is made again while another try may go better.

        Args:
            attempt: raises `UnusableError` where it has no answer.
            retries: further tries; default: those of the settings.
        """
        reason, retries = "", self.settings.retries if retries is None else retries
        for number in range(retries + 1):
            self.count(asked=1, retried=int(number > 0))
            try:
                return Reply(attempt())
            except UnusableError as error:
                reason = str(error)
                if error.final:
                    break
                if number < retries:
                    time.sleep(_pause(number, error.pause))
        return Reply(None, reason)

    def side_by_side(
        self, work: Callable[[Item], T], items: Sequence[Item], description: str
    ) -> Iterator[T]:
        """What `work` makes of each item, in their order, as many at a time as are allowed."""
        with ThreadPoolExecutor(self.settings.concurrency) as pool:
            try:
                yield from track(pool.map(work, items), description, total=len(items))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def count(self, **amounts: float) -> None:
        """Add to what was asked."""
        with self._lock:
            for name, amount in amounts.items():
                setattr(self.usage, name, getattr(self.usage, name) + amount)

    def close(self) -> None:
        """Let go of the cache's file."""
        self.cache.close()

    def _send(self, request: Callable[[], Any]) -> Any:
        try:
            return request()
        except HttpError as error:
            if error.passing or error.status in REFUSED:
                final = not error.passing
                raise UnusableError(str(error), error.retry_after, final=final) from None
            remedy = f"set the environment variable {self.settings.api_key_env}"
            refused = f"; {remedy}" if error.status in (401, 403) else ""
            raise ConfigError(f"{error}{refused}") from None


class Cache:
    """Answers by the hash of their request, each committed as it comes."""

    def __init__(self, file: Path | None) -> None:
        self._lock = threading.Lock()
        try:
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(
                file or ":memory:", timeout=30, isolation_level=None, check_same_thread=False
            )
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, text TEXT NOT NULL)"
            )
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(
                f"answers cannot be kept in {file}: {error}; name a new file, in a folder that "
                "can be written"
            ) from None

    def get(self, key: str) -> str | None:
        """The text of an answer; None where it is not known."""
        with self._lock:
            row = self._database.execute("SELECT text FROM answers WHERE key = ?", [key]).fetchone()
        return None if row is None else str(row[0])

    def put(self, key: str, text: str) -> None:
        """Keep an answer; it is on the disk when this returns."""
        with self._lock:
            self._database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", [key, text])

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._database.close()


def request_key(body: Mapping[str, Any]) -> str:
    """The hash of a request, by which its answer is kept."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def excerpt(content: Any) -> str:
    """What a service sent, on one short line."""
    text = " ".join(str(content).split())
    return text if len(text) <= EXCERPT else f"{text[:EXCERPT]}..."


def warn_of_leaving(url: str, what: str) -> None:
    """Say which data leave this machine, where the address is not of this machine.

    Args:
        url: of the service.
        what: is sent there.
    """
    host = urlsplit(url).hostname or ""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local:
        logger.warning(
            "%s of your data are sent to %s, which is not this machine: make sure that they may "
            "be%s", what, host, "" if url.startswith("https://") else "; http:// sends them "
            "readable to everybody on the way",
        )  # fmt: skip


def _pause(number: int, named: float | None) -> float:
    """Seconds before the next try: twice as long each time, not all at once."""
    if named is not None:
        return min(named, LONGEST_PAUSE)
    return min(0.5 * 2**number, LONGEST_PAUSE) * (0.5 + random.random() / 2)
