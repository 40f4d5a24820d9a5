"""Every layout of judged completions becomes the same label; every unusable row says why."""

from __future__ import annotations

import pytest

from penchant.data.records import Label
from penchant.data.rows import labels
from penchant.data.rows.labels import recognise_label, to_label
from penchant.data.rows.row import RowError


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


SYSTEM = {"role": "system", "content": "Be kind."}
TEXT_ROW = {"prompt": "Hi", "completion": "good", "label": True}
CHAT_LABEL = Label((user("Hi"),), (assistant("good"),), True, "f:1")


def convert(row, layout=None):
    return to_label(row, layout, "f:1")


def refusal(row, layout=None):
    with pytest.raises(RowError) as caught:
        convert(row, layout)
    return caught.value


@pytest.mark.parametrize("completion", ["completion", "response"])
@pytest.mark.parametrize("label", ["label", "desirable", "thumbs_up"])
def test_fields_go_by_their_usual_names_and_other_columns_are_ignored(completion, label):
    row = {"prompt": "Hi", completion: "good", label: True, "topic": "x", "label_source": "human"}
    assert recognise_label(row) is labels.TEXT
    assert convert(row) == Label("Hi", "good", True, "f:1")


def test_null_under_the_usual_name_leaves_the_field_to_the_other():
    row = {"prompt": "Hi", "completion": None, "response": "good", "label": None, "thumbs_up": 0}
    assert convert(row) == Label("Hi", "good", False, "f:1")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [user("Hi")], "completion": [assistant("good")]},
        {"prompt": [user("Hi")], "completion": "good"},
        {"prompt": "Hi", "completion": [assistant("good")]},
        {"prompt": "Hi", "completion": [user("Hi"), assistant("good")]},
        {"prompt": [user("Hi")], "completion": [user("Hi"), assistant("good")]},
        {"messages": [user("Hi"), assistant("good")]},
    ],
    ids=["messages", "text completion", "text prompt", "whole chat", "prompt repeated", "messages"],
)
def test_chat_is_one_label_however_it_is_given(row):
    assert convert({**row, "label": True}) == CHAT_LABEL


def test_the_last_message_of_a_whole_chat_is_the_completion():
    tool = {"role": "tool", "content": "4"}
    before = [SYSTEM, user("2+2?"), assistant("calculating"), tool]
    row = {"messages": [*before, assistant("It is 4")], "label": False}
    assert recognise_label(row) is labels.WHOLE_CHAT
    assert convert(row) == Label(tuple(before), (assistant("It is 4"),), False, "f:1")
    two = {**row, "messages": [*before, assistant("It is"), assistant("4")]}
    assert refusal(two).reason == "prompt does not end with the user"


GOOD = [True, 1, 1.0, "true", "TRUE", "1", "1.0", "+1", " Good ", "desirable", "thumbs up"]
GOOD += ["Thumbs_Up", "thumbs-up", "up", "Positive", "yes", "👍"]
BAD = [False, 0, 0.0, -1, -1.0, "false", "False", "0", "0.0", "-1", "BAD", "undesirable"]
BAD += ["thumbs down", "thumbs_down", "THUMBS-DOWN", "down", "negative", "No", "👎"]


@pytest.mark.parametrize(
    ("value", "desirable"), [*((v, True) for v in GOOD), *((v, False) for v in BAD)], ids=repr
)
def test_every_usual_way_to_say_good_or_bad_is_understood(value, desirable):
    assert convert({**TEXT_ROW, "label": value}).desirable is desirable


@pytest.mark.parametrize("value", ["maybe", "", "tie", 2, 0.5, -2, float("nan"), [True], {}, "10"])
@pytest.mark.parametrize("field", ["label", "thumbs_up"])
def test_any_other_label_is_refused_with_field_value_and_accepted_forms(field, value):
    error = refusal({"prompt": "Hi", "completion": "good", field: value})
    assert error.reason == "unknown label"
    assert f"'{field}' must be one of true/false, 1/0, +1/-1, good/bad" in error.detail
    assert "👍/👎" in error.detail
    assert repr(value) in error.detail


@pytest.mark.parametrize(
    ("change", "reason", "told"),
    [
        ({"prompt": " "}, "empty prompt", "the prompt has no text"),
        ({"prompt": []}, "empty prompt", "'prompt' is an empty list"),
        ({"completion": "\n"}, "empty completion", "'completion'"),
        ({"completion": []}, "empty completion", "'completion' is an empty list"),
        ({"completion": None, "response": ""}, "empty completion", "'response'"),
        ({"completion": "\ud800"}, "invalid text", "'completion'"),
        ({"prompt": 5}, "wrong type", "'prompt' must be a string or a list of messages, got int 5"),
        ({"completion": 5}, "wrong type", "'completion'"),
        ({"completion": [user("Hi")]}, "completion is not the assistant's", "role 'user' ('Hi')"),
        ({"completion": [SYSTEM, assistant("x")]}, "prompt mismatch", "'Hi'"),
        ({"completion": [{"role": "bot", "content": "x"}]}, "unknown role", "completion[0].role"),
        ({"completion": None}, "missing field", "'completion' is null"),
        ({"prompt": None}, "missing field", "'prompt' is null"),
        ({"prompt": [user("Hi"), assistant("x")]}, "prompt does not end with the user", "'x'"),
    ],
)
def test_row_that_cannot_be_trained_on_is_refused_for_what_is_wrong(change, reason, told):
    error = refusal({**TEXT_ROW, **change})
    assert error.reason == reason
    assert told in error.detail


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([user("Hi"), assistant("x"), user("And?")], "completion is not the assistant's"),
        ([assistant("x")], "empty prompt"),
        ([SYSTEM, assistant("x")], "prompt does not end with the user"),
        ([user("Hi"), assistant(" ")], "empty completion"),
        ([], "empty completion"),
        ("Hi", "wrong type"),
    ],
)
def test_whole_chat_without_a_judged_answer_is_refused(messages, reason):
    assert refusal({"messages": messages, "label": True}).reason == reason


def test_missing_field_names_the_other_names_it_may_have():
    error = refusal({"prompt": "Hi", "answer": "good", "label": True})
    assert error.reason == "missing field"
    assert error.detail == (
        "'completion' is absent; the layout 'prompt, completion, label (text)' needs it, under "
        "this name or as response (the row has: prompt, answer, label)"
    )
    error = refusal({"prompt": "Hi", "completion": "good"})
    assert "'label' is absent" in error.detail
    assert "under this name or as desirable or thumbs_up" in error.detail
    assert "'label' is absent" in refusal({"messages": [user("Hi"), assistant("x")]}).detail


def test_row_in_another_layout_than_the_rows_before_names_both():
    error = refusal({"messages": [user("Hi"), assistant("x")], "label": 1}, labels.TEXT)
    assert error.reason == "mixed formats"
    assert labels.TEXT.name in error.detail
    assert labels.WHOLE_CHAT.name in error.detail


@pytest.mark.parametrize("row", [None, "text", ["prompt"], 3])
def test_row_that_is_no_object_is_refused(row):
    assert recognise_label(row) is None
    assert refusal(row).reason == "wrong type"


def test_pairs_are_no_labels():
    pair = {"prompt": "Hi", "chosen": "good", "rejected": "bad"}
    voted = {"prompt": "Hi", "completion_a": "one", "completion_b": "two", "label": "a"}
    assert recognise_label(pair) is None
    assert recognise_label(voted) is None
