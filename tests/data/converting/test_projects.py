"""Other projects' layouts are read and written; a round trip loses nothing, and losses are told."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penchant.cli.main import main
from penchant.data.converting.convert import convert
from penchant.data.converting.templates import BUILTIN, ChatTemplate
from penchant.data.read import read_pairs
from penchant.data.records import DataError


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def turn(role, content):
    return {"role": role, "content": content}


CHAT = {
    "prompt": [
        turn("system", "Be brief."),
        turn("user", "hi"),
        turn("assistant", "ho"),
        turn("user", " q\n"),
    ],
    "chosen": [turn("assistant", "good ☃")],
    "rejected": [turn("assistant", "bad")],
    "margin": 2.5,
    "agreement": 0.75,
    "source": "forum",
    "rows": [1, 2],
}
SHORT = {**CHAT, "prompt": [turn("user", "q")]}
LABEL = {
    "prompt": [turn("system", "s"), turn("user", "q")],
    "completion": [turn("assistant", "yes")],
    "label": True,
    "source": "forum",
}


@pytest.mark.parametrize("project", ["axolotl", "llama-factory"])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_pairs_survive_the_way_to_another_project_and_back(tmp_path, project, suffix):
    source, there = jsonl(tmp_path / "p.jsonl", [CHAT, SHORT]), tmp_path / f"there.{suffix}"
    assert "not kept" not in convert(source, project, there).summary()
    convert(there, "trl", tmp_path / "back.jsonl")
    assert rows_of(tmp_path / "back.jsonl") == [CHAT, SHORT]


@pytest.mark.parametrize("project", ["axolotl", "llama-factory"])
def test_labels_survive_the_way_to_another_project_and_back(tmp_path, project):
    rows = [LABEL, {**LABEL, "prompt": [turn("user", "q")], "label": False}]
    convert(jsonl(tmp_path / "l.jsonl", rows), project, tmp_path / "there.jsonl")
    convert(tmp_path / "there.jsonl", "trl", tmp_path / "back.jsonl", origin=project)
    assert rows_of(tmp_path / "back.jsonl") == rows


def test_openai_holds_texts_and_tools_and_says_what_it_does_not(tmp_path):
    rows = [{**CHAT, "tools": [], "parallel_tool_calls": True}]
    done = convert(jsonl(tmp_path / "p.jsonl", rows), "openai", tmp_path / "there.jsonl")
    (row,) = rows_of(tmp_path / "there.jsonl")
    assert row == {
        "input": {"messages": CHAT["prompt"], "tools": [], "parallel_tool_calls": True},
        "preferred_output": CHAT["chosen"],
        "non_preferred_output": CHAT["rejected"],
    }
    assert done.lost == {
        f"column '{name}', for which openai has no place": 1
        for name in ("margin", "agreement", "source", "rows")
    }
    assert "not kept: column 'margin', for which openai has no place (1 row)" in done.summary()
    convert(tmp_path / "there.jsonl", "pairs", tmp_path / "back.jsonl")
    (back,) = rows_of(tmp_path / "back.jsonl")
    assert back == {k: rows[0][k] for k in back} and back["tools"] == []


SAMPLES = {
    "axolotl chat_template": {
        "messages": "q",
        "chosen": turn("assistant", "good"),
        "rejected": "bad",
    },
    "axolotl intel": {"system": "", "question": "q", "chosen": "good", "rejected": "bad"},
    "llama-factory sharegpt": {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "good"},
        "rejected": {"from": "gpt", "value": "bad"},
    },
    "llama-factory alpaca": {
        "instruction": "q",
        "input": "",
        "chosen": "good",
        "rejected": "bad",
    },
    "openai": {
        "input": {"messages": [turn("user", "q")], "tools": [], "parallel_tool_calls": True},
        "preferred_output": [turn("assistant", "good")],
        "non_preferred_output": [turn("assistant", "bad")],
    },
    "trl without a prompt": {
        "chosen": [turn("user", "q"), turn("assistant", "good")],
        "rejected": [turn("user", "q"), turn("assistant", "bad")],
    },
}


@pytest.mark.parametrize("name", SAMPLES)
def test_each_published_layout_becomes_the_same_pair(tmp_path, name):
    convert(jsonl(tmp_path / "s.jsonl", [SAMPLES[name]]), "pairs", tmp_path / "o.jsonl")
    (pair,) = read_pairs(tmp_path / "o.jsonl").records
    assert pair.prompt == (turn("user", "q"),)
    assert pair.chosen == (turn("assistant", "good"),)
    assert pair.rejected == (turn("assistant", "bad"),)


def test_columns_of_two_layouts_are_an_error_that_shows_both_and_how_to_say_which(tmp_path):
    row = {"conversations": [turn("user", "p")], "messages": [turn("user", "q")]}
    source = jsonl(tmp_path / "p.jsonl", [{**row, "chosen": "good", "rejected": "bad"}])
    with pytest.raises(DataError, match=r"say which with from \(axolotl or llama-factory\)"):
        convert(source, "trl", tmp_path / "o.jsonl")
    convert(source, "trl", tmp_path / "o.jsonl", origin="axolotl")
    assert rows_of(tmp_path / "o.jsonl")[0]["prompt"] == row["messages"]


def test_reasoning_and_tools_go_along_and_nothing_read_is_called_lost(tmp_path):
    thought = {**turn("assistant", "good"), "reasoning_content": "because"}
    row = {**SHORT, "chosen": [thought], "tools": [{"name": "f"}]}
    done = convert(jsonl(tmp_path / "p.jsonl", [row]), "axolotl", tmp_path / "there.jsonl")
    assert not done.lost
    convert(tmp_path / "there.jsonl", "trl", tmp_path / "back.jsonl")
    assert rows_of(tmp_path / "back.jsonl") == [row]
    shared = {"conversations": [{"from": "human", "value": "q"}]}
    sides = {name: {"from": "gpt", "value": name} for name in ("chosen", "rejected")}
    source = jsonl(tmp_path / "s.jsonl", [{**shared, **sides}])
    assert not convert(source, "trl", tmp_path / "trl.jsonl").lost


@pytest.mark.parametrize(
    ("row", "project", "reason"),
    [
        (
            {**SHORT, "chosen": [{**turn("assistant", "x"), "reasoning": "because"}]},
            "llama-factory",
            "message that says more than its text",
        ),
        ({"prompt": "q", "chosen": "x", "rejected": "y"}, "openai", "text in place of chat"),
        (
            {**CHAT, "prompt": [turn("user", "x"), turn("user", "y")]},
            "llama-factory",
            "turns do not alternate",
        ),
        (
            {**CHAT, "prompt": [turn("developer", "x"), turn("user", "y")]},
            "llama-factory",
            "turns do not alternate",
        ),
    ],
)
def test_row_that_a_layout_cannot_hold_is_refused_by_name(tmp_path, row, project, reason):
    rows = [row, SHORT] if "conv" in project or row["prompt"] != "q" else [row]
    source, output = jsonl(tmp_path / "p.jsonl", rows), tmp_path / "o.jsonl"
    if len(rows) == 1:
        with pytest.raises(DataError, match=f"no row of .* can be converted\n.*{reason}"):
            convert(source, project, output)
    else:
        assert f"1 refused: {reason}" in convert(source, project, output).summary()


TURNS = [turn("assistant", "Let me look."), turn("tool", "It is 7.")]
SEVERAL = {
    "prompt": [turn("user", "q")],
    "chosen": [*TURNS, turn("assistant", "GOOD")],
    "rejected": [*TURNS, turn("assistant", "BAD")],
}


@pytest.mark.parametrize("project", ["axolotl", "llama-factory", "openai"])
def test_answers_of_several_messages_are_not_cut_to_their_first(tmp_path, project):
    """Both begin alike: cut, chosen would be what rejected is."""
    source, output = jsonl(tmp_path / "p.jsonl", [SEVERAL, SHORT]), tmp_path / "o.jsonl"
    summary = convert(source, project, output).summary()
    assert "1 refused: completion of several messages" in summary
    assert "p.jsonl:1: the layout holds one message as an answer, got assistant, tool" in summary
    convert(output, "trl", tmp_path / "back.jsonl")
    (back,) = rows_of(tmp_path / "back.jsonl")
    assert (back["chosen"], back["rejected"]) == (SHORT["chosen"], SHORT["rejected"])


@pytest.mark.parametrize("project", ["axolotl", "llama-factory"])
def test_labels_of_several_messages_are_not_cut_and_lose_none_to_the_prompt(tmp_path, project):
    several = {"prompt": SEVERAL["prompt"], "completion": SEVERAL["chosen"], "label": True}
    source, output = jsonl(tmp_path / "l.jsonl", [several, LABEL]), tmp_path / "o.jsonl"
    assert "1 refused: completion of several messages" in convert(source, project, output).summary()
    assert len(rows_of(output)) == 1


def test_openai_has_no_labels(tmp_path):
    source = jsonl(tmp_path / "l.jsonl", [LABEL])
    with pytest.raises(DataError, match="openai has no layout of labels; convert to pairs first"):
        convert(source, "openai", tmp_path / "o.jsonl")


def test_fields_of_messages_that_records_do_not_hold_are_counted(tmp_path):
    row = {**SHORT, "prompt": [{**turn("user", "q"), "weight": 0.5}]}
    done = convert(jsonl(tmp_path / "p.jsonl", [row]), "llama-factory", tmp_path / "o.jsonl")
    assert done.lost == {"'weight' of a message": 1}


def test_labelled_rows_become_pairs_with_their_agreement_and_ties_are_counted(tmp_path):
    row = {"prompt": "q", "completion_a": "x", "completion_b": "y", "label": "b"}
    rows = [{**row, "votes": ["b", "b", "a"]}, {**row, "label": "tie", "votes": ["tie"]}]
    done = convert(jsonl(tmp_path / "p.jsonl", rows), "pairs", tmp_path / "o.jsonl")
    (pair,) = read_pairs(tmp_path / "o.jsonl").records
    assert (pair.chosen, pair.agreement) == ("y", pytest.approx(2 / 3))
    assert "1 tie left out" in done.summary() and "not kept: votes" in done.summary()


# Kinds


def test_pairs_of_one_prompt_come_back_from_labels_as_they_were_with_their_columns(tmp_path):
    rows = [{**SHORT, "chosen": [turn("assistant", f"good {n}")], "margin": n} for n in range(3)]
    convert(jsonl(tmp_path / "p.jsonl", rows), "labels", tmp_path / "l.jsonl")
    convert(tmp_path / "l.jsonl", "pairs", tmp_path / "back.jsonl")
    assert rows_of(tmp_path / "back.jsonl") == rows


def test_prompts_are_written_once_each_in_their_order(tmp_path):
    rows = [{"prompt": p, "chosen": "x", "rejected": "y"} for p in "abacb"]
    done = convert(jsonl(tmp_path / "p.jsonl", rows), "prompts", tmp_path / "o.jsonl")
    assert rows_of(tmp_path / "o.jsonl") == [{"prompt": p} for p in "abc"]
    assert "wrote 3 prompts" in done.summary()


# Strings and chat


def test_strings_become_single_messages_and_back(tmp_path):
    rows = [{"prompt": "q", "chosen": "x", "rejected": "y"}]
    convert(jsonl(tmp_path / "p.jsonl", rows), None, tmp_path / "chat.jsonl", text="chat")
    (row,) = rows_of(tmp_path / "chat.jsonl")
    assert row["prompt"] == [turn("user", "q")] and row["chosen"] == [turn("assistant", "x")]
    convert(tmp_path / "chat.jsonl", None, tmp_path / "back.jsonl", text="strings")
    assert rows_of(tmp_path / "back.jsonl") == rows


WORDS = st.text("ab \n☃<|:", min_size=1, max_size=8).filter(str.strip)


@settings(max_examples=60)
@given(st.lists(WORDS, min_size=1, max_size=5).filter(lambda w: len(w) % 2), WORDS, st.booleans())
def test_a_template_is_read_both_ways(words, answer, system):
    roles = ("user", "assistant")
    prompt = tuple(turn(roles[n % 2], word) for n, word in enumerate(words))
    prompt = (turn("system", "s"), *prompt) if system else prompt
    template = ChatTemplate.load("chatml")
    strings = template.to_strings(prompt, (turn("assistant", answer),))
    assert template.to_messages(*strings) == (prompt, (turn("assistant", answer),))
    assert strings[0].endswith("<|im_start|>assistant\n")


def test_transcripts_of_hh_are_the_template_human_assistant():
    template = ChatTemplate.load("human_assistant")
    prompt, chosen = template.to_strings((turn("user", "hi"),), (turn("assistant", "ho"),))
    assert (prompt, chosen) == ("\n\nHuman: hi\n\nAssistant:", " ho")
    assert template.to_messages(prompt, chosen) == (
        (turn("user", "hi"),),
        (turn("assistant", "ho"),),
    )


def test_template_file_makes_strings_and_names_rows_it_cannot_undo(tmp_path):
    file = tmp_path / "t.jinja"
    file.write_text(BUILTIN["chatml"].replace("m['content']", "m['content'] | trim"))
    done = convert(
        jsonl(tmp_path / "p.jsonl", [SHORT, CHAT]),
        None,
        tmp_path / "o.jsonl",
        text="strings",
        template=file,
    )
    assert done.lost == {"chat as it was: t.jinja does not give it back whole": 1}
    first, _ = rows_of(tmp_path / "o.jsonl")
    assert first["prompt"] == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    assert first["chosen"] == "good ☃<|im_end|>\n"
    back = tmp_path / "back.jsonl"
    convert(tmp_path / "o.jsonl", None, back, text="chat", template=file)
    assert rows_of(back)[0] == SHORT


def test_tokenizer_folder_gives_its_template_and_end_token(tmp_path):
    config = {"chat_template": "{{ messages[-1]['content'] + eos_token }}", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert ChatTemplate.load(tmp_path).render([turn("user", "q")]) == "q</s>"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"to": None}, "nothing to convert to"),
        ({"to": "openai", "origin": "huggingface"}, "from must be one of trl"),
        ({"to": "openai", "text": "html"}, "text must be chat or strings"),
        ({"to": "openai", "template": "chatml"}, "give text as chat or strings too"),
        ({"to": None, "text": "chat", "template": "nowhere"}, "no chat template at nowhere"),
    ],
)
def test_impossible_setting_is_named(tmp_path, options, told):
    with pytest.raises(DataError, match=told):
        convert(jsonl(tmp_path / "p.jsonl", [CHAT]), output=tmp_path / "o.jsonl", **options)


def test_memory_does_not_grow_with_the_file(tmp_path):
    def peak(rows, to):
        source = tmp_path / f"{rows}.jsonl"
        with source.open("w") as stream:
            for n in range(rows):
                row = {"prompt": f"q{n // 2}", "completion": f"{n} " * 100, "label": n % 2}
                stream.write(json.dumps(row) + "\n")
        tracemalloc.start()
        convert(source, to, tmp_path / f"{rows}.{to}.jsonl")
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(100, "pairs")
    assert peak(5_000, "pairs") < 350_000  # of 2.6 MB


def test_command_takes_from_and_text(tmp_path, capsys):
    row = {"system": "s", "prompt": "q", "chosen": "good", "rejected": "bad"}
    words = [str(jsonl(tmp_path / "p.jsonl", [row])), "--to", "openai", "--from", "axolotl"]
    output = tmp_path / "o.jsonl"
    assert main(["data", "convert", *words, "--output", str(output)]) == 0
    assert "layout: axolotl (system, question or prompt" in capsys.readouterr().out
    assert rows_of(output)[0]["input"]["messages"] == [turn("system", "s"), turn("user", "q")]
