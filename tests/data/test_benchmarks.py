"""Benchmarks of reward models are read in their own layouts; rows here are of our own words."""

from __future__ import annotations

import json

import pytest

from penchant.data.benchmarks import read_questions
from penchant.data.records import DataError

REWARD_BENCH_2 = {
    "id": "7", "prompt": "Name a colour.", "chosen": ["Red."], "rejected": ["Oak.", "Up.", "No."],
    "num_correct": 1, "num_rejected": 3, "subset": "Factuality", "models": ["a", "b", "c", "d"],
}  # fmt: skip
JUDGE_BENCH = {
    "pair_id": "x", "source": "mmlu-pro-physics", "question": "What falls?", "response_model": "m",
    "response_A": "Clouds.", "response_B": "Stones.", "label": "B>A",
}  # fmt: skip
LLM_BAR = {"input": "Say hello.", "output_1": "Hello.", "output_2": "Bye.", "label": 1}


def test_right_answers_come_first_whatever_the_layout():
    (best_of,) = read_questions([REWARD_BENCH_2]).records
    assert best_of.completions == ("Red.", "Oak.", "Up.", "No.")
    assert (best_of.num_correct, best_of.subset, best_of.key) == (1, "Factuality", "7")
    (judged,) = read_questions([JUDGE_BENCH]).records
    assert (judged.prompt, judged.completions) == ("What falls?", ("Stones.", "Clouds."))
    assert judged.subset == "mmlu-pro"
    first, second = read_questions([LLM_BAR, {**LLM_BAR, "label": 2}]).records
    assert first.completions == second.completions[::-1] == ("Hello.", "Bye.")
    pair = {"prompt": "p", "chosen": "good", "rejected": "bad", "subset": "hep-go", "id": 3}
    (of_pair,) = read_questions([pair]).records
    assert (of_pair.completions, of_pair.subset, of_pair.key) == (("good", "bad"), "hep-go", "3")
    labelled = {"prompt": "p", "completion_a": "x", "completion_b": "y", "topic": "t"}
    rows = [{**labelled, "label": label} for label in ("b", "tie")]
    found = read_questions(rows, columns={"subset": "topic"})
    assert [(one.completions, one.subset) for one in found.records] == [(("y", "x"), "t")]
    assert found.ties == 1


def test_files_without_a_subset_are_subsets_by_folder_or_name(tmp_path):
    for name in ("Natural", "Adversarial/Manual"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "dataset.json").write_text(json.dumps([LLM_BAR]))
    found = read_questions(tmp_path)
    assert [one.subset for one in found.records] == ["Manual", "Natural"]
    assert {one.subset for one in read_questions(tmp_path / "Natural").records} == {""}
    for name in ("gpt", "claude"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(LLM_BAR) + "\n")
    files = [str(tmp_path / f"{name}.jsonl") for name in ("gpt", "claude")]
    assert [one.subset for one in read_questions(files).records] == ["gpt", "claude"]


def test_rows_that_cannot_be_ranked_are_refused_and_counted():
    wrong = [
        JUDGE_BENCH,
        {**JUDGE_BENCH, "label": "A=B"},
        {**JUDGE_BENCH, "response_A": " "},
        {**JUDGE_BENCH, "label": 1},
        LLM_BAR,
    ]
    found = read_questions(wrong)
    assert len(found.records) == 1
    assert [one.where for one in found.refused] == ["list:2", "list:3", "list:4", "list:5"]
    assert "must be A>B or B>A, got 'A=B'" in found.refused[0].detail
    assert found.refused[1].reason == "empty completion"
    with pytest.raises(DataError, match="no row of the list is a question"):
        read_questions([{"text": "nothing"}])
    with pytest.raises(DataError, match="strict allows no refusal"):
        read_questions(wrong, strict=True)
