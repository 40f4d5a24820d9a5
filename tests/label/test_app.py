"""The page over HTTP: who gets in, what is shown, what is committed, and what is refused."""

from __future__ import annotations

import json
import re
import sqlite3
from html import unescape

import pytest

from penchant.core.pages import style

from .conftest import TOKEN, write_pairs

SIDES = ("left", "right", "tie", "both_bad", "skip")


def labels(site) -> list[tuple[int, str, str]]:
    return [(one.item, one.annotator, one.label) for one in site.session.store.answers()]


# Who gets in


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/compare?annotator=ann",
        "/static/label.js",
        "/wrong/",
        f"/{TOKEN}x/",
        f"/{TOKEN[:-1]}/compare?annotator=ann",
        f"//{TOKEN}/",
        "/%2e/",
        "/é/",
    ],
)
def test_nothing_is_served_without_the_token(page, path):
    site = page()
    found = site.client.get("http://127.0.0.1" + path)
    assert found.status_code == 403
    assert "open that address" in found.text
    assert "prompt 0" not in found.text


@pytest.mark.parametrize("action", ["answer", "strength", "undo"])
def test_nothing_is_taken_without_the_token(page, action):
    site = page()
    site.item()
    found = site.client.post(
        f"http://127.0.0.1/{action}", data={"annotator": "ann", "item": 0, "side": "left"}
    )
    assert found.status_code == 403
    assert labels(site) == []


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "evil.example:80", "localhost.evil", ""]
)
def test_name_that_was_bound_to_this_machine_is_refused(page, host):
    site = page()
    found = site.client.get("compare?annotator=ann", headers={"host": host})
    assert found.status_code == 400
    assert "prompt 0" not in found.text


@pytest.mark.parametrize("host", ["127.0.0.1:5000", "localhost:5000", "127.0.0.1"])
def test_this_machine_is_served_under_its_own_names(page, host):
    assert page().client.get("compare?annotator=ann", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "path", ["", "compare?annotator=ann", "progress", "static/label.js", "none", "/wrong/"]
)
def test_every_response_forbids_foreign_content(page, path):
    headers = page().client.get(path).headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["form-action"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert "img-src" not in policy and "connect-src" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


def test_pages_are_not_kept_by_the_browser_and_hold_no_script(page):
    site = page()
    site.answer("left")
    for path in ("", "compare?annotator=ann", "progress"):
        found = site.client.get(path)
        assert found.headers["cache-control"] == "no-store"
        assert re.findall(r"<script[^>]*>", found.text) == ['<script src="static/label.js" defer>']
        assert " style=" not in found.text and " on" not in "".join(
            re.findall(r"<[^>]+>", found.text)
        )


def test_no_other_file_is_served(page):
    site = page()
    for path in ("static/../app.py", "static/%2e%2e/app.py", "static//etc/passwd", "static/"):
        assert site.client.get(path).status_code == 404


# What is shown


def test_pair_is_shown_blind(page, tmp_path):
    site = page()
    shown = site.show()
    assert all(text in shown for text in ("prompt 0", "first 0", "second 0"))
    assert not any(word in shown for word in ("completion_a", "chosen", "rejected"))


def test_sides_on_the_page_are_those_of_the_answer(page, tmp_path):
    site = page(write_pairs(tmp_path / "f.jsonl", 30))
    expected = []
    while (item := site.item()) is not None:
        left = unescape(re.search(r'id="left".*?</section>', site.show(), re.DOTALL)[0])
        assert (f"first {item}" in left) != (f"second {item}" in left)
        expected.append((item, "ann", "a" if f"first {item}" in left else "b"))
        site.answer("left")
    assert labels(site) == expected
    assert {label for _, _, label in expected} == {"a", "b"}


def test_chat_is_shown_by_role(page, tmp_path):
    file = tmp_path / "f.jsonl"
    prompt = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]
    file.write_text(json.dumps({"prompt": prompt, "chosen": "x", "rejected": "y"}))
    shown = page(file).show()
    assert re.findall(r'class="role">(\w+)', shown) == ["system", "user"]


def test_plain_text_stays_on_with_the_next_pair(page, tmp_path):
    site = page(write_pairs(tmp_path / "f.jsonl", completion_a="**x**"))
    assert "<strong>x</strong>" in site.show()
    assert "**x**" in site.show(plain="1")
    assert "plain=1" in site.answer("tie", plain="1").headers["location"]


