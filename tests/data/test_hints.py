"""Raw feedback and other projects' layouts are refused by name, with the command to run."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from penchant.audit import inspect
from penchant.cli.main import main
from penchant.data.named_words import parse_columns
from penchant.data.opening import Sources
from penchant.data.prompts import read_prompts
from penchant.data.read import read_pairs
from penchant.data.read_labels import read_labels
from penchant.data.records import DataError
from penchant.data.rows.readable import as_text
from penchant.label.reading import read_comparisons

SIDES = {"prompt": "p?", "completion_a": "yes", "completion_b": "no"}
TURN = {"role": "user", "content": "p?"}
YES, NO = {"role": "assistant", "content": "yes"}, {"role": "assistant", "content": "no"}
HEARD = [{"from": "human", "value": "p?"}]
ROWS = {
    "votes": ({**SIDES, "votes": ["a", "b", "a"]}, "votes", "build"),
    "ratings": (
        {"prompt": "p?", "completions": ["yes", "no"], "ratings": [5, 1]},
        "ratings",
        "build",
    ),
    "ratings within": (
        {
            "instruction": "p?",
            "completions": [
                {"response": "yes", "overall_score": 5},
                {"response": "no", "overall_score": 1},
            ],
        },
        "ratings",
        "build",
    ),
    "ranking": (
        {"prompt": "p?", "completions": ["yes", "no"], "ranks": [1, 2]},
        "ranking",
        "build",
    ),
    "chats": ({"messages": [TURN, NO, YES]}, "chats", "build"),
    "chats that go on": (
        {
            "conversation_a": [TURN, YES, TURN, YES],
            "conversation_b": [TURN, NO, TURN, NO],
            "winner": "model_a",
        },
        "label",
        "build",
    ),
    "axolotl": ({"messages": [TURN], "chosen": YES, "rejected": NO}, "axolotl", "convert"),
    "axolotl, lists": (
        {"messages": [TURN], "chosen": [YES], "rejected": [NO]},
        "axolotl",
        "convert",
    ),
    "intel": (
        {"system": "s", "question": "p?", "chosen": "yes", "rejected": "no"},
        "axolotl",
        "convert",
    ),
    "sharegpt": (
        {
            "conversations": HEARD,
            "chosen": {"from": "gpt", "value": "yes"},
            "rejected": {"from": "gpt", "value": "no"},
        },
        "llama-factory",
        "convert",
    ),
    "alpaca": (
        {"instruction": "p?", "input": "", "chosen": "yes", "rejected": "no"},
        "llama-factory",
        "convert",
    ),
    "openai": (
        {
            "input": {"messages": [TURN]},
            "preferred_output": [YES],
            "non_preferred_output": [NO],
        },
        "openai",
        "convert",
    ),
}
READERS = {"pairs": read_pairs, "labels": read_labels, "inspect": inspect}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ROWS)
def test_layout_is_named_and_the_command_makes_it_readable(
    tmp_path, monkeypatch, capsys, name, reader
):
    row, layout, tool = ROWS[name]
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "raw.jsonl", [row])
    with pytest.raises(DataError, match=layout) as refused:
        READERS[reader]("raw.jsonl")
    command = str(refused.value).splitlines()[-1]
    assert command.strip().startswith(f"penchant data {tool} raw.jsonl ")
    assert main(shlex.split(command)[1:]) == 0, capsys.readouterr().err
    assert len(read_pairs("pairs.jsonl").records) == 1


def test_labels_of_another_project_become_labels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = [*HEARD, {"from": "gpt", "value": "yes"}]
    rows = [{"conversations": said, "kto_tag": tag} for tag in (True, False)]
    write(tmp_path / "raw.jsonl", rows)
    with pytest.raises(DataError, match="llama-factory") as refused:
        read_labels("raw.jsonl")
    assert main(shlex.split(str(refused.value).splitlines()[-1])[1:]) == 0
    assert len(read_labels("labels.jsonl").records) == 2


def test_where_columns_fit_several_layouts_the_commands_named_work(tmp_path):
    row = {"conversations": HEARD, "messages": [TURN], "chosen": YES, "rejected": NO}
    path = write(tmp_path / "raw.jsonl", [row])
    with pytest.raises(DataError, match="--from axolotl ") as refused:
        read_pairs(path)
    for command in str(refused.value).splitlines()[1:]:
        assert main([*shlex.split(command)[1:-1], str(tmp_path / "pairs.jsonl")]) == 0
        (tmp_path / "pairs.jsonl").unlink()


OTHER_NAMES = {
    "request": ({"request": "p?", "chosen": "yes", "rejected": "no"}, "prompt=request"),
    "responses": (
        {"prompt": "p?", "better_response": "yes", "worse_response": "no"},
        "chosen=better_response,rejected=worse_response",
    ),
    "problem": (
        {"problem": "p?", "positive": "yes", "negative": "no"},
        "prompt=problem,chosen=positive,rejected=negative",
    ),
    "accepted": (
        {"input": "p?", "accepted": "yes", "rejected": "no"},
        "prompt=input,chosen=accepted",
    ),
    "capitals": (
        {"Prompt": "p?", "Chosen": "yes", "Rejected": "no"},
        "prompt=Prompt,chosen=Chosen,rejected=Rejected",
    ),
    "stems": (
        {"instruction": "p?", "good_response": "yes", "bad_response": "no"},
        "prompt=instruction,chosen=good_response,rejected=bad_response",
    ),
    "between other words": (
        {"prompt": "p?", "full_chosen": "yes", "full_rejected": "no"},
        "chosen=full_chosen,rejected=full_rejected",
    ),
    "German": (
        {"Frage": "p?", "gut": "yes", "schlecht": "no"},
        "prompt=Frage,chosen=gut,rejected=schlecht",
    ),
    "letters": ({"x": "p?", "y_w": "yes", "y_l": "no"}, "prompt=x,chosen=y_w,rejected=y_l"),
    "Chinese": (
        {"问题": "p?", "好回答": "yes", "坏回答": "no"},
        "prompt=问题,chosen=好回答,rejected=坏回答",
    ),
    "Japanese": (
        {"質問": "p?", "良い回答": "yes", "悪い回答": "no"},
        "prompt=質問,chosen=良い回答,rejected=悪い回答",
    ),
}


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_columns_under_other_names_are_named_and_read_so(tmp_path, name):
    row, columns = OTHER_NAMES[name]
    path = write(tmp_path / "raw.jsonl", [row])
    with pytest.raises(DataError, match=f"--columns '?{re.escape(columns)}"):
        read_pairs(path)
    (pair,) = read_pairs(path, columns=parse_columns(columns)).records
    assert (pair.prompt, pair.chosen, pair.rejected) == ("p?", "yes", "no")


def test_thumbs_under_another_name_are_labels_once_named(tmp_path):
    rows = [{"prompt": "p?", "completion": text, "rating": n} for text, n in (("a", 1), ("b", -1))]
    path = write(tmp_path / "raw.jsonl", rows)
    with pytest.raises(DataError, match="--columns label=rating"):
        read_labels(path)
    assert [one.desirable for one in read_labels(path, columns={"label": "rating"}).records] == [
        True, False,
    ]  # fmt: skip


def test_labels_under_other_names_are_no_pairs_and_the_columns_are_named_for_kto(tmp_path):
    rows = [{"question": "p?", "answer": text, "thumbs_up": good}
            for text, good in (("yes", True), ("no", False))]  # fmt: skip
    path = write(tmp_path / "raw.jsonl", rows)
    with pytest.raises(DataError, match=r"not pairs.*kto --columns (\S+)") as refused:
        read_pairs(path)
    columns = re.search(r"--columns (\S+)", str(refused.value))[1]
    assert [one.desirable for one in read_labels(path, columns=parse_columns(columns)).records] == [
        True, False,
    ]  # fmt: skip


@pytest.mark.parametrize("values", [("A", "B"), ("1", "2"), ("model_a", "model_b")])
def test_two_answers_and_a_verdict_get_the_line_that_builds_pairs(
    tmp_path, monkeypatch, capsys, values
):
    monkeypatch.chdir(tmp_path)
    sides = {"question": "p?", "answer1": "yes", "answer2": "no"}
    write(tmp_path / "raw.jsonl", [{**sides, "verdict": values[0]},
                                   {**sides, "answer1": "no", "answer2": "yes",
                                    "verdict": values[1]}])  # fmt: skip
    with pytest.raises(DataError, match=r"data build raw\.jsonl --columns") as refused:
        read_pairs("raw.jsonl")
    assert main(shlex.split(str(refused.value).splitlines()[-1])[1:]) == 0, capsys.readouterr().err
    assert [pair.chosen for pair in read_pairs("pairs.jsonl").records] == ["yes", "yes"]


LEFT = {"prompt": "p?", "response_a": "yes", "response_b": "no"}
TO_BUILD = {
    "votes in a list": [{**LEFT, "annotations": ["a", "b", "a"]}],
    "votes in columns": [{**LEFT, "rater_1": 1, "rater_2": 1, "rater_3": 2}],
    "ranked lists": [{"prompt": "p?", "responses": ["no", "yes"], "rankings": [2, 1]}],
    "scored lists": [{"prompt": "p?", "answers": ["no", "yes"], "rewards": [0.1, 0.9]}],
    "stars": [{"prompt": "p?", "response": "yes", "stars": 5},
              {"prompt": "p?", "response": "no", "stars": 1}],
    "a judge's signs": [{**LEFT, "label": "[[A>B]]"}],
    "from -3 to 3": [{"question": "p?", "answer_1": "yes", "answer_2": "no", "strength": -2}],
    "half for a tie": [{**LEFT, "score": 1.0}, {**LEFT, "prompt": "q?", "score": 0.5}],
    "a judge's letter": [{**LEFT, "judgment": "[[A]]"}, {**LEFT, "judgment": "[[C]]"}],
    "the better by its name": [{"query": "p?", "answer_x": "yes", "answer_y": "no",
                                "better": "answer_x"}],
    "left and right": [{"prompt": "p?", "left": "no", "right": "yes", "choice": "right"}],
    "lists of good and bad": [{"query": "p?", "pos": ["yes"], "neg": ["no"]}],
    "correct or not, in a list": [{"problem": "p?", "solutions": [
        {"text": "no", "correct": False}, {"text": "yes", "correct": True}]}],
    "correct or not, beside": [{"problem": "p?", "responses": ["no", "yes"],
                                "is_correct": [False, True]}],
    "correct or not, a row each": [{"problem": "p?", "solution": "no", "correct": False},
                                   {"problem": "p?", "solution": "yes", "correct": True}],
    "votes by the answers' names": [{"instruction": "p?", "response-1": "no", "response-2": "yes",
                                     "preference.responses": ["response-2"]}],
    "a table kept by column": [{"question": "p?", "answers": {"text": ["no", "yes"],
                                                              "score": [1, 7]}}],
    "annotations as objects": [{**LEFT, "annotations": [{"who": "x", "preference": "a"},
                                                         {"who": "y", "preference": "a"}]}],
    "the safer one": [{"prompt": "p?", "response_0": "no", "response_1": "yes",
                       "safer_response_id": 1}],
}  # fmt: skip


@pytest.mark.parametrize("name", TO_BUILD)
def test_judgements_under_other_names_get_the_line_that_builds_pairs(
    tmp_path, monkeypatch, capsys, name
):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "raw.jsonl", TO_BUILD[name])
    with pytest.raises(DataError, match=r"data build raw\.jsonl") as refused:
        read_pairs("raw.jsonl")
    assert main(shlex.split(str(refused.value).splitlines()[-1])[1:]) == 0, capsys.readouterr().err
    assert [(pair.chosen, pair.rejected) for pair in read_pairs("pairs.jsonl").records] == [
        ("yes", "no")
    ]


def test_history_beside_answers_of_other_names_gets_the_line_that_converts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = {"history": [["a", "b"]], "question": "p?", "response_chosen": "yes",
           "response_rejected": "no"}  # fmt: skip
    write(tmp_path / "raw.jsonl", [row])
    with pytest.raises(DataError, match="data convert") as refused:
        read_pairs("raw.jsonl")
    assert main(shlex.split(str(refused.value).splitlines()[-1])[1:]) == 0
    (pair,) = read_pairs("pairs.jsonl").records
    assert [one["content"] for one in (*pair.prompt, *pair.chosen)] == ["a", "b", "p?", "yes"]


def test_prompt_that_no_message_says_is_left_out_by_the_option_named(tmp_path):
    row = {"prompt": "a title", "chosen": [TURN, YES], "rejected": [TURN, NO]}
    path = write(tmp_path / "raw.jsonl", [row])
    with pytest.raises(DataError, match="--columns unused_prompt=prompt"):
        read_pairs(path)
    (pair,) = read_pairs(path, columns={"unused_prompt": "prompt"}).records
    assert [one["content"] for one in pair.prompt] == ["p?"]


@pytest.mark.parametrize("turns", [[TURN, YES], [TURN]])
def test_chats_without_a_judgement_are_not_called_judgements(tmp_path, turns):
    path = write(tmp_path / "raw.jsonl", [{"messages": turns}])
    with pytest.raises(DataError) as refused:
        read_pairs(path)
    assert "judgements" not in str(refused.value)


def test_columns_that_parquet_readers_pass_over_are_seen(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "raw.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([ROWS["axolotl"][0]]), path)
    with pytest.raises(DataError, match=r"penchant data convert .*raw\.parquet --to trl"):
        read_pairs(path)


def test_unknown_columns_and_broken_rows_keep_their_own_error(tmp_path):
    path = write(tmp_path / "raw.jsonl", [{"text": "nothing"}, {**SIDES, "label": "neither"}])
    with pytest.raises(DataError, match="recognised layouts"):
        read_pairs(path)


@pytest.mark.parametrize("name", ["context", "documents", "images", "tools"])
def test_what_stands_beside_the_prompt_is_left_out_by_the_option_named(tmp_path, name):
    row = {"prompt": "p?", "chosen": "yes", "rejected": "no", name: [{"name": "a page"}]}
    path = write(tmp_path / "raw.jsonl", [row])
    with pytest.raises(DataError, match=rf"'{name}'.*--columns unused_{name}={name}"):
        read_pairs(path)
    assert len(read_pairs(path, columns={f"unused_{name}": name}).records) == 1


def test_steps_that_are_right_or_wrong_are_no_answers_to_choose_of(tmp_path):
    row = {"prompt": "p?", "completions": ["first", "then"], "labels": [True, False]}
    with pytest.raises(DataError) as refused:
        read_pairs(write(tmp_path / "raw.jsonl", [row]))
    assert "data build" not in str(refused.value)


UNJUDGED = {
    "a chat with its answer": ({"messages": [TURN, YES]}, "answers that nobody has judged"),
    "an instruction": ({"instruction": "p?", "output": "yes"}, "answers that nobody has judged"),
    "ShareGPT": (
        {"conversations": [*HEARD, {"from": "gpt", "value": "yes"}]},
        "answers that nobody has judged",
    ),
    "a prompt": ({"prompt": "p?", "ground_truth": "4"}, "prompts without answers"),
}


@pytest.mark.parametrize("name", UNJUDGED)
def test_rows_without_a_preference_are_said_to_be_so_with_what_takes_their_prompts(tmp_path, name):
    row, held = UNJUDGED[name]
    path = write(tmp_path / "raw.jsonl", [row, row])
    for reader in READERS.values():
        with pytest.raises(DataError, match=held) as refused:
            reader(path)
        command = shlex.split(str(refused.value).splitlines()[-1])
        assert command[:5] == ["penchant", "train", "grpo", "--model", "MODEL"]
        columns = command[command.index("--columns") + 1] if "--columns" in command else ""
        prompts = read_prompts(path, columns=parse_columns(columns)).records
        assert [as_text(one.prompt) for one in prompts] == ["p?", "p?"]


def test_two_answers_without_a_verdict_get_the_line_that_compares_them(tmp_path):
    row = {"question": "p?", "response1": "yes", "response2": "no"}
    path = write(tmp_path / "raw.jsonl", [row])
    with pytest.raises(DataError, match=r"nothing that says which one is better.*\n.*label") as no:
        read_pairs(path)
    columns = parse_columns(re.search(r"--columns (\S+)", str(no.value))[1])
    (pair,) = read_comparisons(Sources.of(path, columns=columns)).records
    assert (pair.prompt, pair.chosen, pair.rejected) == ("p?", "yes", "no")


@pytest.mark.parametrize(("value", "code"), [(6, " --codes 6=SIDE"), ("tie", "")])
def test_a_verdict_that_is_not_understood_is_never_guessed(tmp_path, value, code):
    path = write(tmp_path / "raw.jsonl", [{**LEFT, "rating": value}])
    with pytest.raises(DataError, match=rf"no row of the first 1 prefers(.|\n)*{code} --output"):
        read_pairs(path)


def test_scores_of_several_aspects_are_named_and_the_path_of_one_is_taken(tmp_path):
    scored = [{"text": "no", "scores": {"taste": 1, "length": 9}},
              {"text": "yes", "scores": {"taste": 5, "length": 2}}]  # fmt: skip
    path = write(tmp_path / "raw.jsonl", [{"prompt": "p?", "answers": scored}])
    with pytest.raises(DataError, match=r"ratings=answers\.scores\.taste, here as PATH") as refused:
        read_pairs(path)
    line = str(refused.value).splitlines()[-1].replace("PATH", "answers.scores.taste")
    words = shlex.split(line)[1:-1]
    assert main([*words, str(tmp_path / "pairs.jsonl")]) == 0
    assert [one.chosen for one in read_pairs(tmp_path / "pairs.jsonl").records] == ["yes"]


NESTED = {
    "payload": {"payload": {"request": "p?", "good": "yes", "bad": "no"}},
    "text": {"text": json.dumps({"request": "p?", "good": "yes", "bad": "no"})},
    "viewer": {"row_idx": 0, "row": {"data": {"request": "p?", "good": "yes", "bad": "no"}}},
    "asked and answered": {"inputs": {"request": "p?"}, "outputs": {"good": "yes", "bad": "no"}},
}


@pytest.mark.parametrize("name", NESTED)
def test_columns_of_a_row_within_a_row_are_named_like_its_own(tmp_path, name):
    path = write(tmp_path / "raw.jsonl", [NESTED[name]])
    with pytest.raises(DataError, match="--columns") as refused:
        read_pairs(path)
    columns = parse_columns(re.search(r"--columns (\S+)", str(refused.value))[1])
    (pair,) = read_pairs(path, columns=columns).records
    assert (pair.prompt, pair.chosen, pair.rejected) == ("p?", "yes", "no")


def test_fields_within_a_column_are_named_by_their_path():
    row = {"meta": {"asked": "p?"}, "a": {"better": "yes"}, "b": {"worse": "no"}}
    columns = {"prompt": "meta.asked", "chosen": "a.better", "rejected": "b.worse"}
    (pair,) = read_pairs([row], columns=columns).records
    assert (pair.prompt, pair.chosen, pair.rejected) == ("p?", "yes", "no")


@pytest.mark.parametrize("beside", [{"chosen": "z"}, {"prompt": "z"}, {"annotations": []}])
def test_a_row_within_a_row_that_says_such_things_itself_is_not_taken_apart(beside):
    row = {"data": {"prompt": "p?", "chosen": "yes", "rejected": "no"}, **beside}
    with pytest.raises(DataError):
        read_pairs([row])


def test_the_name_of_a_task_is_no_prompt(tmp_path):
    path = write(tmp_path / "raw.jsonl", [{"task": "math", "chosen": "yes", "rejected": "no"}])
    with pytest.raises(DataError) as refused:
        read_pairs(path)
    assert "prompt=task" not in str(refused.value)


def test_objects_without_a_rank_or_a_score_are_no_traceback(tmp_path):
    path = write(tmp_path / "raw.jsonl", [{"question": "p?", "answers": [{"text": "yes"}] * 2}])
    with pytest.raises(DataError, match="recognised layouts"):
        read_pairs(path)


def test_the_place_of_the_best_that_counts_from_1_is_never_taken_for_one_from_0(tmp_path):
    rows = [{"prompt": "p?", "answers": ["yes", "no"], "winner": 1},
            {"prompt": "q?", "answers": ["no", "yes"], "winner": 2}]  # fmt: skip
    with pytest.raises(DataError, match=r"where it counts from 1, take 1 away: jq -c '\.winner -="):
        read_pairs(write(tmp_path / "raw.jsonl", rows))
    with pytest.raises(DataError, match="if 'winner' counts from 0, so that 1 is the second"):
        read_pairs(write(tmp_path / "less.jsonl", rows[:1]))


@pytest.mark.parametrize("rows", [
    [{"prompt": "p?", "responses": ["no", "yes"], "rank": [1, 0]}],
    [{"prompt": "p?", "response": text, "rank": n} for n, text in enumerate(("yes", "no"))],
])  # fmt: skip
def test_ranks_from_0_are_said_to_be_so(tmp_path, rows):
    with pytest.raises(DataError, match=r"whose 'rank' counts from 0, where 1 is the best"):
        read_pairs(write(tmp_path / "raw.jsonl", rows))
