"""Ask a service over HTTP: many requests at a time, again after failures, answers kept on disk."""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from penchant.core.address import require_address
from penchant.core.answer_cache import AnswerCache
from penchant.core.errors import ConfigError
from penchant.core.http import HttpError, JsonClient, bearer
from penchant.core.screen import track

logger = logging.getLogger("penchant")

T = TypeVar("T")
Item = TypeVar("Item")

# A request that cannot be read, is too large, or cannot be served: another one may be.
REFUSED = frozenset({400, 413, 422})
# A wrong key, or one that is refused this model. A provider that moderates prompts answers 403 too.
UNAUTHORISED, FORBIDDEN = 401, 403
MODERATED = re.compile(r"moderat|flagged|content.{0,3}(filter|policy)", re.IGNORECASE)
# Not there, or not to be had in this way.
ABSENT = frozenset({404, 405, 501})
# So many 403 in a row that say nothing of moderation are of the key, not of as many prompts: one
# prompt that is refused may come back with all of its answers, and so may its neighbours.
FORBIDDEN_IN_ROW = 256
# Looks at what a service offers, and the seconds of each: no model thinks for them.
LOOKS, LOOK_SECONDS = 3, 60.0
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
        timeout: seconds of a try; up to twice as many where an answer begins and then stalls.
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
    """What was asked so far, and what it cost in the currency of the prices.

    Attributes:
        asked: tries, of which `retried` are not the first of their request.
        cached: answers that were known before.
        failed: requests without a usable answer after all tries.
        refused: tries that the service would not take, or whose answer it or its model withheld.
        input_tokens, output_tokens: as the service counts them, in answers without use too.
        compared: two answers that were shown in both orders, of which the verdict on `contradicted`
            followed the order.
    """

    asked: int = 0
    cached: int = 0
    retried: int = 0
    failed: int = 0
    refused: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    compared: int = 0
    contradicted: int = 0

    def __str__(self) -> str:
        text = f"{self.asked} asked, {self.cached} known before, {self.retried} tried again, "
        text += f"{self.failed} failed, {self.refused} refused"
        if tokens := self.input_tokens + self.output_tokens:
            text += f"; {tokens} tokens"
        text += f", cost {self.cost:.4g}" if self.cost else ""
        if self.compared:
            text += f"; {self.compared} compared, {self.contradicted} by their order alone"
        return text

    def __add__(self, other: Usage) -> Usage:
        """What both asked."""
        return Usage(**{name: own + getattr(other, name) for name, own in vars(self).items()})

    def __sub__(self, other: Usage) -> Usage:
        """What was asked after `other`."""
        return Usage(**{name: own - getattr(other, name) for name, own in vars(self).items()})


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
        answered: whether a server is there at all.
    """

    def __init__(
        self,
        reason: str,
        pause: float | None = None,
        *,
        final: bool = False,
        answered: bool = True,
    ) -> None:
        super().__init__(reason)
        self.pause, self.final, self.answered = pause, final, answered


class Service:
    """A service that answers over HTTP.

    Args:
        settings: where and how.

    Attributes:
        usage: what was asked of it so far.
        cache: answers by the hash of their request.

    Raises:
        ConfigError: the url is none or may hold a secret, what should be the key cannot be one,
            or the cache cannot be opened.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        require_address(settings.url, settings.api_key_env)
        self.settings, self.usage = settings, Usage()
        self._client = JsonClient(settings.url, settings.timeout, bearer(settings.api_key_env))
        self.cache = AnswerCache(settings.cache)
        self._lock = threading.Lock()
        self._ended = threading.Event()  # no request is tried again after one that ends them all
        self._answered = False
        self._forbidden = 0  # 403 in a row that say nothing of moderation

    def get(self, path: str) -> Any:
        """What is at a path; None where nothing is. It is tried again, and counted nowhere.

        Raises:
            UnusableError: this request failed.
            ConfigError: every request would fail, as for a wrong key.
        """
        for number in range(LOOKS):
            try:
                return self._client.get(path, min(self.settings.timeout, LOOK_SECONDS))
            except HttpError as error:
                if error.status in ABSENT:
                    return None
                failed = error
            if not failed.passing or number == LOOKS - 1:
                break
            time.sleep(_pause(number, failed.retry_after))
        raise self._failure(failed)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """What the service answers; errors as of `get`."""
        try:
            answer = self._client.post(path, body)
        except HttpError as error:
            failure = self._failure(error)
            if isinstance(failure, UnusableError):
                self.count(refused=int(failure.final))
            raise failure from None
        with self._lock:
            self._answered, self._forbidden = True, 0
        return answer

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
                if error.final or number == retries:
                    break
                if self._ended.wait(_pause(number, error.pause)):
                    break
        return Reply(None, reason)

    def side_by_side(
        self, work: Callable[[Item], T], items: Sequence[Item], description: str
    ) -> Iterator[T]:
        """What `work` makes of each item, in their order, as many at a time as are allowed."""
        self._ended.clear()

        def work_on(item: Item) -> T:
            try:
                return work(item)
            except BaseException:
                self._ended.set()  # now: what it raises is seen after the items before it
                raise

        with ThreadPoolExecutor(self.settings.concurrency) as pool:
            try:
                yield from track(pool.map(work_on, items), description, total=len(items))
            except BaseException:
                self._ended.set()
                logger.info("waiting for the answers that %s still owes", self.settings.url)
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

    def _failure(self, error: HttpError) -> UnusableError | ConfigError:
        """What a request that failed means for it, or for all others too."""
        if error.passing:
            answered = error.status is not None
            return UnusableError(str(error), error.retry_after, answered=answered)
        if error.status in REFUSED or (error.status == FORBIDDEN and self._is_of_prompt(error)):
            return UnusableError(str(error), final=True)
        remedy = f"set the environment variable {self.settings.api_key_env}"
        refused = f"; {remedy}" if error.status in (UNAUTHORISED, FORBIDDEN) else ""
        return ConfigError(f"{error}{refused}")

    def _is_of_prompt(self, error: HttpError) -> bool:
        """Whether a 403 is of one prompt, as its text says or the answers to others before it."""
        moderated = MODERATED.search(error.said) is not None
        with self._lock:
            self._forbidden = 0 if moderated else self._forbidden + 1
            return moderated or (self._answered and self._forbidden < FORBIDDEN_IN_ROW)


def excerpt(content: Any) -> str:
    """What a service sent, on one short line."""
    text = " ".join(str(content).split())
    return text if len(text) <= EXCERPT else f"{text[:EXCERPT]}..."


def _pause(number: int, named: float | None) -> float:
    """Seconds before the next try: twice as long each time, not all at once."""
    if named is not None:
        return min(named, LONGEST_PAUSE)
    return min(0.5 * 2**number, LONGEST_PAUSE) * (0.5 + random.random() / 2)
