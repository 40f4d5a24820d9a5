"""Who may see the page, and what the page may do."""

from __future__ import annotations

import secrets

from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    # Nothing is loaded from anywhere but static/, no script or style in the page runs, and no
    # other site can frame it or be sent to.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class TokenGate:
    """Middleware: the token comes first in every path, and every response has the headers.

    A token in the path needs no cookie, which other ports of this machine would be sent too, and
    without it no other site can make a request that counts.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app = app
        self.token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        given = scope["path"].removeprefix("/").partition("/")[0]
        app = self.app if secrets.compare_digest(given.encode(), self.token) else _REFUSED
        await app(scope, receive, send_with_headers)


_REFUSED = PlainTextResponse(
    "The address needs the token that penchant label printed; open that address.\n", 403
)
