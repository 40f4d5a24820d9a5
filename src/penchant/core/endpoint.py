"""Ask a model behind an OpenAI-compatible endpoint: many at a time, again after failures, cached.

Nothing that was answered is asked again: answers are kept on disk as they come, by the content of
the request and its address, so that a run that was killed goes on where it stood.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from penchant.core.address import warn_of_leaving
from penchant.core.answer_cache import request_key
from penchant.core.asking import (
    EXCERPT,
    Reply,
    Service,
    ServiceSettings,
    UnusableError,
    Usage,
    excerpt,
)
from penchant.core.errors import ConfigError

logger = logging.getLogger("penchant")

T = TypeVar("T")
Messages = Sequence[Mapping[str, str]]
# Models that a message names, of the hundreds that a provider may list.
SHOWN = 5
# Seconds of a try: a model that thinks sends nothing, or empty lines, until it answers, and an
# answer that is not waited for may be paid all the same.
TIMEOUT = 600.0


@dataclass(frozen=True, kw_only=True)
class EndpointSettings(ServiceSettings):
    """Where a model answers and how it is asked.

    Attributes:
        model: None for the only one that is served there.
        timeout: as of every service, and longer: models think.
        temperature, max_tokens: of the answers.
        price_input, price_output: per million tokens, in any currency.
        extra_body: more fields of each request, as the server takes them.
    """

    model: str | None = None
    timeout: float = TIMEOUT
    temperature: float = 0.0
    max_tokens: int = 512
    price_input: float = 0.0
    price_output: float = 0.0
    extra_body: Mapping[str, Any] = field(default_factory=dict)


class _Said(NamedTuple):
    """The text of one answer, and whether `max_tokens` cut it off."""

    text: str
    cut: bool


class Endpoint:
    """A model that answers over HTTP.

    The models that are served are asked for at construction. What speaks against a model that is
    named is a warning, since servers serve models that they do not list.

    Args:
        settings: where and how.

    Raises:
        ConfigError: the url is none; nothing answers there, and the cache knows nothing of a model
            that is named; or none is named, and the server does not list exactly one.
    """

    def __init__(self, settings: EndpointSettings) -> None:
        self.settings, self._service = settings, Service(settings)
        self.model = self._served()
        warn_of_leaving(settings.url, "prompts and answers")

    @property
    def usage(self) -> Usage:
        """What was asked so far."""
        return self._service.usage

    def ask(self, requests: Sequence[Messages], read: Callable[[str], T | None]) -> list[Reply[T]]:
        """Answers to chats, in their order; equal chats are asked once.

        Args:
            requests: messages with `role` and `content` each.
            read: an answer's text to its value; None where it holds none, which is asked again.

        Raises:
            ConfigError: the endpoint refuses every request of this kind, as for a wrong key.
        """
        bodies = [self._body(messages) for messages in requests]
        # Servers at two addresses may call two models `judge`.
        url = self.settings.url.rstrip("/")
        keys = [request_key({"url": url, **body}) for body in bodies]
        pending = dict(zip(keys, bodies, strict=True))

        def answer(item: tuple[str, dict[str, Any]]) -> tuple[str, Reply[T]]:
            return item[0], self._answer(*item, read)

        replies = dict(self._service.side_by_side(answer, list(pending.items()), "judging"))
        return [replies[key] for key in keys]

    def try_once(self, request: Messages, read: Callable[[str], T | None]) -> None:
        """Ask once, before what is to be asked takes its time to be made.

        Raises:
            ConfigError: the endpoint refuses every request, or its answer is of no use.
        """
        (reply,) = self.ask([request], read)
        if reply.value is None:
            raise ConfigError(
                f"{self.model} at {self.settings.url} gave no usable answer to a trial "
                f"({reply.reason}); correct its settings or its rubric"
            )

    def close(self) -> None:
        """Let go of the cache's file."""
        self._service.close()

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
        known = self._service.cache.get(key)
        if known is not None and (value := read(known)) is not None:
            self._service.count(cached=1)
            return Reply(value)

        def attempt() -> T:
            text, cut = self._ask(body)
            value = read(text)
            if value is None:
                says = f"its answer holds no verdict: {text.strip()[-EXCERPT:]!r}"
                raise self._cut_off(says, body) if cut else UnusableError(says)
            self._service.cache.put(key, text)
            return value

        reply = self._service.try_again(attempt)
        self._service.count(failed=int(reply.value is None))
        return reply

    def _ask(self, body: dict[str, Any]) -> _Said:
        """One answer, which costs what it costs, whatever is in it.

        Raises:
            UnusableError: this request failed.
            ConfigError: every request would.
        """
        content = self._service.post("/chat/completions", body)
        self._count_tokens(content)
        try:
            choice = content["choices"][0]
            text, end = choice["message"].get("content"), choice.get("finish_reason")
            withheld = end == "content_filter" or bool(choice["message"].get("refusal"))
        except (LookupError, TypeError, AttributeError):
            raise UnusableError(f"it sent no chat completion: {excerpt(content)}") from None
        if end == "error":  # as OpenRouter says that its provider broke off
            raise UnusableError(f"its provider failed: {excerpt(content)}")
        if isinstance(text, str) and text.strip() and end != "content_filter":
            return _Said(text, cut=end == "length")
        self._service.count(refused=int(withheld))
        says = f"its message has no text: {excerpt(content)}"
        if end == "length":
            raise self._cut_off(says, body)
        # Without a reason, as of a provider that is still loading the model, it may have one later.
        raise UnusableError(says, final=withheld and _is_greedy(body))

    @staticmethod
    def _cut_off(says: str, body: Mapping[str, Any]) -> UnusableError:
        """An answer of no use since it was too long."""
        limit = f"max_tokens ({body.get('max_tokens')})"
        says = f"{limit} cut its answer off; set max_tokens higher: {says}"
        return UnusableError(says, final=_is_greedy(body))

    def _count_tokens(self, content: Any) -> None:
        used = content.get("usage") if isinstance(content, dict) else None
        counts = used if isinstance(used, dict) else {}
        read, written = (
            number if isinstance(number := counts.get(name), int) else 0
            for name in ("prompt_tokens", "completion_tokens")
        )
        cost = read * self.settings.price_input + written * self.settings.price_output
        self._service.count(input_tokens=read, output_tokens=written, cost=cost / 1e6)

    def _served(self) -> str:
        """The model that is asked.

        One that is named need not be listed: deployments, presets and wildcards are served under
        names of their own, and some servers ignore the name. The first request tells.
        """
        url, named = self.settings.url, self.settings.model
        try:
            names = _names(self._service.get("/models"))
        except (UnusableError, ConfigError) as error:
            return self._unlisted(error)
        if named is None:
            if names is None:
                hint = "" if urlsplit(url).path.strip("/") else f", or is it {url.rstrip('/')}/v1?"
                raise ConfigError(f"{url}/models lists no models; set model{hint}")
            if len(names) != 1:
                raise ConfigError(f"{url} serves {_listed(names) or 'nothing'}; set model to one")
            return names[0]
        if names and not any(_same(named, name) for name in names):
            near = difflib.get_close_matches(named, names, len(names), cutoff=0.0)
            logger.warning(
                "%s does not list %s, but %s: if it does not serve it either, the first request "
                "fails; then set model to one of these", url, named, _listed(near),
            )  # fmt: skip
        return named

    def _unlisted(self, error: UnusableError | ConfigError) -> str:
        """The model that is named, where what is served could not be learned.

        Keys may be allowed to ask and not to list, and where every answer is known, no server is
        needed.
        """
        url, named = self.settings.url, self.settings.model
        answered = isinstance(error, ConfigError) or error.answered
        if named is not None and (answered or self._service.cache.holds_any()):
            logger.warning(
                "%s does not say whether it serves %s (%s): if it does not, the first request "
                "whose answer is not in the cache fails", url, named, error,
            )  # fmt: skip
            return named
        if isinstance(error, ConfigError):
            raise error
        raise ConfigError(f"no model answers at {url} ({error}); start it, or correct the url")


def _is_greedy(body: Mapping[str, Any]) -> bool:
    """Whether a request gets the same answer each time."""
    return body.get("temperature") == 0


def _names(content: Any) -> list[str] | None:
    """The models that are listed; None where that is no list, or only its first page."""
    try:
        names = [str(model["id"]) for model in content["data"]]
    except (LookupError, TypeError):
        return None
    return None if content.get("has_more") else names


def _same(named: str, listed: str) -> bool:
    """Whether a model may be asked for by another name than the one that is listed.

    Ollama lists `qwen3:latest` for `qwen3`, Gemini `models/gemini-flash` for `gemini-flash`, and
    OpenRouter takes `owner/name:nitro` for `owner/name`.
    """
    aliases = (named, f"{named}:latest", f"models/{named}")
    return listed in aliases or named.startswith(f"{listed}:")


def _listed(names: Sequence[str]) -> str:
    """Names in one line; a long list is cut short."""
    left = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {left} more" if left > 0 else "")
