"""Every layout becomes the same pair, and every unusable row says why."""

from __future__ import annotations

import pytest

from penchant.data.records import Label, Pair, fingerprint, prompt_key
from penchant.data.rows import pairs as formats
from penchant.data.rows.pairs import recognise, to_pair
from penchant.data.rows.row import RowError


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def convert(row, layout=None):
    return to_pair(row, layout, "f:1")


def refusal(row, layout=None):
    with pytest.raises(RowError) as caught:
        convert(row, layout)
    return caught.value


CHAT_PAIR = Pair((user("Hi"),), (assistant("good"),), (assistant("bad"),), "f:1")


def test_text_row_becomes_a_text_pair_and_other_columns_are_ignored():
    row = {"prompt": "Hi", "chosen": "good", "rejected": "bad", "topic": 2.0, "votes": ["a"]}
    assert recognise(row) is formats.TEXT
    assert convert(row) == Pair("Hi", "good", "bad", "f:1")


@pytest.mark.parametrize(
    ("message", "read"),
    [
        ({"from": "gpt", "value": "x"}, assistant("x")),
        ({"role": "model", "parts": [{"text": "x"}, {"text": "y"}]}, assistant("x\ny")),
        ({"role": "assistant", "content": [{"type": "text", "text": "x"}]}, assistant("x")),
        (
            {"role": "assistant", "content": "x", "reasoning_content": "because", "id": 7},
            {**assistant("x"), "reasoning_content": "because"},
        ),
        (
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]},
            {**assistant(""), "tool_calls": [{"function": {"name": "f"}}]},
        ),
        (
            {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
            {
                **assistant(""),
                "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}],
            },
        ),
    ],
)
@pytest.mark.parametrize("as_list", [True, False], ids=["list", "message"])
def test_messages_of_every_usual_form_are_read_with_what_they_say(message, read, as_list):
    row = {"prompt": [user("Hi")], "chosen": [assistant("no")], "rejected": message}
    assert convert({**row, "chosen": assistant("no")}).chosen == (assistant("no"),)
    row = {**row, "rejected": [message] if as_list else message}
    assert convert(row).rejected == (read,)


@pytest.mark.parametrize("roles", [("human", "observation"), ("user", "tool")])
def test_roles_of_other_projects_are_read_as_ours(roles):
    asked, answered = ({"role": role, "content": "x"} for role in roles)
    row = {"prompt": [asked, answered], "chosen": "good", "rejected": "bad"}
    assert [one["role"] for one in convert(row).prompt] == ["user", "tool"]


def test_answers_that_differ_in_their_reasoning_alone_are_a_pair():
    sides = [{**assistant("two"), "reasoning_content": text} for text in ("1+1", "I guess")]
    pair = convert({"prompt": "1+1?", "chosen": sides[:1], "rejected": sides[1:]})
    assert pair.chosen != pair.rejected


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("history", [["Who?", "Tim."]], "history beside the prompt"),
        ("input", "a text to rewrite", "input beside the prompt"),
        ("context", "what is known", "context beside the prompt"),
        ("images", ["a.png"], "images, sound or video"),
        ("tools", [{"name": "f"}], "tools beside a text prompt"),
        ("tools", '[{"name": "f"}]', "tools beside a text prompt"),
    ],
)
def test_part_of_the_prompt_that_stands_beside_it_is_never_dropped(column, value, reason):
    row = {"prompt": "p", "chosen": "yes", "rejected": "no"}
    error = refusal({**row, column: value})
    assert (error.reason, column in error.detail) == (reason, True)
    for nothing in (None, "", []):
        assert convert({**row, column: nothing}).prompt == "p"


def test_images_are_named_whatever_the_layout():
    assert refusal({"output_1": "a", "image": "x.jpg"}).reason == "images, sound or video"


