"""The page in Chromium: keys, tabs, hostile completions, and a server that is killed meanwhile."""

from __future__ import annotations

import random
import re
import threading
from pathlib import Path
from typing import Any, NoReturn

import pytest

from penchant.label.session import open_session

from .conftest import Server, write_pairs

EVIL = "http://evil.example"
HOSTILE = f"""<script>document.title = 'owned'</script><img src=x onerror="document.title='owned'">
<img src="{EVIL}/html.png"><svg onload="document.title='owned'"><image href="{EVIL}/svg.png"/></svg>
<iframe src="{EVIL}/frame"></iframe><link rel=stylesheet href="{EVIL}/x.css"><body onload=alert(1)>
<style>@import '{EVIL}/style';body{{background:url({EVIL}/bg.png)}}</style>
<meta http-equiv=refresh content="0;url={EVIL}/refresh"><base href="{EVIL}/">
<form action="{EVIL}/form"><input name=side><button id=fake>left</button></form>
</div></section></main><h1 id=escaped>out</h1>

![markdown]({EVIL}/md.png) ![ref][r] [click](javascript:document.title='owned') <{EVIL}/auto>
[data](data:text/html,<script>alert(1)</script>) {EVIL}/bare

[r]: {EVIL}/ref.png

```"><img src={EVIL}/fence.png onerror=alert(1)>
<script>document.title = 'owned'</script>
```
"""


@pytest.fixture
def tab(browser):
    """Return a function that opens a tab, which fails the test on a dialog or a script's error."""
    context = browser.new_context()
    wrong: list[str] = []

    def open_tab(address: str, annotator: str = "ann") -> Any:
        page = context.new_page()
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(f"{address}compare?annotator={annotator}")
        return page

    yield open_tab
    context.close()
    assert wrong == []


def answered(page: Any) -> int:
    return int(page.get_attribute("#answered", "data-answered"))


def wait_for(page: Any, number: int) -> None:
    page.wait_for_selector(f"#answered[data-answered='{number}']")


def press(page: Any, key: str, then: int) -> None:
    page.keyboard.press(key)
    wait_for(page, then)


def say_strength(page: Any, key: str) -> None:
    """Press a key where the strength is asked, and wait for the next pair."""
    page.wait_for_selector("#answer[data-asks]")
    page.keyboard.press(key)
    page.wait_for_selector("#answer:not([data-asks])")


def stored(file: Path) -> list[Any]:
    session = open_session(file)
    found = list(session.store.answers())
    session.store.close()
    return found


def side_of(answer: Any) -> str:
    if answer.label not in ("a", "b"):
        return answer.label
    return "left" if (answer.label == "b") == answer.swapped else "right"


def test_name_is_given_once_and_keys_do_the_rest(tmp_path, serve, browser):
    file = write_pairs(tmp_path / "f.jsonl", 6)
    server = serve(file)
    page = browser.new_page()
    page.goto(server.address)
    page.keyboard.type("ann b")
    page.keyboard.press("Enter")
    wait_for(page, 0)
    for number, key in enumerate(("ArrowLeft", "ArrowRight", "t", "s", "b"), start=1):
        press(page, key, number)
        if key.startswith("Arrow"):
            say_strength(page, "Enter")
    found = stored(file)
    assert [side_of(one) for one in found] == ["left", "right", "tie", "skip", "both_bad"]
    assert {one.annotator for one in found} == {"ann b"}
    press(page, "u", 4)
    assert page.get_attribute("#answer", "data-item") == "4"
    press(page, "t", 5)
    press(page, "t", 6)
    assert "Nothing is left for ann b" in page.inner_text("h1")
    press(page, "u", 5)
    assert page.get_attribute("#answer", "data-item") == "5"
    page.close()


