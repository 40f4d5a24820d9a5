"""Functions are found, called with what they ask for, and their failures name the sample."""

from __future__ import annotations

import json
import math
import shutil
import time
from contextlib import contextmanager

import pytest

from penchant.config.keys import load_config
from penchant.core.errors import ConfigError, ModelError, RewardError
from penchant.data.prompts import Prompt
from penchant.rl.rewards.make import (
    ModelContext,
    RewardOptions,
    Rewards,
    Sample,
    find_rewards,
    make_rewards,
    require_judging,
)

NAN = math.nan


def samples(*completions, prompt="Why?", **columns):
    return [
        Sample(
            prompt,
            text,
            [1, 2],
            [5] * len(text),
            True,
            {name: values[i] for name, values in columns.items()},
            f"prompts.jsonl:{i + 1}",
        )
        for i, text in enumerate(completions)
    ]


def make(*specs, **options):
    chosen = RewardOptions(
        reward=tuple(map(str, specs)), **{"reward_normalization": "none", **options}
    )
    return make_rewards(specs, chosen, ModelContext(tokenizer=None))


def size(completions):
    return [len(text) for text in completions]


def same(found, expected):
    return found == pytest.approx(expected, nan_ok=True)


# Finding and calling


def test_a_function_is_given_only_what_its_signature_names():
    seen = {}

    def judge(completions, answer, missing=3):
        seen.update(completions=completions, answer=answer, missing=missing)
        return [1, 2]

    assert make(judge).score(samples("a", "b", answer=[7, 8], other=[1, 2])).rewards == [1.0, 2.0]
    assert seen == {"completions": ["a", "b"], "answer": [7, 8], "missing": 3}


def test_a_function_with_kwargs_is_given_every_column():
    seen = {}

    def judge(prompts, **rest):
        seen.update(rest, prompts=prompts)
        return [0.0] * len(prompts)

    chat = ({"role": "user", "content": "Why?"},)
    make(judge).score(samples("ab", prompt=chat, answer=[7]))
    assert seen == {
        "prompts": [[{"role": "user", "content": "Why?"}]],
        "rendered_prompts": [""],
        "completions": ["ab"],
        "completion_ids": [[5, 5]],
        "answer": [7],
    }


def test_functions_are_found_in_modules_of_the_working_directory_and_in_files(
    tmp_path, monkeypatch
):
    text = "def judge(completions):\n    return [len(c) for c in completions]\n"
    (tmp_path / "here_is_a_reward.py").write_text(text)
    (tmp_path / "other.py").write_text(text.replace("judge", "other"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    rewards = make("here_is_a_reward:judge", f"{tmp_path}/other.py:other", "length:2")
    found = rewards.score(samples("ab"))
    assert found.by_name == {"judge": [2.0], "other": [2.0], "length": [1.0]}
    assert found.raw == [5.0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no_such_module:f", "no module no_such_module is installed or lies in"),
        ("gsm8k,length:20", "several rewards are several --reward"),
        ("json:dumb", "json has no function dumb; did you mean dump"),
        ("json:__name__", "__name__ is a str, not a function"),
        ("missing.py:f", "no such file: missing.py"),
        ("gsm8kk", "no folder, no hub id"),
        ("broken.py:f", "importing it failed: ZeroDivisionError"),
    ],
)
def test_a_reward_that_is_not_there_says_what_is_missing(spec, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises((RewardError, ConfigError), match=message):
        make(spec)


def test_a_model_without_a_score_head_is_refused_before_weights_are_loaded(
    tiny_model_dir, tmp_path
):
    shutil.copytree(tiny_model_dir, tmp_path / "policy", ignore=lambda *_: ["model.safetensors"])
    with pytest.raises(ModelError, match="policy is no reward model: it has no score head"):
        find_rewards([str(tmp_path / "policy")])


def test_a_signature_that_asks_for_an_absent_column_says_what_there_is():
    found = find_rewards([lambda completions, solution: [0.0], "length:4"])
    prompts = [
        Prompt("q", {"answer": 1, "solution": 2}, "p.jsonl:1"),
        Prompt("q", {"answer": 1}, "p.jsonl:2"),
    ]
    told = r"needs the argument 'solution', and p\.jsonl:2 has no such column \(it has: answer\)"
    with pytest.raises(RewardError, match=told):
        require_judging(found, prompts)
    require_judging(found, prompts[:1])
    rewards = make(lambda completions, solution: [0.0])
    with pytest.raises(RewardError, match="needs the argument 'solution', and the data"):
        rewards.score(samples("a", answer=[1]))


def test_arguments_by_position_only_are_refused():
    def judge(completions, /):
        return [0.0]

    with pytest.raises(RewardError, match="by position only"):
        make(judge)


@pytest.mark.parametrize("mode", ["raise", "drop"])
@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([1.0], "returned 1 numbers for 2 completions"),
        (3.0, "must return a list with a number for each completion, got float"),
        ([1.0, "good"], r"returned 'good' \(str\) for prompts.jsonl:2 \(prompt 'Why\?'\)"),
        ([1.0, [2]], r"returned \[2\] \(list\) for prompts.jsonl:2"),
    ],
)
def test_results_that_are_no_numbers_are_errors_in_every_mode(result, message, mode):
    def judge(**_):
        return result

    with pytest.raises(RewardError, match=message):
        make(judge, on_reward_error=mode).score(samples("a", "b"))