def test_hostile_names_are_text(page):
    site = page()
    site.answer("left", '"><img src=x>')
    for path in ("", "progress", "compare?annotator=%22%3E%3Cimg+src%3Dx%3E"):
        found = site.client.get(path)
        assert found.status_code == 200
        assert "<img" not in found.text and "&lt;img" in found.text


# What is committed


@pytest.mark.parametrize("side", SIDES)
def test_answer_is_committed_before_it_is_acknowledged(page, side):
    site = page()
    found = site.answer(side)
    then = "&decided=0" if side in ("left", "right") else ""
    assert (found.status_code, found.headers["location"]) == (303, f"compare?annotator=ann{then}")
    with sqlite3.connect(site.session.store.path) as other:
        assert other.execute("SELECT count(*) FROM tasks WHERE label IS NOT NULL").fetchone() == (
            1,
        )
    other.close()
    assert "1 of your 3 pairs answered" in site.show()


def test_strength_is_asked_after_the_choice_and_reason_with_it(page):
    site = page()
    assert 'name="strength"' not in site.show()
    asked = site.answer("left", reason="  why & how <b> é  ", tab=1).headers["location"]
    shown = site.client.get(asked).text
    assert all(text in shown for text in ("prompt 0", "Left is better.", 'name="strength"'))
    assert 'name="side"' not in shown
    assert site.client.get(asked).text == shown, "a reload asks again"
    said = site.post("strength", item=0, chosen="left", strength="2")
    assert said.headers["location"].endswith("=ann")
    (one,) = site.session.store.answers()
    assert (one.strength, one.reason) == (2, "why & how <b> é")
    assert "prompt 1" in site.client.get(asked).text, "what was said is asked no more"


def test_strength_that_is_not_said_or_not_asked_leaves_the_answer_as_it_is(page):
    site = page()
    site.answer("right")
    site.post("strength", item=0, chosen="right", strength="")
    assert site.item() == 1
    assert [one.strength for one in site.session.store.answers()] == [None]
    site = page(asks_strength=False)
    assert site.answer("left").headers["location"] == "compare?annotator=ann"
    assert "prompt 2" in site.show(decided="1")


def test_strength_of_a_tie_and_of_anothers_answer_is_refused(page):
    site = page(overlap=2)
    site.answer("tie")
    site.answer("left", "bob")
    for item in ("0", "1"):
        said = site.post("strength", item=item, chosen="left", strength="3")
        assert "notice=answered" in said.headers["location"]
        assert "prompt 1" in site.show(decided=item)
    assert "prompt 1" in site.show(decided="9" * 30)
    assert [one.strength for one in site.session.store.answers()] == [None, None]


def test_strength_belongs_to_the_choice_that_its_page_shows(page):
    """One tab asks how much better the left one is; another takes that back and says right."""
    site = page()
    shown = site.client.get(site.answer("left").headers["location"]).text
    form = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', shown))
    site.post("undo")
    right = site.client.get(site.answer("right").headers["location"]).text
    said = site.post("strength", **form, strength="3")
    assert "answered already, in another tab" in site.client.get(said.headers["location"]).text
    assert [one.strength for one in site.session.store.answers()] == [None]
    form = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', right))
    site.post("strength", **form, strength="1")
    assert [one.strength for one in site.session.store.answers()] == [1]


def test_undo_shows_the_pair_again_with_what_was_said(page):
    site = page()
    site.answer("left", reason='"quoted"')
    site.post("strength", item=0, chosen="left", strength="2")
    site.answer("right")
    assert site.item() == 2
    site.post("undo")
    assert site.item() == 1
    site.post("undo")
    assert site.item() == 0
    assert 'value="&#34;quoted&#34;"' in site.show()
    assert 'name="side"' in site.show(decided="0"), "the choice is asked again"
    assert labels(site) == []
    assert "notice=nothing" in site.post("undo").headers["location"]


def open_tab(site, address: str = "compare?annotator=ann") -> str:
    """Which tab a page says that it is in."""
    return re.search(r'name="tab" value="(\w*)"', site.client.get(address).text)[1]


