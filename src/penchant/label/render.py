"""Untrusted text as HTML: markdown without raw HTML, images or links."""

from __future__ import annotations

from dataclasses import dataclass

from markdown_it import MarkdownIt
from markupsafe import Markup, escape

from penchant.data.records import Text, is_chat
from penchant.data.rows.messages import said

# Some texts take a markdown parser more than linear time; nobody reads longer ones formatted.
MAX_MARKDOWN = 50_000
# Links and images stay in the text as they are written: to be judged, not followed.
UNSAFE_RULES = ["html_block", "html_inline", "image", "link", "autolink", "reference"]
MARKDOWN = (
    MarkdownIt("commonmark", {"html": False, "breaks": True})
    .enable(["table", "strikethrough"])
    .disable(UNSAFE_RULES)
)


@dataclass(frozen=True, slots=True)
class Turn:
    """One message on the page; a plain string has no role."""

    role: str | None
    html: Markup


def render(text: Text, *, plain: bool = False) -> list[Turn]:
    """Turn a prompt or completion into HTML that can only show text.

    Args:
        text: anything.
        plain: show every character as it is instead of reading markdown.

    Returns:
        Its messages in order.
    """
    if is_chat(text):
        return [Turn(one["role"], _html(said(one), plain)) for one in text]
    return [Turn(None, _html(str(text), plain))]


def _html(content: str, plain: bool) -> Markup:
    if plain or len(content) > MAX_MARKDOWN:
        # A parser of HTML drops the first line break in a pre.
        return Markup("<pre class=plain>\n{}</pre>").format(escape(content))
    return Markup(MARKDOWN.render(content))
