"""Whatever a model wrote, the page shows text: no script, no image, no link, nothing loaded."""

from __future__ import annotations

import time
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penchant.label.render import MAX_MARKDOWN, render

BLOCKS = {"p", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "ul", "ol", "li"}
TABLE = {"table", "thead", "tbody", "tr", "th", "td"}
TAGS = BLOCKS | TABLE | {"em", "strong", "s", "code", "pre"}
ATTRIBUTES = {"class", "start", "style"}
HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)><script href='data:,alert(1)'/></svg>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<style>@import 'http://evil.example/x'</style>",
    "<meta http-equiv=refresh content='0;url=http://evil.example'>",
    "<form action=/><button name=side value=left>",
    "</div></section></main><h1>out</h1>",
    "<!-- --><base href=//evil.example>",
    "![x](http://evil.example/x.png)",
    "![x][r]\n\n[r]: http://evil.example/x.png 'title'",
    "[x](javascript:alert(1))",
    "[x](data:text/html,<script>alert(1)</script>)",
    "<javascript:alert(1)> <http://evil.example>",
    "http://evil.example/x.png",
    '```"><script>alert(1)</script>\ncode\n```',
    "``` x onmouseover=alert(1) style=position:fixed\ncode\n```",
    "|a|b|\n|:-|-:|\n|<img src=x>|[x](javascript:alert(1))|",
    "&lt;script&gt;alert(1)&lt;/script&gt; &#60;img src=x&#62;",
    "\x00<script\x00>alert(1)</script>",
    "{{ 7 * 7 }} {% include 'base.html' %}",
]


class Seen(HTMLParser):
    """Collects every tag and attribute, as a browser would find them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: dict[str, str | None] = {}
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes.update(attrs)

    def handle_data(self, data):
        self.text += data

    def handle_comment(self, data):
        self.tags.add("comment")

    def handle_decl(self, decl):
        self.tags.add("declaration")


def seen(text: str, plain: bool = False) -> Seen:
    return Seen("".join(turn.html for turn in render(text, plain=plain)))


def assert_only_text(text: str) -> None:
    for plain in (False, True):
        found = seen(text, plain)
        assert found.tags <= TAGS
        assert set(found.attributes) <= ATTRIBUTES
        style = found.attributes.get("style", "text-align:left")
        assert style in ("text-align:left", "text-align:right", "text-align:center")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_becomes_no_element(text: str):
    assert_only_text(text)


@given(
    st.lists(st.sampled_from([*HOSTILE, "\n\n", "`", "```\n", "> ", "- ", "<", '"', "|"])).map(
        "".join
    )
)
def test_mixtures_of_hostile_text_become_no_element(text: str):
    assert_only_text(text)


def test_links_and_images_stay_readable():
    text = "[docs](https://docs.example/a) ![alt](https://evil.example/x.png)"
    assert seen(text).text.strip() == text


def test_markdown_and_code_are_formatted():
    found = seen(
        "# Title\n\n**bold** `code`\n\n```python\nx < 1\n```\n\n|a|\n|-|\n|b|\n\n- item\nline"
    )
    assert {"h1", "strong", "code", "pre", "table", "li", "br"} <= found.tags
    assert "x < 1" in found.text


def test_plain_shows_every_character():
    text = "\n\n  **bold**\n\n<b>&amp;\ttab  two  spaces\n"
    assert seen(text, plain=True).text.removeprefix("\n") == text


def test_chat_is_shown_by_role():
    chat = ({"role": "system", "content": "<b>"}, {"role": "user", "content": "*hi*"})
    assert [turn.role for turn in render(chat)] == ["system", "user"]


@pytest.mark.parametrize("text", ["x" * 10**6, "*_" * 5 * 10**5, "[" * 10**6, "> " * 5 * 10**5])
def test_megabyte_is_shown_as_text_at_once(text: str):
    started = time.perf_counter()
    found = seen(text)
    assert time.perf_counter() - started < 2
    assert found.text.removeprefix("\n") == text


def test_slow_markdown_of_the_longest_length_takes_seconds_at_most():
    table = "a|" * 1000 + "\n" + "-|" * 1000 + "\n" + "a\n" * MAX_MARKDOWN
    started = time.perf_counter()
    render(table[:MAX_MARKDOWN])
    assert time.perf_counter() - started < 10


def test_annotators_see_the_reasoning_and_the_calls_of_an_answer():
    calls = [{"function": {"name": "find"}}]
    answer = {"role": "assistant", "content": "4", "reasoning": "so", "tool_calls": calls}
    (turn,) = render((answer,))
    assert all(text in turn.html for text in ("so", "4", "find"))
