"""Ask a model behind an OpenAI-compatible endpoint: many at a time, again after failures, cached.

Nothing that was answered is asked again: answers are kept on disk as they come, by the content of
the request, so that a run that was killed goes on where it stood.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from penchant.core.asking import (
    EXCERPT,
    Reply,
    Service,
    ServiceSettings,
    UnusableError,
    Usage,
    excerpt,
    request_key,
    warn_of_leaving,
)
from penchant.core.errors import ConfigError

T = TypeVar("T")
Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True, kw_only=True)
class EndpointSettings(ServiceSettings):
    """Where a model answers and how it is asked.

    Attributes:
        model: None for the only one that is served there.
        temperature, max_tokens: of the answers.
        price_input, price_output: per million tokens, in any currency.
        extra_body: more fields of each request, as the server takes them.
    """

    model: str | None = None
    temperature: float = 0.0
    max_tokens: int = 512
    price_input: float = 0.0
    price_output: float = 0.0
    extra_body: Mapping[str, Any] = field(default_factory=dict)


class Endpoint:
    """A model that answers over HTTP.

    Args:
        settings: where and how.

    Raises:
        ConfigError: the url is none, it cannot be reached, refuses the key, or serves several
            models and none is named.
    """

    def __init__(self, settings: EndpointSettings) -> None:
        self.settings, self._service = settings, Service(settings)
        self.model = settings.model or self._only_model()
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
        keys = [request_key(body) for body in bodies]
        pending = dict(zip(keys, bodies, strict=True))

        def answer(item: tuple[str, dict[str, Any]]) -> tuple[str, Reply[T]]:
            return item[0], self._answer(*item, read)

        replies = dict(self._service.side_by_side(answer, list(pending.items()), "judging"))
        return [replies[key] for key in keys]

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
            text = self._text(body)
            value = read(text)
            if value is None:
                raise UnusableError(f"its answer holds no verdict: {text.strip()[-EXCERPT:]!r}")
            self._service.cache.put(key, text)
            return value

        reply = self._service.try_again(attempt)
        self._service.count(failed=int(reply.value is None))
        return reply

    def _text(self, body: dict[str, Any]) -> str:
        """The text of one answer.

        Raises:
            UnusableError: this request failed.
            ConfigError: every request would.
        """
        content = self._service.post("/chat/completions", body)
        try:
            text = content["choices"][0]["message"]["content"]
        except (LookupError, TypeError):
            raise UnusableError(f"it sent no chat completion: {excerpt(content)}") from None
        if not isinstance(text, str):
            raise UnusableError(f"its message has no text: {excerpt(content)}")
        used = content.get("usage") or {}
        read, written = used.get("prompt_tokens") or 0, used.get("completion_tokens") or 0
        cost = read * self.settings.price_input + written * self.settings.price_output
        self._service.count(input_tokens=read, output_tokens=written, cost=cost / 1e6)
        return text

    def _only_model(self) -> str:
        try:
            content = self._service.get("/models")
            names = [str(model["id"]) for model in content["data"]]
        except UnusableError as error:
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