def test_tools_beside_a_chat_go_to_the_template_with_its_first_message():
    row = {"prompt": [user("p")], "chosen": "yes", "rejected": "no", "tools": [{"name": "f"}]}
    function = {"type": "function", "function": {"name": "f"}}
    assert convert(row).prompt == ({**user("p"), "tools": [function]},)
    assert convert({**row, "tools": [function]}).prompt[0]["tools"] == [function]


def test_system_message_beside_the_prompt_is_refused_rather_than_lost():
    row = {"prompt": "p", "chosen": "yes", "rejected": "no", "system": "Be brief."}
    error = refusal(row)
    assert error.reason == "system beside the prompt"
    assert "--from axolotl --to trl" in error.detail
    assert convert({**row, "system": " "}).prompt == "p"
    labelled = {"prompt": "p", "completion_a": "yes", "completion_b": "no", "label": "a"}
    told = refusal({**labelled, "system": "Be brief."}).detail
    assert "put it into the prompt" in told and "data convert" not in told, "it reads no such row"


def test_system_column_beside_a_chat_that_begins_with_it_is_no_loss():
    prompt = [{"role": "system", "content": "Be brief."}, user("p")]
    row = {"prompt": prompt, "chosen": [assistant("yes")], "rejected": [assistant("no")]}
    assert convert({**row, "system": "Be brief."}) == convert(row)
    assert refusal({**row, "prompt": [user("p")], "system": "Be brief."}).reason == (
        "system beside the prompt"
    )


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [user("Hi")], "chosen": [assistant("good")], "rejected": [assistant("bad")]},
        {"prompt": [user("Hi")], "chosen": "good", "rejected": "bad"},
        {"prompt": "Hi", "chosen": [assistant("good")], "rejected": [assistant("bad")]},
        {
            "prompt": "Hi",
            "chosen": [user("Hi"), assistant("good")],
            "rejected": [user("Hi"), assistant("bad")],
        },
        {
            "prompt": [user("Hi")],
            "chosen": [user("Hi"), assistant("good")],
            "rejected": [user("Hi"), assistant("bad")],
        },
    ],
    ids=["messages", "text completions", "text prompt", "ultrafeedback", "prompt repeated"],
)
def test_chat_with_a_prompt_is_one_pair_however_the_prompt_is_given(row):
    assert recognise(row) is formats.CHAT
    assert convert(row) == CHAT_PAIR


def test_text_prompt_that_the_chats_do_not_ask_is_refused():
    row = {
        "prompt": "Something else",
        "chosen": [user("Hi"), assistant("good")],
        "rejected": [user("Hi"), assistant("bad")],
    }
    error = refusal(row)
    assert error.reason == "prompt mismatch"
    assert "Something else" in error.detail


def test_text_prompt_may_be_an_earlier_turn_of_a_longer_shared_chat():
    turns = [{"role": "system", "content": "Be kind."}, user("Hi"), assistant("Yes?"), user("Go")]
    row = {
        "prompt": "Hi",
        "chosen": [*turns, assistant("good")],
        "rejected": [*turns, assistant("bad")],
    }
    assert convert(row).prompt == tuple(turns)


def test_whole_chats_are_split_at_their_longest_shared_prefix():
    turns = [user("Hi"), assistant("Yes?"), user("Go")]
    row = {"chosen": [*turns, assistant("good")], "rejected": [*turns, assistant("bad")]}
    assert recognise(row) is formats.WHOLE_CHAT
    assert convert(row) == Pair(tuple(turns), (assistant("good"),), (assistant("bad"),), "f:1")


@pytest.mark.parametrize("role", ["user", "tool", "assistant"])
def test_chats_that_part_early_have_completions_of_several_turns(role):
    turns = [assistant("same"), {"role": role, "content": "And?"}, assistant("more")]
    pair = convert({"chosen": [user("Hi"), *turns], "rejected": [user("Hi"), assistant("other")]})
    assert (pair.prompt, pair.chosen) == ((user("Hi"),), tuple(turns))