def test_undo_takes_back_what_was_answered_in_the_same_tab_only(page):
    site = page()
    first, second = open_tab(site), open_tab(site)
    assert first != second
    site.answer("tie", tab=first)
    site.answer("both_bad", tab=second)
    site.answer("skip", tab=second)
    shown = site.client.get(site.post("undo", tab=first).headers["location"]).text
    assert "prompt 0" in shown
    assert labels(site) == [(1, "ann", "both_bad"), (2, "ann", "skip")]
    again = site.client.get(site.post("undo", tab=first).headers["location"]).text
    assert "This tab has no answer to take back" in again
    assert labels(site) == [(1, "ann", "both_bad"), (2, "ann", "skip")]
    for left in ([(1, "ann", "both_bad")], []):
        site.post("undo", tab=second)
        assert labels(site) == left
    assert "notice=nothing" in site.post("undo", tab=second).headers["location"]


def test_undo_in_a_tab_that_changed_its_name_leaves_the_first_names_answers(page):
    site = page(overlap=2)
    tab = open_tab(site)
    site.answer("tie", "ann", tab=tab)
    site.answer("skip", "bob", tab=tab)
    site.post("undo", "bob", tab=tab)
    assert "notice=nothing" in site.post("undo", "bob", tab=tab).headers["location"]
    assert labels(site) == [(0, "ann", "tie")]


def test_a_tab_stays_the_same_through_answers_reloads_and_every_link_of_its_pages(page):
    site = page()
    shown = site.client.get("compare?annotator=ann")
    tab = open_tab(site, str(shown.url))
    then = site.answer("left", tab=tab).headers["location"]
    asked = site.client.get(then).text
    assert open_tab(site, then) == tab
    plain, progress, names = (unescape(one) for one in re.findall(r'<a href="([^"]+)"', asked))
    assert open_tab(site, plain) == tab
    back = unescape(re.search(r'href="([^"]+)">Back', site.client.get(progress).text)[1])
    for address in (names, back):
        welcome = site.client.get(address).text
        assert open_tab(site, address) == tab, "for a name that is typed"
        named = unescape(re.search(r'href="(compare[^"]+)"', welcome)[1])
        assert open_tab(site, named) == tab
    site.post("undo", tab=tab)
    assert labels(site) == []


def test_same_pair_answered_from_two_tabs_counts_once_and_is_said(page):
    site = page()
    item = site.item()
    assert site.item() == item, "both tabs show the same"
    site.post("answer", side="tie", item=item)
    second = site.post("answer", side="both_bad", item=item)
    assert labels(site) == [(item, "ann", "tie")]
    shown = site.client.get(second.headers["location"]).text
    assert "answered already, in another tab" in shown


def test_two_annotators_in_two_tabs_answer_under_their_own_names(page):
    site = page(overlap=2)
    for _ in range(3):
        site.answer("tie", "ann")
        site.answer("both_bad", "bob")
    assert labels(site) == [
        (n, *one) for n in range(3) for one in (("ann", "tie"), ("bob", "both_bad"))
    ]
    assert site.item("cyd") is None
    assert "Nothing is left for cyd" in site.show("cyd")


def test_progress_tells_agreement_and_who_did_what(page):
    site = page(overlap=2)
    for name, sides in (("ann", ("tie", "both_bad", "left")), ("bob", ("tie", "tie", "skip"))):
        for side in sides:
            site.answer(side, name)
    text = site.client.get("progress").text
    assert "50% equal on 2 items" in text
    assert "2 of 3 pairs have 2" in text
    cells = re.findall(r"<t[hd]>([^<]*)</t[hd]>", text.partition("<tbody>")[2])
    assert cells[:5] == ["ann", "1", "1", "1", "0"]
    assert cells[6:] == ["bob", "0", "2", "0", "1", "–"]


def test_only_named_annotators_may_answer(page):
    site = page(annotators=["ann", "bob"])
    assert site.client.get("compare?annotator=eve").status_code == 403
    assert site.post("answer", "eve", side="left", item=0).status_code == 403
    assert site.post("undo", "eve").status_code == 403
    welcome = site.client.get("").text
    assert "annotator=ann" in welcome and "annotator=bob" in welcome and "<input" not in welcome


