"""Ask a model behind an OpenAI-compatible endpoint: many at a time, again after failures, cached.

Nothing that was answered is asked again: answers are kept on disk as they come, by the content of
the request, so that a run that was killed goes on where it stood.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from penchant.core.errors import ConfigError
from penchant.core.http import HttpError, JsonClient
from penchant.core.screen import track

logger = logging.getLogger("penchant")

T = TypeVar("T")
Messages = Sequence[Mapping[str, str]]

LONGEST_PAUSE = 30.0
EXCERPT = 200


@dataclass(frozen=True, kw_only=True)
class EndpointSettings:
    """Where a model answers and how it is asked.

    Attributes:
        url: of the API, such as `http://127.0.0.1:8000/v1`.
        model: None for the only one that is served there.
        api_key_env: the environment variable that holds the key; the key itself is in no file.
        concurrency: requests under way at a time.
        retries: further tries after one that failed.
        timeout: seconds of a try.
        temperature, max_tokens: of the answers.
        cache: a file of answers, made where there is none; None: they are kept in memory.
        price_input, price_output: per million tokens, in any currency.
        extra_body: more fields of each request, as the server takes them.
    """

    url: str
    model: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: int = 8
    retries: int = 5
    timeout: float = 60.0
    temperature: float = 0.0
    max_tokens: int = 512
    cache: Path | None = None
    price_input: float = 0.0
    price_output: float = 0.0
    extra_body: Mapping[str, Any] = field(default_factory=dict)


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
        text += f"{self.failed} failed; {self.input_tokens + self.output_tokens} tokens"
        return text + (f", cost {self.cost:.4g}" if self.cost else "")


@dataclass(frozen=True)
class Reply(Generic[T]):
    """What came of one request: a value, or why there is none."""

    value: T | None
    reason: str = ""


class _UnusableError(Exception):
    """A try that may go better the next time; `pause` where the server names one, in seconds."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


class Endpoint:
    """A model that answers over HTTP.

    Args:
        settings: where and how.

    Raises:
        ConfigError: the url is none, it cannot be reached, refuses the key, or serves several
            models and none is named.
    """

    def __init__(self, settings: EndpointSettings) -> None:
        if not settings.url.startswith(("http://", "https://")):
            raise ConfigError(
                f"{settings.url!r} is no address of an API; write it as http://host:port/v1"
            )
        self.settings, self.usage = settings, Usage()
        key = os.environ.get(settings.api_key_env)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = JsonClient(settings.url, settings.timeout, headers)
        self._cache = _Cache(settings.cache)
        self._lock = threading.Lock()
        self.model = settings.model or self._only_model()

    def ask(self, requests: Sequence[Messages], read: Callable[[str], T | None]) -> list[Reply[T]]:
        """Answers to chats, in their order; equal chats are asked once.

        Args:
            requests: messages with `role` and `content` each.
            read: an answer's text to its value; None where it holds none, which is asked again.

        Raises:
            ConfigError: the endpoint refuses every request of this kind, as for a wrong key.
        """
        bodies = [self._body(messages) for messages in requests]
        keys = [_key(body) for body in bodies]
        pending = dict(zip(keys, bodies, strict=True))

        def answer(item: tuple[str, dict[str, Any]]) -> tuple[str, Reply[T]]:
            return item[0], self._answer(*item, read)

        with ThreadPoolExecutor(self.settings.concurrency) as pool:
            try:
                done = pool.map(answer, pending.items())
                replies = dict(track(done, "judging", total=len(pending)))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return [replies[key] for key in keys]

    def close(self) -> None:
        """Let go of the cache's file."""
        self._cache.close()

    def _body(self, messages: Messages) -> dict[str, Any]:
        settings = self.settings
        return {
            "model": self.model,
            "messages": [dict(message) for message in messages],
            "temperature": settings.temperature,
            "max_tokens": settings.max_tokens,
            **settings.extra_body,
        }

    def _answer(self, key: str, body: dict[str, Any], read: Callable[[str], T | None]) -> Reply[T]:
        known = self._cache.get(key)
        if known is not None and (value := read(known)) is not None:
            self._count(cached=1)
            return Reply(value)
        reason = ""
        for number in range(self.settings.retries + 1):
            self._count(asked=1, retried=int(number > 0))
            try:
                text = self._try(body)
                value = read(text)
                if value is None:
                    raise _UnusableError(
                        f"its answer holds no verdict: {text.strip()[-EXCERPT:]!r}"
                    )
            except _UnusableError as error:
                reason = str(error)
                if number < self.settings.retries:
                    time.sleep(_pause(number, error.pause))
                continue
            self._cache.put(key, text)
            return Reply(value)
        self._count(failed=1)
        return Reply(None, reason)

    def _try(self, body: dict[str, Any]) -> str:
        """The text of one answer.

        Raises:
            _UnusableError: worth another try.
            ConfigError: not worth one.
        """
        content = self._send(lambda: self._client.post("/chat/completions", body))
        try:
            text = content["choices"][0]["message"]["content"]
        except (LookupError, TypeError):
            raise _UnusableError(f"it sent no chat completion: {_excerpt(content)}") from None
        if not isinstance(text, str):
            raise _UnusableError(f"its message has no text: {_excerpt(content)}")
        used = content.get("usage") or {}
        read, written = used.get("prompt_tokens") or 0, used.get("completion_tokens") or 0
        cost = read * self.settings.price_input + written * self.settings.price_output
        self._count(input_tokens=read, output_tokens=written, cost=cost / 1e6)
        return text

    def _send(self, request: Callable[[], Any]) -> Any:
        try:
            return request()
        except HttpError as error:
            if error.passing:
                raise _UnusableError(str(error), error.retry_after) from None
            remedy = f"set the environment variable {self.settings.api_key_env}"
            refused = f"; {remedy}" if error.status in (401, 403) else ""
            raise ConfigError(f"{error}{refused}") from None

    def _only_model(self) -> str:
        try:
            content = self._send(lambda: self._client.get("/models"))
            names = [str(model["id"]) for model in content["data"]]
        except _UnusableError as error:
            raise ConfigError(
                f"no model answers at {self.settings.url} ({error}); start it, or correct the url"
            ) from None
        except (LookupError, TypeError):
            raise ConfigError(f"{self.settings.url}/models lists no models; set model") from None
        if len(names) != 1:
            raise ConfigError(
                f"{self.settings.url} serves {', '.join(names) or 'nothing'}; set model to one"
            )
        return names[0]

    def _count(self, **amounts: float) -> None:
        with self._lock:
            for name, amount in amounts.items():
                setattr(self.usage, name, getattr(self.usage, name) + amount)


class _Cache:
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
        with self._lock:
            row = self._database.execute("SELECT text FROM answers WHERE key = ?", [key]).fetchone()
        return None if row is None else str(row[0])

    def put(self, key: str, text: str) -> None:
        with self._lock:
            self._database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", [key, text])

    def close(self) -> None:
        with self._lock:
            self._database.close()


def _key(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _pause(number: int, named: float | None) -> float:
    """Seconds before the next try: twice as long each time, not all at once."""
    if named is not None:
        return min(named, LONGEST_PAUSE)
    return min(0.5 * 2**number, LONGEST_PAUSE) * (0.5 + random.random() / 2)


def _excerpt(content: Any) -> str:
    text = " ".join(str(content).split())
    return text if len(text) <= EXCERPT else f"{text[:EXCERPT]}..."