def test_arrays_and_tensors_and_booleans_are_numbers():
    import numpy as np
    import torch

    for result in (np.array([1, 0]), torch.tensor([1.0, 0.0]), (True, False)):
        assert make(lambda _r=result, **_: _r).score(samples("a", "b")).raw == [1.0, 0.0]


# Failures


def picky(completions):
    if "bad" in completions:
        raise KeyError("oops")
    return size(completions)


def test_a_raising_function_names_the_sample_at_fault():
    with pytest.raises(
        RewardError,
        match=r"picky failed for prompts.jsonl:2 \(prompt 'Why\?'\): it raised KeyError: 'oops'",
    ):
        make(picky).score(samples("a", "bad", "abc"))


def test_dropping_keeps_the_samples_that_are_not_at_fault():
    found = make(picky, "length:1", on_reward_error="drop").score(samples("a", "bad", "ab"))
    assert same(found.rewards, [2.0, NAN, 2.0])
    assert same(found.raw, [2.0, NAN, 2.0])
    assert same(found.by_name["picky"], [1.0, NAN, 2.0])
    assert found.by_name["length"] == [1.0, 0.0, 0.0]
    assert found.dropped == 1


def test_dropping_all_is_an_error():
    with pytest.raises(RewardError, match="so did every other of 2 samples"):
        make(picky, on_reward_error="drop").score(samples("bad", "bad"))


def test_a_failure_of_the_batch_alone_says_so():
    def judge(completions):
        if len(completions) > 1:
            raise ValueError("too many")
        return [0.0]

    with pytest.raises(RewardError, match=r"2 samples together.*for none of them alone"):
        make(judge).score(samples("a", "b"))
    assert make(judge, on_reward_error="drop").score(samples("a", "b")).dropped == 0


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_treated_like_a_failure(value):
    def judge(completions):
        return [value if text == "bad" else 1.0 for text in completions]

    with pytest.raises(RewardError, match=r"prompts.jsonl:2.*not a finite number"):
        make(judge).score(samples("a", "bad"))
    found = make(judge, on_reward_error="drop").score(samples("a", "bad"))
    assert same(found.rewards, [1.0, NAN])


def test_a_function_that_takes_too_long_is_an_error_that_names_the_first_sample():
    def slow(completions):
        time.sleep(0.5 if "bad" in completions else 0)
        return size(completions)

    with pytest.raises(RewardError, match=r"slow failed for prompts.jsonl:1.*longer than 0.05 s"):
        make(slow, reward_timeout=0.05).score(samples("a", "bad"))
    found = make(slow, reward_timeout=0.05, on_reward_error="drop").score(samples("a", "bad"))
    assert same(found.rewards, [1.0, NAN])


def test_a_fast_function_passes_the_time_limit_and_its_errors_come_through():
    assert make(picky, reward_timeout=10).score(samples("a")).rewards == [1.0]
    with pytest.raises(RewardError, match="KeyError"):
        make(picky, reward_timeout=10).score(samples("bad"))


class Borrowed:
    """As a model on the policy's weights, which all processes gather where they are not whole."""

    name = "borrowed"

    def __init__(self, *, before):
        self.before, self.depth, self.gatherings = before, 0, 0

    @contextmanager
    def ready(self):
        self.gatherings += not self.depth
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def __call__(self, samples):
        texts = [sample.completion for sample in samples]
        if self.before:
            picky(texts)
        with self.ready():
            return [float(number) for number in picky(texts)]


