"""JSON over HTTP: what a server answers, and whether asking again may help."""

from __future__ import annotations

import http.client
import ipaddress
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from penchant.core.errors import ConfigError

# Too many requests, and a server or proxy that cannot answer now.
PASSING = frozenset({408, 429, 500, 502, 503, 504})


class HttpError(Exception):
    """A server refused a request.

    Attributes:
        status: its HTTP status; None where no answer came at all.
        passing: whether the same request may succeed later.
        retry_after: seconds after which the server asks to be tried again, where it says so.
    """

    def __init__(
        self, message: str, status: int | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after
        self.passing = status is None or status in PASSING


@dataclass(frozen=True)
class JsonClient:
    """Asks one server.

    Attributes:
        url: of the server, such as http://127.0.0.1:8000.
        timeout: seconds without a byte after which a request has failed.
        headers: sent with each request, but not to another address that the server sends it on to.
        proxies: whether the proxies that the environment names are used.
    """

    url: str
    timeout: float
    headers: Mapping[str, str] = field(default_factory=dict)
    proxies: bool = True

    def get(self, path: str, timeout: float | None = None) -> Any:
        """What is at a path: parsed where it is JSON, else its text.

        Raises:
            HttpError: anything but a success.
        """
        return self._ask(urllib.request.Request(self._at(path)), timeout)

    def post(self, path: str, payload: Mapping[str, Any]) -> Any:
        """What the server answers to a JSON object.

        Raises:
            HttpError: anything but a success.
        """
        headers = {"Content-Type": "application/json"}
        data = json.dumps(payload).encode()
        return self._ask(urllib.request.Request(self._at(path), data, headers, method="POST"))

    def _at(self, path: str) -> str:
        return f"{self.url.rstrip('/')}{path}"

    def _ask(self, request: urllib.request.Request, timeout: float | None = None) -> Any:
        for name, value in self.headers.items():  # a key is for this address alone
            request.add_unredirected_header(name, value)
        own = () if self.proxies else (urllib.request.ProxyHandler({}),)
        opener = urllib.request.build_opener(*own)
        try:
            with opener.open(request, timeout=timeout or self.timeout) as answer:
                text = answer.read().decode()
                kind = answer.headers.get_content_type()
        except urllib.error.HTTPError as error:
            with error:
                said = error.read().decode(errors="replace").strip()[:500]
            message = f"{request.full_url} answered {error.code}: {said or error.reason}"
            wait = str(error.headers.get("Retry-After", ""))
            pause = float(wait) if wait.replace(".", "", 1).isdigit() else None
            raise HttpError(message, error.code, pause) from error
        # A connection that breaks while the answer is read is none of urllib's own errors.
        except (OSError, http.client.HTTPException) as error:
            raise HttpError(f"{request.full_url} does not answer: {error}") from error
        if kind != "application/json":
            return text
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise HttpError(f"{request.full_url} answered what is no JSON: {error}", 502) from error


def addresses(url: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Where the host of a URL is.

    Raises:
        ConfigError: the URL has no host, or none that is known here.
    """
    host = urlsplit(url).hostname if "://" in url else None
    if host is None:
        raise ConfigError(f"{url!r} is not the address of a server; give http://HOST:PORT")
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"{host} of {url} is not known here ({error}); correct it") from error
    return [ipaddress.ip_address(str(address[0]).split("%")[0]) for *_, address in found]
