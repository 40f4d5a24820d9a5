"""The pages: who are you, compare two completions, progress. Plain forms; the script adds keys."""

from __future__ import annotations

import itertools
import sqlite3
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from penchant.core.errors import ConfigError
from penchant.core.pages import STYLE_SHEET
from penchant.label.guard import TokenGate
from penchant.label.render import render
from penchant.label.session import Session, check_name
from penchant.label.store import Task

# A page of another site whose name resolves to this machine has that name in its requests.
HOSTS = ["127.0.0.1", "localhost"]
MAX_BODY = 40_000
MAX_REASON = 2000
MAX_DIGITS = 16
SIDES = ("left", "right", "tie", "both_bad", "skip")
DECIDED = SIDES[:2]
STRENGTHS = ("1", "2", "3")
NOTICES = {
    "answered": "That pair was answered already, in another tab; this is the next one.",
    "nothing": "This tab has no answer to take back: each tab takes back its own.",
}


def create_app(session: Session, token: str) -> Starlette:
    """Make the application that serves a session to those who know the token."""
    pages = _Pages(session)
    routes = [
        Route("/", pages.welcome),
        Route("/compare", pages.compare),
        Route("/progress", pages.progress),
        Route("/answer", pages.answer, methods=["POST"]),
        Route("/strength", pages.strength, methods=["POST"]),
        Route("/undo", pages.undo, methods=["POST"]),
        Route("/static/page.css", _style),
        Mount("/static", StaticFiles(directory=Path(__file__).with_name("static"))),
    ]
    return Starlette(
        routes=[Mount("/{token}", routes=routes)],
        middleware=[
            Middleware(TokenGate, token=token),
            Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS, www_redirect=False),
        ],
        exception_handlers={HTTPException: pages.mistake, sqlite3.Error: pages.not_saved},
    )


@dataclass(frozen=True)
class _Form:
    """What the page sent with a click on a button."""

    annotator: str
    tab: str
    plain: bool
    values: dict[str, str]