def test_strength_after_the_choice_by_keys_and_typing_answers_nothing(tmp_path, serve, tab):
    file = write_pairs(tmp_path / "f.jsonl")
    page = tab(serve(file).address)
    page.keyboard.press("3")
    page.keyboard.press("r")
    page.keyboard.type("both bad, but tuts 1 3")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    page.wait_for_timeout(200)
    assert answered(page) == 0
    press(page, "ArrowLeft", 1)
    assert "better" in page.inner_text("#left h2")
    page.keyboard.press("t")  # no answer while the strength is asked
    say_strength(page, "2")
    press(page, "ArrowLeft", 2)
    say_strength(page, "Enter")
    found = stored(file)
    assert [(one.strength, one.reason) for one in found] == [
        (2, "both bad, but tuts 1 3"),
        (None, ""),
    ]
    press(page, "u", 1)
    press(page, "u", 0)
    assert page.input_value("input[name=reason]") == "both bad, but tuts 1 3"


def test_held_key_and_keys_of_the_browser_answer_nothing_more(tmp_path, serve, tab):
    page = tab(serve(write_pairs(tmp_path / "f.jsonl", 9)).address)
    for _ in range(5):  # all but the first say repeat
        page.keyboard.down("t")
    page.wait_for_timeout(300)
    page.keyboard.up("t")
    assert answered(page) == 1
    page.keyboard.press("Control+b")
    page.keyboard.press("Alt+s")
    page.wait_for_timeout(200)
    assert answered(page) == 1


def test_buttons_work_without_the_script(tmp_path, serve, browser):
    file = write_pairs(tmp_path / "f.jsonl")
    server = serve(file)
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(server.address + "compare?annotator=ann")
    page.fill("input[name=reason]", "why")
    page.press("input[name=reason]", "Enter")
    page.wait_for_timeout(200)
    assert answered(page) == 0, "Enter in the reason is no answer"
    page.click("button[value=left]")
    wait_for(page, 1)
    page.click("button[name=strength][value='3']")
    page.wait_for_selector("button[value=left]")
    context.close()
    assert [(side_of(one), one.strength, one.reason) for one in stored(file)] == [
        ("left", 3, "why")
    ]


def test_fingers_find_large_buttons_without_hints_of_keys(tmp_path, serve, browser):
    context = browser.new_context(
        viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True
    )
    page = context.new_page()
    page.goto(serve(write_pairs(tmp_path / "f.jsonl")).address + "compare?annotator=ann")
    for form, tapped in (("not([data-asks])", "left"), ("is([data-asks])", "a little")):
        page.wait_for_selector(f"#answer:{form}")
        assert page.locator("kbd:visible").count() == 0
        boxes = [one.bounding_box() for one in page.locator("button:visible").all()]
        assert all(box["height"] >= 44 and box["width"] >= 44 for box in boxes)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.get_by_role("button", name=tapped).tap()
    page.wait_for_selector("#answer:not([data-asks])")
    context.close()


def test_hostile_completion_is_text(tmp_path, serve, tab):
    texts = {"prompt": HOSTILE, "completion_a": HOSTILE, "completion_b": "x" * 10**6 + HOSTILE}
    server = serve(write_pairs(tmp_path / "f.jsonl", **texts))
    asked: list[str] = []
    page = tab(server.address)
    page.on("request", lambda request: asked.append(request.url))
    for address in (page.url, page.url + "&plain=1"):
        page.goto(address)
        page.wait_for_load_state("networkidle")
        shown = page.inner_text("main")
        for text in (
            "<script>",
            "onerror=",
            "<svg onload",
            "<iframe",
            "![markdown]",
            "javascript:",
        ):
            assert shown.count(text) >= 3, text
        assert page.title().startswith("Compare")
        assert page.url == address
        inside = (
            "img, svg, script, iframe, style, link, meta, base, form, input, a, button, [onerror]"
        )
        assert page.locator(f".text :is({inside})").count() == 0
        assert page.locator("#escaped, #fake").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert [url for url in asked if not url.startswith(server.address)] == []
    press(page, "t", 1)


def test_policy_holds_where_html_got_through(tmp_path, serve, tab):
    """The second wall: what reaches the page by a fault in rendering still does nothing."""
    server = serve(write_pairs(tmp_path / "f.jsonl"))
    page = tab(server.address)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("requestfailed", lambda request: asked.remove(request.url))
    html = re.sub("<meta.*?>", "", HOSTILE)  # no policy stops a refresh, only the first wall does
    page.evaluate("html => document.querySelector('#left .text').innerHTML = html", html)
    page.evaluate("""() => { const s = document.createElement('script');
        s.textContent = "document.title = 'owned'"; document.body.append(s); }""")
    page.wait_for_timeout(500)
    assert asked == []
    assert page.title().startswith("Compare")


