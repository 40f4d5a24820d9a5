"""Prompts come out of every form of data, and what their rows say besides stays with them."""

from __future__ import annotations

import gzip
import json

import pytest

from penchant.data.opening import MissingDataError
from penchant.data.prompts import Prompt, read_prompts
from penchant.data.records import DataError
from penchant.data.tokenise import Tokeniser
from penchant.models.load import load_tokenizer

USER = {"role": "user", "content": "Why?"}
ANSWER = {"role": "assistant", "content": "Because."}
MORE = {"role": "user", "content": "Really?"}


def texts(rows):
    return [one.prompt for one in read_prompts(rows).records]


def test_gsm8k_rows_give_the_question_and_keep_the_answer(shared):
    data = read_prompts(shared / "data" / "gsm8k-train-1000.jsonl", strict=True)
    assert len(data.records) == 1000
    assert data.records[0].prompt.startswith("Natalia sold clips")
    assert data.records[0].fields["answer"].endswith("#### 72")
    assert data.records[16].where == "gsm8k-train-1000.jsonl:17"


def test_every_other_column_stays_in_the_fields():
    (one,) = read_prompts([{"prompt": "a", "answer": 3, "meta": {"id": [1]}}]).records
    assert one == Prompt("a", {"answer": 3, "meta": {"id": [1]}}, "list:1")


@pytest.mark.parametrize(
    ("row", "prompt", "fields"),
    [
        ({"question": "q", "answer": "a"}, "q", {"answer": "a"}),
        ({"query": "q", "id": 1}, "q", {"id": 1}),
        ({"instruction": "do", "input": "this", "output": "o"}, "do\n\nthis", {"output": "o"}),
        ({"instruction": "do", "input": "", "output": "o"}, "do", {"output": "o"}),
        ({"instruction": "do"}, "do", {}),
        ({"prompt": "p", "question": "q"}, "p", {"question": "q"}),
        ({"prompt": [USER]}, (USER,), {}),
        ({"messages": [USER, ANSWER]}, (USER,), {"messages": [USER, ANSWER]}),
        ({"messages": [USER, ANSWER, MORE]}, (USER, ANSWER, MORE), None),
        ({"prompt": "p", "messages": [USER, ANSWER]}, "p", {"messages": [USER, ANSWER]}),
    ],
)
def test_each_name_of_a_prompt_is_recognised(row, prompt, fields):
    (found,) = read_prompts([row]).records
    assert found.prompt == prompt
    assert fields is None or found.fields == fields


def test_pairs_give_each_distinct_prompt_once_in_order():
    rows = [
        {"prompt": prompt, "chosen": f"good {n}", "rejected": "bad"}
        for n, prompt in enumerate(["a", "b", "a"])
    ]
    data = read_prompts(rows)
    assert [one.prompt for one in data.records] == ["a", "b"]
    assert data.records[0].fields == {"chosen": "good 0", "rejected": "bad"}
    assert data.repeated == 1
    assert "1 row with a prompt read before left out" in data.summary()


def test_a_pair_without_preference_still_gives_its_prompt():
    tie = {"prompt": "a", "completion_a": "x", "completion_b": "y", "label": "tie"}
    assert texts([tie]) == ["a"]
    assert texts([{"prompt": "a", "chosen": "same", "rejected": "same"}]) == ["a"]