# What is refused


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"side": "up"}, "side must be one of left, right"),
        ({"side": None}, "side must be one of left, right"),
        ({"item": "3"}, "item must be the number of a pair"),
        ({"item": "-1"}, "item must be the number of a pair"),
        ({"item": "x"}, "item must be the number of a pair"),
        ({"item": "²"}, "item must be the number of a pair"),
        ({"item": "9" * 5000}, "item must be the number of a pair"),
        ({"reason": "x" * 2001}, "at most 2000 characters"),
        ({"annotator": " "}, "1 to 40 printable characters"),
        ({"annotator": "a\x00b"}, "1 to 40 printable characters"),
    ],
)
def test_what_the_page_does_not_send_is_refused_by_name(page, values, message):
    site = page()
    given = {"annotator": "ann", "side": "left", "item": site.item(), **values}
    found = site.client.post("answer", data={k: v for k, v in given.items() if v is not None})
    assert found.status_code == 400
    assert message in unescape(found.text)
    assert labels(site) == []


@pytest.mark.parametrize(
    "values",
    [{"strength": "4"}, {"strength": "²"}, {"item": "3"}, {"chosen": "tie"}, {"chosen": ""}],
)
def test_strength_that_the_page_does_not_send_is_refused(page, values):
    site = page()
    site.answer("left")
    found = site.post("strength", **{"item": "0", "chosen": "left", "strength": "1", **values})
    assert found.status_code == 400
    assert [one.strength for one in site.session.store.answers()] == [None]


@pytest.mark.parametrize(
    ("body", "status"), [(b"\xff\xfe", 400), (b"a=1&" * 50, 400), (b"x" * 10**6, 413)]
)
def test_bodies_that_are_no_form_are_refused(page, body, status):
    assert page().client.post("answer", content=body).status_code == status


@pytest.mark.parametrize("action", ["answer", "strength", "undo"])
def test_looking_changes_no_answer(page, action):
    assert page().client.get(f"{action}?annotator=ann&item=0&side=left").status_code == 405


def test_longest_reason_in_any_script_is_taken(page):
    site = page()
    assert site.answer("left", reason="\U0001f600" * 2000).status_code == 303


def test_failing_disk_is_said_and_nothing_acknowledged(page):
    site = page()
    item = site.item()
    site.session.store._database.execute("PRAGMA query_only = 1")
    found = site.post("answer", side="left", item=item)
    assert found.status_code == 500
    assert "Nothing was saved" in found.text
    site.session.store._database.execute("PRAGMA query_only = 0")
    assert labels(site) == []
    assert site.answer("left").status_code == 303


# What is asked, and what is left


def test_question_and_guidelines_are_shown_and_hold_no_markup_of_their_own(page):
    site = page(question="Which <b>explains</b> better?", guidelines="# Rules\n\n- short <i>x</i>")
    shown = site.show()
    assert "Which &lt;b&gt;explains&lt;/b&gt; better?" in shown
    assert "<li>short &lt;i&gt;x&lt;/i&gt;</li>" in shown
    assert '<details class="guidelines" open>' in shown
    site.answer("tie")
    assert '<details class="guidelines">' in site.show(), "open until the first answer"
    assert "Guidelines" not in page().show()


def test_the_page_looks_as_the_other_pages_do(page):
    site = page()
    assert 'href="static/page.css"' in site.show()
    found = site.client.get("static/page.css")
    assert found.headers["content-type"].startswith("text/css")
    assert found.text == style()


def test_everyone_sees_their_own_progress_and_the_last_what_to_do_next(page):
    site = page(overlap=2)
    for _ in range(3):
        site.answer("left", "ann")
    site.answer("tie", "bob")
    assert "3 of your 3 pairs" in site.show("ann")
    assert "1 of your 3 pairs" in site.show("bob")
    # The first pair has its two answers: two are left for somebody new.
    assert site.session.num_open("cas") == 2
    assert "--export" not in site.show("ann")
    for _ in range(2):
        site.answer("right", "bob")
    assert "pairs.jsonl --export answers.jsonl" in unescape(site.show("bob"))


def test_a_pair_that_was_skipped_is_open_to_others_and_to_nobody_twice(page):
    site = page()
    site.answer("skip", "ann")
    assert "1 of your 3 pairs" in site.show("ann")
    assert "0 of your 3 pairs" in site.show("bob")
