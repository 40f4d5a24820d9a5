"""Reward models and judges on benchmarks: the scores of every answer, by subset, and their JSON."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import penchant
from penchant.cli.main import main
from penchant.commands.benchmark import benchmark, rankings_of
from penchant.commands.judge_benchmark import judge_each
from penchant.core.errors import ConfigError
from penchant.core.length_control import length_controlled
from penchant.core.ranking import ties_score
from penchant.data.benchmarks import Question
from penchant.data.records import DataError


@pytest.fixture(scope="module")
def reward_run(
    tmp_path_factory: pytest.TempPathFactory, tiny_keys: dict[str, Any], held_out_file: Path
) -> Any:
    """A reward model that has learned to prefer yes to no, on plain texts."""
    output = tmp_path_factory.mktemp("reward") / "run"
    keys = {**tiny_keys, "eval_data": str(held_out_file), "num_train_epochs": 4}
    return penchant.train("reward", output=output, **keys)


def scored(run: Any, load_saved: Any, prompt: str, answer: str) -> float:
    """By transformers and PEFT alone."""
    import torch
    import transformers

    model = load_saved(run.model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(run.model)
    model.config.pad_token_id = tokenizer.pad_token_id
    ids = tokenizer(prompt + answer)["input_ids"] + [tokenizer.eos_token_id]
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([ids])).logits)


def test_best_of_four_is_the_share_of_questions_whose_right_answer_scores_highest(
    reward_run: Any, load_saved: Any
) -> None:
    answers = [" yes", " no", " no sir", " yes!"]
    rows = [
        {"prompt": "Is 3 so?", "chosen": [one], "rejected": [a for a in answers if a != one]}
        for one in answers
    ]
    for number, row in enumerate(rows):
        row["subset"] = "Focus" if number < 2 else "Math"  # type: ignore[assignment]
    found = benchmark(model=reward_run.output, data=rows)
    scores = [scored(reward_run, load_saved, "Is 3 so?", one) for one in answers]
    best = scores.index(max(scores))
    focus, maths = found.ranking.subsets
    assert (focus.name, focus.num, maths.name) == ("Focus", 2, "Math")
    assert (focus.accuracy.mean, maths.accuracy.mean) == ((0.5, 0) if best < 2 else (0, 0.5))
    assert found.ranking.total.accuracy.mean == 0.25
    assert found.ranking.rule == "the mean of the subsets"
    # One prompt alone excludes nothing.
    assert (focus.accuracy.low, focus.accuracy.high) == (0, 1)
    assert found.evaluation.score_mean == pytest.approx(sum(scores) / 4, abs=1e-4)
    assert (found.evaluation.num_examples, found.evaluation.margin) == (4, None)


def test_lengths_are_those_of_right_answers_against_the_others() -> None:
    texts = [
        ("four", "two2", "six666"),
        ("a" * 10, "b", "ccc"),
        ("a", "bb", "cccc"),
        ("a", "b", "c"),
    ]
    questions = [Question("p", answers, 1, "", "", f"rows:{i}") for i, answers in enumerate(texts)]
    scores = [[0.0, 1.0, 2.0], [2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [3.0, 1.0, 2.0]]
    found = rankings_of({"rows": list(zip(questions, scores, strict=True))}, {})["rows"]
    longer = [4 - (4 + 6) / 2, 10 - 2, 1 - 3, 0]
    expected = length_controlled([0.0, 1.0, 0.0, 1.0], longer, ["p"] * 4)
    assert found.total.equal_length == expected
    assert expected is not None and expected.slope > 0


def test_a_source_without_scores_is_named_and_the_others_are_ranked(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("penchant"), "propagate", True)
    question = Question("p", ("yes", "no"), 1, "", "", "rows:1")
    good, bad = [(question, [1.0, 0.0])], [(question, [math.nan, 0.0])]
    found = rankings_of({"good": good, "bad": bad, "all": good + bad}, {})
    assert {name: one.total.accuracy.mean for name, one in found.items()} == {"good": 1, "all": 1}
    # Once for each handler that other tests have left.
    assert set(caplog.messages) == {
        "bad is not measured: no question has scores of all its answers"
    }
    with pytest.raises(ConfigError, match="no question of bad, worse has scores of all its ans"):
        rankings_of({"bad": bad, "worse": bad, "all": bad + bad}, {})
    with pytest.raises(ConfigError, match="no question of the data has scores"):
        rankings_of({"": bad}, {})


def test_ties_are_scored_beside_their_twins(reward_run: Any, load_saved: Any) -> None:
    tied = {"prompt": "Is 3 so?", "chosen": [" yes", " yes!"], "rejected": [" no", " no!"]}
    ref = {"prompt": "Is 4 so?", "chosen": [" yes"], "rejected": [" no", " no sir"]}
    rows = [{**tied, "id": "tied:1"}, {**ref, "id": "ref:1"}, {**tied, "id": "tied:2"}]
    rows = [{**row, "subset": "Ties"} for row in rows]
    found = benchmark(model=reward_run.output, data=rows).ranking
    scores = [
        [scored(reward_run, load_saved, str(row["prompt"]), answer) for answer in answers]
        for row in (tied, ref)
        for answers in [[*row["chosen"], *row["rejected"]]]
    ]
    assert found.total.accuracy.mean == pytest.approx(ties_score(scores[0], 2, scores[1], 1))
    assert found.total.accuracy.mean > 0.5  # so that it has learned what is asked here
    assert found.total.num == 1  # tied:2 has no twin
    with pytest.raises(DataError, match=r"'id' must be ref:N or tied:N.*got 'x'"):
        benchmark(model=reward_run.output, data=[{**rows[0], "id": "x"}])


def test_pairs_give_what_training_reported_and_subsets_beside_it(
    reward_run: Any, held_out_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in held_out_file.read_text().splitlines()]
    data = tmp_path / "pairs.jsonl"
    topics = ("odd", "even")
    data.write_text("".join(
        json.dumps({**row, "topic": topics[i % 2]}) + "\n" for i, row in enumerate(rows)
    ))  # fmt: skip
    words = ["evaluate", "--model", str(reward_run.output), "--columns", "subset=topic"]
    assert main([*words, "--data", str(data), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)[str(data)]
    for name in ("loss", "accuracy", "margin", "calibration_error", "score_mean", "score_std"):
        assert found[name] == pytest.approx(getattr(reward_run.after, name), abs=1e-4), name
    ranking = found["ranking"]
    assert [(row["name"], row["num"]) for row in ranking["subsets"]] == [("odd", 4), ("even", 4)]
    assert ranking["total"]["accuracy"]["mean"] == pytest.approx(found["accuracy"])
    assert ranking["total"]["equal_length"] is None  # each right answer is longer by one letter
    evaluated = penchant.evaluate(model=reward_run.output, data=held_out_file)
    assert evaluated.loss == pytest.approx(reward_run.after.loss, abs=1e-4)
    assert main([*words, "--data", str(data), "--data", str(data)]) == 0
    shown = capsys.readouterr().out
    assert "at equal lengths" in shown and "odd" in shown and "score/mean" not in shown


def test_plain_texts_are_chats_for_a_model_that_was_trained_on_chats(
    classifier: Callable[[int], str], reward_run: Any
) -> None:
    answers = ["yes", "no", "maybe so"]
    plain = [{"prompt": "So?", "chosen": one, "rejected": "no way"} for one in answers]
    chats = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            **{s: [{"role": "assistant", "content": row[s]}] for s in ("chosen", "rejected")},
        }
        for row in plain
    ]
    model = classifier(1)  # with a chat template, and of no run that says what it was trained on
    of_plain, of_chats = (benchmark(model=model, data=rows) for rows in (plain, chats))
    assert of_plain.evaluation.margin == pytest.approx(of_chats.evaluation.margin, abs=1e-6)
    of_plain, of_chats = (benchmark(model=reward_run.output, data=rows) for rows in (plain, chats))
    assert abs(of_plain.evaluation.score_mean - of_chats.evaluation.score_mean) > 1e-3  # type: ignore[operator]


def test_what_goes_together_is_said(
    reward_run: Any, tiny_model_dir: Path, held_out_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = ["--model", str(reward_run.output)], ["--data", str(held_out_file)]
    for words, message in (
        ([*model], "one of --data, --prompts and --tasks; got none of them"),
        ([*model, *data, "--tasks", "a"], "got --data and --tasks"),
        ([*model, *data, "--against", "m"], "--against goes with --prompts, not with --data"),
        ([*model, "--prompts", "p", "--beta", "1"], "--beta goes with --data, not with --prompts"),
        ([*data], "evaluate needs a model"),
        ([*data, "--judge", "j", "--batch_size", "2"], "is measured takes no --batch_size"),
        ([*model, *data, "--judge", "j"], "either --model or --judge is measured"),
        ([*model, *data, "--reference", "r"], "is a reward model, which has no reference"),
    ):
        assert main(["evaluate", *words]) == 1
        assert message in capsys.readouterr().err
    with pytest.raises(ConfigError, match="is no reward model"):
        benchmark(model=tiny_model_dir, data=held_out_file)


def test_a_judge_is_measured_in_both_orders_and_a_tie_counts_half(
    serve_chat: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def answer(text: str) -> str:
        first, second = text.partition("Answer A:")[2].split("Answer B:")
        if "?" in first + second:
            return "Who knows?"
        return f"Verdict: {'B' if len(second) > len(first) else 'A'}"

    judge = serve_chat(answer, model="long")
    settings = tmp_path / "judge.yaml"
    settings.write_text(f"url: {judge.url}\nretries: 0\n")
    pair = {"source": "livebench-math", "question": "Say", "response_A": "much more"}
    rows = [
        {**pair, "response_B": "less", "label": "A>B"},
        {**pair, "response_B": "less", "label": "B>A", "source": "livecodebench"},
        {**pair, "response_B": "much else", "label": "A>B"},  # the first of two equally long ones
        {**pair, "response_B": "what?", "label": "A>B"},
    ]
    found = judge_each({"": rows}, str(settings))[""]
    assert found.judge == "judge long"
    assert (found.contradicted, found.unjudged) == (1, 1)
    assert [(row.name, row.accuracy.mean) for row in found.ranking.subsets] == [
        ("livebench-math", 0.75), ("livecodebench", 0.0)
    ]  # fmt: skip
    assert found.ranking.total.accuracy.mean == pytest.approx(0.5)
    data = tmp_path / "judge-bench.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["evaluate", "--judge", str(settings), "--data", str(data)]) == 0
    assert "1 verdict followed the order: counted as ties, half right" in capsys.readouterr().out
    lists = [{"prompt": "p", "chosen": ["a"], "rejected": ["b", "c", "d"]}]
    with pytest.raises(ConfigError, match="list:1 has 4 answers, and a judge compares two"):
        judge_each({"": lists}, str(settings))


def test_a_judge_that_is_mute_on_one_source_is_measured_on_the_others_and_each_names_its_cost(
    serve_chat: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(text: str) -> str:
        first = text.partition("Answer A:")[2].partition("Answer B:")[0]
        return "Who knows?" if "mute" in text else f"Verdict: {'A' if 'good' in first else 'B'}"

    settings = tmp_path / "judge.yaml"
    settings.write_text(f"url: {serve_chat(answer).url}\nretries: 0\n")
    sources = {
        word: [
            {"prompt": f"{word} {number}", "chosen": "good", "rejected": "bad"}
            for number in range(count)
        ]
        for word, count in (("plain", 2), ("mute", 3))
    }
    found = judge_each(sources, str(settings))
    assert list(found) == ["plain", "all"]
    assert found["plain"].ranking.total.accuracy.mean == 1
    assert found["plain"].usage.startswith("4 asked, 0 known before, 0 tried again, 0 failed")
    assert found["all"].usage.startswith("10 asked, 0 known before, 0 tried again, 6 failed")
    assert (found["plain"].unjudged, found["all"].unjudged) == (0, 3)
    assert "mute is not measured" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="no question of mute has scores of all its answers"):
        judge_each({"mute": sources["mute"]}, str(settings))