@pytest.mark.parametrize("before", [True, False], ids=["before gathering", "on whole weights"])
def test_weights_are_gathered_once_however_often_samples_are_tried(before):
    """Else the process whose samples fail would gather alone, out of step with the others."""
    options = {"reward": ("r",), "reward_normalization": "none"}
    for texts in (["a", "ab"], ["a", "bad", "ab"]):
        reward = Borrowed(before=before)
        judge = Rewards([reward], RewardOptions(**options, on_reward_error="drop"))
        assert judge.score(samples(*texts)).dropped == texts.count("bad")
        assert (reward.gatherings, reward.depth) == (1, 0)
    reward = Borrowed(before=before)
    with pytest.raises(RewardError, match=r"borrowed failed for prompts.jsonl:2"):
        Rewards([reward], RewardOptions(**options)).score(samples("a", "bad"))
    assert (reward.gatherings, reward.depth) == (1, 0)


# Together


def test_rewards_are_weighted_and_told_apart():
    """2 * length + 0.5 * (1 - |n - 2| / 2), for n = 2 and 4."""
    rewards = make(size, size, "length:2", reward_weights=[1.5, 0.5, 0.5])
    found = rewards.score(samples("ab", "abcd"))
    assert found.raw == [4.5, 8.0]
    assert found.by_name == {"size": [2.0, 4.0], "size-2": [2.0, 4.0], "length": [1.0, 0.0]}
    assert found.disagreement is None


def test_running_normalisation_covers_all_batches_and_the_present_one():
    """2, 4: mean 3, std 1. Then 9 more: mean 5, std sqrt((9 + 1 + 16) / 3)."""
    rewards = make(size, reward_normalization="auto")
    assert rewards.normalization == "running"
    assert rewards.findings == []
    assert rewards.score(samples("ab", "abcd")).rewards == pytest.approx([-1.0, 1.0])
    state = json.loads(json.dumps(rewards.state_dict()))
    expected = 4 / math.sqrt(26 / 3)
    third = rewards.score(samples("a" * 9)).rewards
    assert third == pytest.approx([expected])
    resumed = make(size, reward_normalization="running")
    resumed.load_state_dict(state)
    assert resumed.score(samples("a" * 9)).rewards == third
    assert resumed.state_dict() == rewards.state_dict()


def test_dropped_samples_leave_the_running_statistics_alone():
    rewards = make(picky, reward_normalization="running", on_reward_error="drop")
    rewards.score(samples("ab", "bad", "abcd"))
    assert rewards.state_dict() == {"num": 2.0, "mean": 3.0, "squares": 2.0}


def test_equal_rewards_are_all_0_when_normalised():
    rewards = make(lambda completions: [0.1] * len(completions), reward_normalization="running")
    for _ in range(3):
        assert rewards.score(samples("a", "b", "c")).rewards == [0.0, 0.0, 0.0]


def test_penalties_come_behind_normalisation_and_clipping():
    """1, 1, 10 tokens: mean 4, std sqrt(18), so 1.414 for the last, clipped to 1, less 0.6."""
    rewards = make(
        size, reward_normalization="running", score_clip=1.0, length_penalty=0.1, length_budget=4
    )
    found = rewards.score(samples("a", "a", "a" * 10))
    assert found.rewards == pytest.approx([-3 / math.sqrt(18)] * 2 + [0.4])
    assert found.raw == [1.0, 1.0, 10.0]
    assert found.by_name["length_penalty"] == pytest.approx([0.0, 0.0, -0.6])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward_weights": [1.0, 2.0]}, "2 numbers for 1 rewards"),
        ({"reward_weights": [NAN]}, "reward_weights.0 should be a finite number"),
        ({"reward_timeout": 0}, "reward_timeout should be greater than 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    keys = {"model": "m", "data": "d", "output": "o", "reward": ["gsm8k"], **options}
    with pytest.raises(ConfigError, match=message):
        load_config("grpo", keys)


def test_saved_statistics_are_asked_of_every_reward():
    with pytest.raises(ConfigError, match="size has none"):
        make(size, reward_normalization="saved")


def test_gsm8k_rows_are_scored_end_to_end(shared):
    from penchant.data.prompts import read_prompts

    prompts = read_prompts(shared / "data" / "gsm8k-train-1000.jsonl").records
    right = [one.fields["answer"] for one in prompts]
    rows = [Sample(p.prompt, a, [1], [2], True, p.fields, p.where)
            for p, a in zip(prompts, right, strict=True)]  # fmt: skip
    assert make("gsm8k").score(rows).rewards == [1.0] * len(rows)
    wrong = [Sample(p.prompt, "no idea", [1], [2], True, p.fields, p.where) for p in prompts[:9]]
    assert make("gsm8k").score(wrong).rewards == [0.0] * 9