def test_prompts_of_chats_are_messages_as_in_training():
    assert texts([{"chosen": [USER, ANSWER], "rejected": [USER, {**ANSWER, "content": "No"}]}]) == [
        (USER,)
    ]
    assert texts([{"prompt": "Why?", "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "N"}]}])
    assert texts([{"messages": [USER, ANSWER], "label": True}]) == [(USER,)]
    assert texts([{"prompt": "p", "completion": "c", "label": False}]) == ["p"]


def test_rows_of_the_same_prompt_stay_apart_where_no_pair_repeats_it():
    assert texts([{"prompt": "a", "answer": 1}, {"prompt": "a", "answer": 2}]) == ["a", "a"]


def test_empty_prompts_are_refused_and_counted_with_their_row():
    rows = [{"prompt": "a"}, {"prompt": "  "}, {"prompt": None}, {"prompt": "b"}]
    data = read_prompts(rows)
    assert [one.prompt for one in data.records] == ["a", "b"]
    assert [(one.where, one.reason) for one in data.refused] == [
        ("list:2", "empty prompt"),
        ("list:3", "missing field"),
    ]
    assert "2 rows refused" in data.summary()
    with pytest.raises(DataError, match=r"list:2: empty prompt"):
        read_prompts(rows, strict=True)


def test_nothing_usable_names_the_layouts_that_are():
    with pytest.raises(DataError, match=r"no row of the list is a prompt(.|\n)*question"):
        read_prompts([{"text": "a"}])
    with pytest.raises(DataError, match=r"'question' must be a string, got int 3"):
        read_prompts([{"question": 3}])
    with pytest.raises(DataError, match="holds no rows"):
        read_prompts([])


def test_a_chat_that_the_user_does_not_end_is_refused():
    with pytest.raises(DataError, match="prompt does not end with the user"):
        read_prompts([{"prompt": [USER, ANSWER]}])


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz"])
def test_a_text_file_gives_one_prompt_a_line(tmp_path, suffix):
    path = tmp_path / f"prompts{suffix}"
    content = b"Once upon\r\n\n  a time \nlast"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    found = read_prompts(str(path)).records
    assert [one.prompt for one in found] == ["Once upon", "  a time ", "last"]
    assert [one.where for one in found] == [f"{path.name}:{n}" for n in (1, 3, 4)]


def test_a_missing_text_file_is_not_looked_for_on_the_hub():
    with pytest.raises(MissingDataError, match="no such file"):
        read_prompts("data/prompts.txt")


def test_tables_and_datasets_keep_every_column(tmp_path):
    import datasets

    rows = [{"question": "q", "answer": "a", "level": 2}]
    dataset = datasets.Dataset.from_list(rows)
    dataset.to_parquet(tmp_path / "rows.parquet")
    dataset.to_csv(tmp_path / "rows.csv")
    dataset.save_to_disk(tmp_path / "saved")
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    for source in (dataset, *(tmp_path / n for n in ("rows.parquet", "saved", "rows.json"))):
        (one,) = read_prompts(source).records
        assert (one.prompt, one.fields) == ("q", {"answer": "a", "level": 2})
    (one,) = read_prompts(tmp_path / "rows.csv").records
    assert (one.prompt, one.fields) == ("q", {"answer": "a", "level": "2"})


def test_the_fingerprint_covers_prompts_and_fields_but_not_places(tmp_path):
    rows = [{"prompt": "a", "answer": "1"}]
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(rows[0]))
    same = read_prompts(path).fingerprint
    assert same == read_prompts(rows).fingerprint
    assert same != read_prompts([{"prompt": "a", "answer": "2"}]).fingerprint
    assert same != read_prompts([{"prompt": "b", "answer": "1"}]).fingerprint


def test_prompts_are_cut_on_the_left_and_counted(tiny_model_dir):
    tokenizer = load_tokenizer(str(tiny_model_dir))
    tokeniser = Tokeniser(tokenizer, max_length=16, max_prompt_length=4)
    found, report = tokeniser.prompts(
        read_prompts([{"prompt": "abcdefg"}, {"prompt": "xy"}]).records
    )
    assert [tokenizer.decode(one.prompt) for one in found] == ["defg", "xy"]
    assert (found[0].where, found[0].record.prompt) == ("list:1", "abcdefg")
    assert found[1].group([[5], [6]]).completions == ([5], [6])
    assert (report.num_examples, report.prompts_cut, report.longest_prompt) == (2, 1, 4)
    assert report.summary() == (
        "2 prompts tokenised; longest prompt 4 tokens; "
        "1 prompts cut on the left (max_prompt_length)"
    )


def test_chat_prompts_end_where_the_assistant_starts(tiny_model_dir):
    tokenizer = load_tokenizer(str(tiny_model_dir))
    tokeniser = Tokeniser(tokenizer, max_length=128, max_prompt_length=100)
    (one,), _ = tokeniser.prompts(read_prompts([{"prompt": [USER]}]).records)
    assert tokenizer.decode(one.prompt) == (
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_objects_beside_a_prompt_stay_what_a_reward_function_expects():
    row = {"prompt": "p?", "info": {"answer": "4"}, "tests": {"text": "assert f(1) == 2"}}
    (prompt,) = read_prompts([row]).records
    assert prompt.fields == {"info": {"answer": "4"}, "tests": {"text": "assert f(1) == 2"}}
