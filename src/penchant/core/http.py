"""JSON over HTTP: what a server answers, and whether asking again may help."""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from penchant.core.errors import ConfigError

# A server that is busy, or whose model failed (424, of text-generation-inference).
PASSING = frozenset({408, 409, 424, 425, 429})
# From here on a server or a proxy is at fault, Cloudflare (52x) and one that is overloaded (529)
# among them; one that lacks the method (501) will lack it again.
SERVER_FAULT, LACKS_METHOD = 500, 501
READ_SIZE = 65_536
EXCERPT = 500
# A shorter key is a placeholder, such as EMPTY, and may stand in any text.
SHORTEST_SECRET = 8


class HttpError(Exception):
    """A server refused a request.

    Attributes:
        status: its HTTP status; None where no answer came at all.
        passing: whether the same request may succeed later.
        retry_after: seconds after which the server asks to be tried again, where it says so.
        said: the server's own text, which the message quotes after the address.
    """

    def __init__(
        self,
        message: str,
        status: int | None = None,
        retry_after: float | None = None,
        said: str = "",
    ) -> None:
        super().__init__(message)
        self.status, self.retry_after, self.said = status, retry_after, said
        fault = status is not None and status >= SERVER_FAULT and status != LACKS_METHOD
        self.passing = status is None or status in PASSING or fault


@dataclass(frozen=True)
class JsonClient:
    """Asks one server.

    Attributes:
        url: of the server, such as http://127.0.0.1:8000.
        timeout: seconds after which a request has failed; up to twice as many where bytes come
            until shortly before, and then none.
        headers: sent with each request, but not to another address that the server sends it on to.
        proxies: whether the proxies that the environment names are used.
    """

    url: str
    timeout: float
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
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
        seconds = timeout or self.timeout
        deadline = time.monotonic() + seconds
        try:
            with opener.open(request, timeout=seconds) as answer:
                body = _read(answer, deadline)
                kind = answer.headers.get_content_type()
        except urllib.error.HTTPError as error:
            raise self._refusal(request.full_url, error, deadline) from error
        # A connection that breaks while the answer is read is none of urllib's own errors, and a
        # host or a path that no request can name is a UnicodeError.
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            raise HttpError(f"{request.full_url} does not answer: {error}") from error
        try:
            return json.loads(body)  # whatever type the server calls it: many name none
        except (ValueError, RecursionError) as error:
            if kind != "application/json":
                return body.decode(errors="replace")
            raise HttpError(f"{request.full_url} answered what is no JSON: {error}", 502) from error

    def _refusal(self, url: str, error: urllib.error.HTTPError, deadline: float) -> HttpError:
        """What a status other than success says; that its text breaks off changes nothing."""
        try:
            with error:
                said = _read(error, deadline).decode(errors="replace").strip()
        except (OSError, http.client.HTTPException):
            said = ""
        for name, value in self.headers.items():  # some servers show the key that they refuse
            secret = value.rpartition(" ")[2]
            if len(secret) >= SHORTEST_SECRET:
                said = said.replace(secret, f"({name})")
        wait = str(error.headers.get("Retry-After", ""))
        pause = float(wait) if wait.replace(".", "", 1).isdecimal() else None
        message = f"{url} answered {error.code}: {said[:EXCERPT] or error.reason}"
        return HttpError(message, error.code, pause, said)


def bearer(variable: str) -> dict[str, str]:
    """The header that shows a key; empty where there is none.

    Args:
        variable: the environment variable that holds the key.

    Raises:
        ConfigError: what it holds cannot be a key. It is not quoted, here or anywhere.
    """
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(
            f"the environment variable {variable} holds characters that no key has (a space, a "
            "line's end, or others than ASCII); set it to the key alone"
        )
    return {"Authorization": f"Bearer {key}"} if key else {}


def _read(answer: Any, deadline: float) -> bytes:
    """The body of an answer; one that is whole is kept, however late its last part came.

    Raises:
        OSError, http.client.HTTPException: it stalls, trickles until after the deadline, or breaks.
    """
    chunks = []
    while chunk := answer.read1(READ_SIZE):
        chunks.append(chunk)
        if time.monotonic() > deadline:
            if not _is_whole(answer, b"".join(chunks)):
                raise TimeoutError("the answer was not complete in time")
            break
    if getattr(answer, "length", None):  # read1 takes a connection that was closed for the end
        raise http.client.IncompleteRead(b"".join(chunks), answer.length)
    return b"".join(chunks)


def _is_whole(answer: Any, body: bytes) -> bool:
    """Whether a body needs no further part; reading on to learn it could take long."""
    left = getattr(answer, "length", None)
    if left is not None:
        return bool(left == 0)
    try:  # the server does not say how long it is
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True


def addresses(url: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Where the host of a URL is.

    Raises:
        ConfigError: the URL has no host, or none that is known here.
    """
    try:
        host = urlsplit(url).hostname if "://" in url else None
    except ValueError:  # as for a bracket that is never closed
        host = None
    if host is None:
        raise ConfigError(f"{url!r} is not the address of a server; give http://HOST:PORT")
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{host} of {url} is not known here ({error}); correct it") from error
    return [ipaddress.ip_address(str(address[0]).split("%")[0]) for *_, address in found]