def test_second_tab_of_one_annotator_is_told_and_changes_nothing(tmp_path, serve, tab):
    file = write_pairs(tmp_path / "f.jsonl")
    server = serve(file)
    first, second = tab(server.address), tab(server.address)
    press(first, "t", 1)
    second.keyboard.press("b")
    second.wait_for_selector(".notice")
    assert "answered already, in another tab" in second.inner_text(".notice")
    assert [(one.item, one.label) for one in stored(file)] == [(0, "tie")]
    press(second, "b", 2)


def test_two_annotators_in_two_tabs_overlap_and_agree_in_part(tmp_path, serve, tab):
    file = write_pairs(tmp_path / "f.jsonl", 4)
    server = serve(file, "--overlap", "2", "--annotators", "ann,bob")
    ann, bob = tab(server.address, "ann"), tab(server.address, "bob")
    for number, keys in enumerate((("t", "t"), ("b", "b"), ("t", "b"), ("t", "t")), start=1):
        press(ann, keys[0], number)
        press(bob, keys[1], number)
    ann.goto(server.address + "progress")
    assert "4 of 4 pairs have 2 answers" in ann.inner_text("main")
    # Of 8 answers 5 are ties: expected 2 * 5 * 3 / (8 * 7), observed 2 / 8.
    assert "75% equal on 4 items with several answers; Krippendorff's alpha 0.53" in ann.inner_text(
        "#agreement"
    )
    assert len(stored(file)) == 8


class Driver:
    """Answers in a browser, through kills of the server; knows what was acknowledged."""

    def __init__(self, file: Path, serve: Any, tab: Any) -> None:
        self.file, self.serve, self.acknowledged = file, serve, {}
        self.server: Server = serve(file, "--no_strength")
        self.page = tab(self.server.address)
        self.chance = random.Random(1)

    def answer(self) -> None:
        """Press a key, and note the answer once the page shows it as given."""
        keys = {
            "ArrowLeft": "left",
            "ArrowRight": "right",
            "t": "tie",
            "b": "both_bad",
            "s": "skip",
        }
        key = self.chance.choice(list(keys))
        before, item = answered(self.page), self.page.get_attribute("#answer", "data-item")
        press(self.page, key, before + 1)
        self.acknowledged[int(item)] = keys[key]

    def answer_on(self) -> NoReturn:
        while True:
            self.answer()

    def kill_meanwhile(self) -> None:
        """Answer on while the server is killed, then start it again."""
        error = pytest.importorskip("playwright.sync_api").Error
        self.page.set_default_timeout(2000)
        timer = threading.Timer(self.chance.uniform(0, 0.1), self.server.kill)
        timer.start()
        with pytest.raises((error, TypeError)):  # the browser's own page says that it is gone
            self.answer_on()
        timer.join()
        self.page.set_default_timeout(30_000)
        self.server = self.serve(self.file, "--no_strength")
        self.page.goto(f"{self.server.address}compare?annotator=ann")


@pytest.mark.parametrize(
    ("answers", "kills"), [(40, 1), pytest.param(1000, 10, marks=pytest.mark.slow)]
)
def test_killed_server_loses_no_answer_the_browser_saw_taken(tmp_path, serve, tab, answers, kills):
    file = write_pairs(tmp_path / "f.jsonl", answers + 2 * kills)
    driver = Driver(file, serve, tab)
    at = set(driver.chance.sample(range(1, answers - 2 * kills), kills))
    killed = 0
    while len(driver.acknowledged) < answers:
        if killed < kills and len(driver.acknowledged) >= sorted(at)[killed]:
            driver.kill_meanwhile()
            killed += 1
        else:
            driver.answer()
    assert killed == kills
    found = {one.item: side_of(one) for one in stored(file)}
    assert {item: found.get(item) for item in driver.acknowledged} == driver.acknowledged
    assert len(found) <= len(driver.acknowledged) + kills, "at most the one under way at each kill"
    print(f"{len(driver.acknowledged)} acknowledged, {len(found)} stored, {killed} kills")
