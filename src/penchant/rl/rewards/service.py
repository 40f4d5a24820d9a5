"""A reward behind HTTP: a service of the user's own gets answers and gives numbers."""

from __future__ import annotations

import math
import socket
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import urldefrag, urlsplit
from urllib.request import getproxies, proxy_bypass

from pydantic import Field

from penchant.core.address import require_address, warn_of_leaving
from penchant.core.answer_cache import request_key
from penchant.core.asking import (
    Reply,
    Service,
    ServiceSettings,
    UnusableError,
    Usage,
    excerpt,
)
from penchant.core.errors import ConfigError, RewardError
from penchant.core.service_keys import ServiceKeys, read_keys
from penchant.data.rows.messages import plain
from penchant.rl.rewards.samples import MissingScoresError, Sample

SCHEMES = ("http://", "https://")
PREFIX = "http:"
# What holds the numbers of an answer that is an object, where no other name is given.
KEY = "rewards"
# Seconds within which something must listen at the address.
CONNECT_TIMEOUT = 5.0


class RewardServiceSettings(ServiceKeys):
    """The keys of a reward service's YAML file."""

    api_key_env: str = "REWARD_API_KEY"
    key: str | None = Field(None, description="which numbers, where the answer is an object")
    batch_size: int = Field(16, ge=1, description="completions in a request")
    columns: tuple[str, ...] | None = Field(None, description="columns that are sent; all")