class _Pages:
    """The handlers; they share the session and the templates.

    They run one at a time, on one event loop: a query takes milliseconds, and annotators are few.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.templates = Environment(
            loader=PackageLoader("penchant.label"), autoescape=True, undefined=StrictUndefined
        )
        # A tab is a number in its address. What was answered in it, first to last, is known as long
        # as the server runs: the address of the next one is another, so that its tabs are new.
        self.tabs = itertools.count(1)
        self.answered: defaultdict[tuple[str, str], list[int]] = defaultdict(list)

    async def welcome(self, request: Request) -> Response:
        """Ask for the annotator's name."""
        names = self.session.annotators or self.session.store.annotators()
        fixed = bool(self.session.annotators)
        counts = {name: self.session.store.num_answers(name) for name in names}
        return self._page("welcome.html", counts=counts, fixed=fixed, tab=_tab(request))

    async def compare(self, request: Request) -> Response:
        """Show the pair that is next for an annotator, or the one whose strength is asked."""
        annotator = self._annotator(request.query_params.get("annotator", ""))
        if not _tab(request):
            query = {**request.query_params, "tab": next(self.tabs)}
            return RedirectResponse(f"compare?{urlencode(query)}", 303)
        plain = request.query_params.get("plain") == "1"
        decided = request.query_params.get("decided")
        task = self._unweighed(annotator, decided) or self.session.next_task(annotator)
        shown: dict[str, Any] = {
            "annotator": annotator,
            "tab": _tab(request),
            "plain": plain,
            "notice": NOTICES.get(request.query_params.get("notice", "")),
            "task": task,
            "answered": self.session.store.num_answers(annotator),
            "complete": self.session.store.num_complete(self.session.overlap),
            "left_over": self.session.num_open(annotator),
            "guidelines": render(self.session.guidelines, plain=False),
        }
        if task:
            pair = self.session.data.records[task.item]
            sides = (pair.rejected, pair.chosen) if task.swapped else (pair.chosen, pair.rejected)
            shown["prompt"] = render(pair.prompt, plain=plain)
            shown["left"], shown["right"] = (render(side, plain=plain) for side in sides)
        return self._page("compare.html", **shown)

    async def answer(self, request: Request) -> Response:
        """Commit an answer; ask for its strength where it decides, else go on to the next pair."""
        form = await self._form(request)
        side, reason = form.values.get("side"), form.values.get("reason", "").strip()
        item = self._item(form)
        if side not in SIDES:
            raise HTTPException(400, f"side must be one of {', '.join(SIDES)}, got {side!r}")
        if len(reason) > MAX_REASON:
            raise HTTPException(400, f"a reason has at most {MAX_REASON} characters; shorten it")
        if saved := self.session.store.answer(form.annotator, item, side, reason):
            self.answered[form.annotator, form.tab].append(item)
        asks = saved and side in DECIDED and self.session.asks_strength
        return _next(form, "" if saved else "answered", decided=str(item) if asks else "")

    async def strength(self, request: Request) -> Response:
        """Commit by how much the chosen answer is better, if that was said, and go on."""
        form = await self._form(request)
        strength, item = form.values.get("strength", ""), self._item(form)
        chosen = form.values.get("chosen", "")
        if strength not in ("", *STRENGTHS):
            raise HTTPException(400, f"strength must be 1, 2 or 3, or empty, got {strength!r}")
        if chosen not in DECIDED:
            raise HTTPException(400, f"chosen must be left or right, got {chosen!r}")
        weigh = self.session.store.weigh
        saved = not strength or weigh(form.annotator, item, chosen, int(strength))
        return _next(form, "" if saved else "answered")

    async def undo(self, request: Request) -> Response:
        """Take back the annotator's last answer in this tab, and show its pair again."""
        form = await self._form(request)
        answered = self.answered[form.annotator, form.tab]
        undone = bool(answered) and self.session.store.undo(form.annotator, answered[-1])
        del answered[-1:]
        return _next(form, "" if undone else "nothing")

    async def progress(self, request: Request) -> Response:
        """Show what is done, by whom, and how far they agree."""
        complete = self.session.store.num_complete(self.session.overlap)
        work, agreement = self.session.work(), self.session.agreement()
        return self._page(
            "progress.html", complete=complete, work=work, agreement=agreement, tab=_tab(request)
        )

    async def mistake(self, request: Request, error: Exception) -> Response:
        """Say what was wrong with a request."""
        assert isinstance(error, HTTPException)
        return self._page("mistake.html", error.status_code, message=error.detail)

    async def not_saved(self, request: Request, error: Exception) -> Response:
        """Say that the database could not be written, such as on a full disk."""
        message = f"Nothing was saved: {error} ({self.session.store.path}). Go back and try again."
        return self._page("mistake.html", 500, message=message)

    def _page(self, template: str, status: int = 200, **values: object) -> Response:
        page = self.templates.get_template(template)
        html = page.render(session=self.session, **values)
        return HTMLResponse(html, status, headers={"Cache-Control": "no-store"})

    def _unweighed(self, annotator: str, item: str | None) -> Task | None:
        """The pair that an annotator has just decided, if its strength is to be asked."""
        if item is None or not self._is_item(item) or not self.session.asks_strength:
            return None
        return self.session.store.unweighed(annotator, int(item))

    def _item(self, form: _Form) -> int:
        item = form.values.get("item", "")
        if not self._is_item(item):
            raise HTTPException(400, f"item must be the number of a pair, got {item!r}")
        return int(item)

    def _is_item(self, item: str) -> bool:
        # A number of very many digits is none that Python or SQLite takes.
        known = item.isdecimal() and len(item) < MAX_DIGITS
        return known and int(item) < len(self.session.data.records)

    def _annotator(self, name: str) -> str:
        try:
            checked = check_name(name)
        except ConfigError as error:
            raise HTTPException(400, str(error)) from error
        allowed = self.session.annotators
        if allowed and checked not in allowed:
            raise HTTPException(403, f"{checked} is not among the annotators: {', '.join(allowed)}")
        return checked

    async def _form(self, request: Request) -> _Form:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                raise HTTPException(413, f"an answer has at most {MAX_BODY} bytes; shorten it")
        try:
            values = dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=20))
        except ValueError as error:
            raise HTTPException(400, f"this is not a form of the page: {error}") from error
        annotator = self._annotator(values.get("annotator", ""))
        return _Form(annotator, values.get("tab", ""), values.get("plain") == "1", values)


def _tab(request: Request) -> str:
    """Which tab of the browser asks for a page; empty for one that has no number yet."""
    return request.query_params.get("tab", "")


async def _style(request: Request) -> Response:
    """What every page of Penchant looks like."""
    return FileResponse(STYLE_SHEET)


def _next(form: _Form, notice: str, *, decided: str = "") -> Response:
    """Send the browser on, so that a reload repeats nothing."""
    plain = "1" if form.plain else ""
    about = {"annotator": form.annotator, "tab": form.tab, "plain": plain}
    query = {**about, "notice": notice, "decided": decided}
    given = urlencode({name: value for name, value in query.items() if value})
    return RedirectResponse(f"compare?{given}", 303)