@pytest.mark.parametrize(
    "turns", [[user("b")], [{"role": "system", "content": "b"}, assistant("c")]]
)
def test_completion_that_ends_with_another_or_has_a_system_message_is_refused(turns):
    row = {"chosen": [user("Hi"), assistant("a"), *turns], "rejected": [user("Hi"), assistant("z")]}
    error = refusal(row)
    assert error.reason == "completion is not the assistant's"
    assert ", ".join(["assistant", *(one["role"] for one in turns)]) in error.detail


def test_completion_after_a_tool_result_keeps_the_tool_message_in_the_prompt():
    turns = [user("2+2?"), assistant("calculating"), {"role": "tool", "content": "4"}]
    row = {"chosen": [*turns, assistant("It is 4")], "rejected": [*turns, assistant("It is 5")]}
    assert convert(row).prompt == tuple(turns)


def test_whole_chats_that_share_nothing_are_refused():
    row = {
        "chosen": [user("Hi"), assistant("good")],
        "rejected": [user("Hello"), assistant("bad")],
    }
    error = refusal(row)
    assert error.reason == "no shared prompt"
    assert "'Hi'" in error.detail
    assert "'Hello'" in error.detail


def test_whole_chat_without_an_answer_is_refused_as_empty():
    row = {"chosen": [user("Hi")], "rejected": [user("Hi"), assistant("bad")]}
    assert refusal(row).reason == "empty completion"


def test_whole_chats_that_part_at_a_user_message_are_refused():
    start = [user("Hi"), assistant("Yes?")]
    row = {
        "chosen": [*start, user("x"), assistant("good")],
        "rejected": [*start, user("y"), assistant("bad")],
    }
    assert refusal(row).reason == "prompt does not end with the user"


def test_explicit_prompt_that_ends_with_the_assistant_is_refused():
    row = {"prompt": [user("Hi"), assistant("Well")], "chosen": "good", "rejected": "bad"}
    assert refusal(row).reason == "prompt does not end with the user"


def test_transcript_becomes_stripped_chat_messages():
    start = "\n\nHuman: Hi \n\nAssistant: Yes?\n\nHuman: Go\n\n1. on\n\nAssistant:"
    row = {"chosen": f"{start} good", "rejected": f"{start} bad\n"}
    assert recognise(row) is formats.TRANSCRIPT
    assert convert(row) == Pair(
        (user("Hi"), assistant("Yes?"), user("Go\n\n1. on")),
        (assistant("good"),),
        (assistant("bad"),),
        "f:1",
    )


def test_transcripts_that_part_early_have_completions_of_several_turns():
    row = {
        "chosen": "\n\nHuman: Hi\n\nAssistant: a\n\nHuman: b\n\nAssistant: c",
        "rejected": "\n\nHuman: Hi\n\nAssistant: z",
    }
    assert convert(row).chosen == (assistant("a"), user("b"), assistant("c"))


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        ("\n\nHuman: Hi\n\nAssistant: ", "empty completion"),
        ("\n\nHuman: Hi\n\nAssistant: a\n\nHuman: b", "completion is not the assistant's"),
        ("\n\nHuman: Hi\n\nHuman: b\n\nAssistant: c", "completion is not the assistant's"),
        ("\n\nHuman: Other\n\nAssistant: a", "no shared prompt"),
        ("Title\n\nHuman: Hi\n\nAssistant: a", "not a transcript"),
        ("\n\nHuman: Hi\n\nAssistant:  z ", "chosen equals rejected"),
    ],
)
def test_transcript_that_cannot_be_a_pair_is_refused(chosen, reason):
    assert refusal({"chosen": chosen, "rejected": "\n\nHuman: Hi\n\nAssistant: z"}).reason == reason


@pytest.mark.parametrize(("label", "chosen"), [("a", "one"), ("B", "two"), (" A ", "one")])
def test_label_decides_which_completion_is_chosen(label, chosen):
    row = {"prompt": "Hi", "completion_a": "one", "completion_b": "two", "label": label}
    assert recognise(row) is formats.LABELLED_TEXT
    assert convert(row).chosen == chosen