class ServiceReward:
    """Numbers that a service gives for completions.

    It is sent `prompts`, `completions` and columns of the data as lists, and answers with a list of
    numbers in the same order, or with an object that has such lists.

    Args:
        settings: of the service.

    Attributes:
        name: by which metrics and messages call it.

    Raises:
        ConfigError: the address is none or may hold a secret, or nothing listens there.
    """

    def __init__(self, settings: RewardServiceSettings) -> None:
        require_address(settings.url, settings.api_key_env)
        url, fragment = urldefrag(settings.url)
        self.settings, self.key = settings, settings.key or fragment
        self.name = self.key or urlsplit(url).path.strip("/").rpartition("/")[2] or "service"
        own = {"url", "key", "batch_size", "columns"}
        self.service = Service(ServiceSettings(url=url, **settings.model_dump(exclude=own)))
        _require_listener(url)
        warn_of_leaving(url, "prompts, answers and columns")

    @property
    def usage(self) -> Usage:
        """What the service was asked so far."""
        return self.service.usage

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """One number a sample; what was scored before is not sent again.

        Raises:
            MissingScoresError: a sample has no number after all tries.
            RewardError: a column that is sent cannot be written as JSON.
        """
        rows = [self._row(sample) for sample in samples]
        keys = [self._hash(row, sample) for row, sample in zip(rows, samples, strict=True)]
        known = self.service.cache.get
        replies = {key: Reply(float(text)) for key in keys if (text := known(key)) is not None}
        self.service.count(cached=len(replies))
        new = [i for key, i in {key: i for i, key in enumerate(keys)}.items() if key not in replies]
        size = self.settings.batch_size
        chunks = [new[i : i + size] for i in range(0, len(new), size)]
        answers = self.service.side_by_side(
            lambda chunk: self._ask([rows[i] for i in chunk], [keys[i] for i in chunk]),
            chunks,
            "scoring",
        )
        for answer in answers:
            replies |= answer
        found = [replies[key] for key in keys]
        scores = [math.nan if one.value is None else one.value for one in found]
        if reasons := {i: one.reason for i, one in enumerate(found) if one.value is None}:
            raise MissingScoresError(scores, reasons)
        return scores

    def _ask(
        self, rows: Sequence[Mapping[str, Any]], keys: Sequence[str]
    ) -> dict[str, Reply[float]]:
        """What the service gives for a few completions, which is kept as it comes, by key."""
        together = self.service.try_again(lambda: self._scores(rows))
        if together.value is not None:
            values = together.value
            replies = [Reply(one, "" if one is not None else "it gave null") for one in values]
        elif len(rows) == 1:
            replies = [Reply(None, together.reason)]
        else:  # one of them may be at fault
            replies = []
            for row in rows:
                alone = self.service.try_again(partial(self._scores, [row]), retries=0)
                value = None if alone.value is None else alone.value[0]
                replies.append(Reply(value, alone.reason or "it gave null"))
        for key, reply in zip(keys, replies, strict=True):
            if reply.value is not None:
                self.service.cache.put(key, repr(reply.value))
        self.service.count(failed=sum(one.value is None for one in replies))
        return dict(zip(keys, replies, strict=True))

    def _row(self, sample: Sample) -> dict[str, Any]:
        """What is sent of a sample."""
        sent = self.settings.columns
        columns = {n: v for n, v in sample.fields.items() if sent is None or n in sent}
        return {**columns, "prompts": plain(sample.prompt), "completions": sample.completion}

    def _hash(self, row: Mapping[str, Any], sample: Sample) -> str:
        try:
            return request_key({"url": self.settings.url, "key": self.key, "row": row})
        except (TypeError, ValueError) as error:
            raise RewardError(
                f"reward {self.name}: {sample.where} cannot be sent as JSON ({error}); name the "
                f"columns to send in a YAML file: url and columns, then {PREFIX}FILE.yaml"
            ) from error

    def _scores(self, rows: Sequence[Mapping[str, Any]]) -> list[float | None]:
        names = dict.fromkeys(name for row in rows for name in row)
        content = self.service.post("", {name: [row.get(name) for row in rows] for name in names})
        values = self._listed(content)
        if len(values) != len(rows):
            raise UnusableError(f"it gave {len(values)} numbers for {len(rows)} completions")
        for value in values:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (number and math.isfinite(value)):
                raise UnusableError(f"it gave {value!r}, which is no finite number")
        return [None if value is None else float(value) for value in values]

    def _listed(self, content: Any) -> list[Any]:
        """The list of numbers in an answer."""
        key = self.key or KEY
        if isinstance(content, Mapping) and key in content:
            content = content[key]
        elif self.key and isinstance(content, Mapping | list):
            has = ", ".join(content) if isinstance(content, Mapping) else "a list alone"
            raise ConfigError(f"reward {self.name} asks for {key!r}, and the service sent {has}")
        elif isinstance(content, Mapping) and (lists := _lists(content)):
            raise ConfigError(
                f"{self.settings.url} sent {', '.join(lists)}; say which is the reward: "
                f"{urldefrag(self.settings.url)[0]}#{lists[0]}"
            )
        if not isinstance(content, list):
            raise UnusableError(f"it sent no list of numbers: {excerpt(content)}")
        return content


def load_service(spec: str) -> ServiceReward:
    """The reward that `http://...`, `https://...` or `http:FILE.yaml` means.

    Raises:
        ConfigError: the file cannot be read or has a wrong key, or nothing listens there.
    """
    place = spec if spec.startswith(SCHEMES) else spec.removeprefix(PREFIX)
    missing = (
        f"{spec}: no such file; write http://host:port/path, or name a YAML file with url, key, "
        "columns and more"
    )
    return ServiceReward(read_keys(place, RewardServiceSettings, missing))


def _lists(content: Mapping[str, Any]) -> list[str]:
    return [name for name, value in content.items() if isinstance(value, list)]


def _require_listener(url: str) -> None:
    """Refuse an address where nothing listens; behind a proxy that cannot be known."""
    parts = urlsplit(url)
    if parts.hostname is None:
        raise ConfigError(f"{url!r} is no address of a service; write it as http://host:port/path")
    try:
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    except ValueError as error:
        raise ConfigError(f"{url}: {error}; write it as http://host:port/path") from None
    if parts.scheme in getproxies() and not proxy_bypass(parts.hostname):
        return
    try:
        socket.create_connection((parts.hostname, port), CONNECT_TIMEOUT).close()
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"no service listens at {url} ({error}); start it, or correct the address"
        ) from None