def test_labelled_messages_become_a_chat_pair():
    row = {
        "prompt": [user("Hi")],
        "completion_a": [assistant("bad")],
        "completion_b": [assistant("good")],
        "label": "b",
    }
    assert recognise(row) is formats.LABELLED_CHAT
    assert convert(row) == CHAT_PAIR


@pytest.mark.parametrize("label", ["tie", "Tie", "TIE"])
def test_tie_is_no_pair_and_no_error(label):
    row = {"prompt": "Hi", "completion_a": "same", "completion_b": "same", "label": label}
    assert convert(row) is None


@pytest.mark.parametrize("label", ["c", "", 1, True])
def test_unknown_label_is_refused_with_its_value(label):
    row = {"prompt": "Hi", "completion_a": "one", "completion_b": "two", "label": label}
    error = refusal(row)
    assert error.reason == "unknown label"
    assert repr(label) in error.detail


def test_refusal_of_a_labelled_row_names_the_users_field():
    row = {"prompt": "Hi", "completion_a": "one", "completion_b": " ", "label": "a"}
    error = refusal(row)
    assert error.reason == "empty completion"
    assert "completion_b" in error.detail


def test_strings_without_prompt_or_turns_are_refused_with_the_fix():
    error = refusal({"chosen": "good", "rejected": "bad"})
    assert error.reason == "missing field"
    assert "add a 'prompt' field" in error.detail


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"prompt": "Hi", "chosen": "good"}, "rejected"),
        ({"prompt": "Hi", "chosen": "good", "rejected": None}, "rejected"),
        ({"prompt": "Hi", "completion_a": "x", "completion_b": "y"}, "label"),
        ({"prompt": "Hi", "completion_a": "x", "label": "a"}, "completion_b"),
        ({}, "prompt"),
    ],
)
def test_missing_field_is_named(row, field):
    error = refusal(row)
    assert error.reason == "missing field"
    assert f"'{field}'" in error.detail


@pytest.mark.parametrize(
    ("change", "got"),
    [
        ({"prompt": 5}, "int 5"),
        ({"chosen": {"text": "x"}}, "dict"),
        ({"rejected": 1.5}, "float 1.5"),
        ({"rejected": float("nan")}, "float nan"),
        ({"chosen": [assistant("x")]}, "'chosen' is a list and 'rejected' is a str"),
    ],
)
def test_wrong_type_names_the_field_and_the_type(change, got):
    error = refusal({"prompt": "Hi", "chosen": "good", "rejected": "bad", **change})
    assert error.reason == "wrong type"
    assert next(iter(change)) in error.detail
    assert got in error.detail


@pytest.mark.parametrize(
    ("message", "reason", "detail"),
    [
        ("hello", "wrong type", "'chosen[0]' must be a message"),
        ({"from": "gpt", "text": "x"}, "missing field", "it has: from, text"),
        ({"role": "assistant", "content": None}, "missing field", "content"),
        ({"role": "bot", "content": "x"}, "unknown role", "'bot'"),
        ({"role": 3, "content": "x"}, "wrong type", "chosen[0].role"),
        (
            {"role": "assistant", "content": "x", "reasoning_content": ["because"]},
            "wrong type",
            "chosen[0].reasoning_content",
        ),
        ({"role": "assistant", "content": "x", "name": 5}, "wrong type", "chosen[0].name"),
        ({"role": "assistant", "content": [{"text": 1}]}, "wrong type", "content[0].text"),
        (
            {"role": "assistant", "content": [{"type": "refusal", "text": "x"}]},
            "part that is not text",
            "content[0]",
        ),
        (
            {"role": "assistant", "content": [{"text": "x"}, {"type": "image", "image": "a.png"}]},
            "images, sound or video",
            "content[1] has 'image', and no processor of images",
        ),
        (
            {"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": "u"}}]},
            "images, sound or video",
            "content[0] has 'image_url'",
        ),
        (
            {"role": "assistant", "content": "x", "images": ["a.png"]},
            "images, sound or video",
            "images",
        ),
    ],
)
def test_bad_message_is_refused_with_its_place(message, reason, detail):
    error = refusal({"prompt": [user("Hi")], "chosen": [message], "rejected": [assistant("bad")]})
    assert error.reason == reason
    assert detail in error.detail


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompt": " \n"}, "empty prompt"),
        ({"prompt": []}, "empty prompt"),
        ({"prompt": [user("  ")]}, "empty prompt"),
        ({"chosen": ""}, "empty completion"),
        ({"rejected": " \t\n"}, "empty completion"),
        ({"chosen": [], "rejected": [assistant("x")]}, "empty completion"),
        ({"chosen": [assistant(" ")], "rejected": [assistant("x")]}, "empty completion"),
        ({"chosen": "bad"}, "chosen equals rejected"),
        ({"chosen": [assistant("x")], "rejected": [assistant("x")]}, "chosen equals rejected"),
        (
            {"prompt": [user("Hi")], "chosen": [user("x")], "rejected": [assistant("y")]},
            "completion is not the assistant's",
        ),
        ({"chosen": "lone surrogate \ud800"}, "invalid text"),
    ],
)
def test_pair_that_teaches_nothing_is_refused(change, reason):
    assert refusal({"prompt": "Hi", "chosen": "good", "rejected": "bad", **change}).reason == reason


def test_row_in_another_layout_than_the_rows_before_names_both():
    error = refusal({"prompt": "Hi", "chosen": "x", "rejected": "y"}, layout=formats.LABELLED_TEXT)
    assert error.reason == "mixed formats"
    assert formats.TEXT.name in error.detail
    assert formats.LABELLED_TEXT.name in error.detail


def test_plain_strings_among_transcripts_or_chats_are_refused_for_what_they_are():
    row = {"chosen": "good", "rejected": "bad"}
    assert refusal(row, formats.TRANSCRIPT).reason == "not a transcript"
    assert refusal(row, formats.WHOLE_CHAT).reason == "wrong type"


@pytest.mark.parametrize("row", [None, "text", ["prompt"], 3])
def test_row_that_is_no_object_is_refused(row):
    assert refusal(row).reason == "wrong type"


def test_fingerprint_follows_content_and_order_but_not_place():
    one, two = Pair("p", "a", "b", "f:1"), Pair("p", "c", "d", "f:2")
    moved = Pair("p", "a", "b", "g:9")
    assert fingerprint([one, two]) == fingerprint([moved, two])
    assert fingerprint([one, two]) != fingerprint([two, one])
    assert fingerprint([one]) != fingerprint([Pair("p", "b", "a", "f:1")])


def test_fingerprint_covers_margin_and_agreement_only_where_they_are_known():
    # Worked out before pairs had either: runs are resumed by it.
    assert fingerprint([Pair("p", "a", "b", "f:1")]) == "ce106c7d37fdc14372efc51b9b84ec87"
    variants = [Pair("p", "a", "b", "f:1", *known) for known in [(), (0.0,), (1.0,), (None, 1.0)]]
    assert len({fingerprint([pair]) for pair in variants}) == 4


def test_fingerprint_of_labels_tells_the_classes_apart():
    good, bad = Pair("p", "a", "b", "f:1").labels()
    assert fingerprint([good]) == fingerprint([Label("p", "a", True, "g:2")])
    assert fingerprint([good]) != fingerprint([Label("p", "a", False, "f:1")])
    assert fingerprint([good, bad]) != fingerprint([bad, good])


def test_prompt_key_tells_a_chat_from_the_same_text():
    assert prompt_key(CHAT_PAIR) != prompt_key(Pair("Hi", "good", "bad", "f:1"))
    reordered = Pair(({"content": "Hi", "role": "user"},), (assistant("x"),), (assistant("y"),), "")
    assert prompt_key(CHAT_PAIR) == prompt_key(reordered)
