"""A judge that compares the answers to one prompt with one another, as a reward."""

from __future__ import annotations

import json
import math

import pytest

import penchant
from penchant.core.errors import ConfigError, RewardError
from penchant.core.judge import read_settings
from penchant.methods.online_dpo import OnlineDPOOptions
from penchant.rl.rewards.make import find_rewards, make_rewards, require_judging
from penchant.rl.rewards.samples import Sample

from ...online_runs import KEYS, PROMPTS


def compared(text):
    """The two answers of a request."""
    first, _, second = text.partition("Answer A:\n")[2].partition("\n\nAnswer B:\n")
    return first, second.rstrip("\n")


def by_length(text):
    """The longer answer is better; of two equally long ones the first, whichever that is."""
    if "mute" in text:
        return "I cannot say."
    first, second = map(len, compared(text))
    return "Verdict: A" if first >= second else "Verdict: B"


@pytest.fixture
def judge(serve_chat, tmp_path):
    server = serve_chat(by_length)
    server.file = tmp_path / "judge.yaml"
    server.file.write_text(f"url: {server.url}\npairwise: true\nretries: 0\n")
    return server


def sample(completion, where="rows:1", prompt="Why?"):
    return Sample(prompt, completion, [1], [], True, {}, where)


def rewards(file, **options):
    spec = f"judge:{file}"
    options = OnlineDPOOptions(reward=spec, reward_normalization="none", **options)
    return make_rewards(find_rewards([spec], num_answers=4), options, None)


def test_an_answer_is_worth_the_share_of_the_others_to_its_prompt_that_it_wins_against(judge):
    made = rewards(judge.file)
    mine = [sample(text) for text in ("a", "bb", "ccc", "dd")]
    theirs = [sample(text, "rows:2", "How?") for text in ("x", "x", "yyy")]
    # Of two equally long answers the verdict follows the order; two equal ones are not shown.
    assert made.score(mine + theirs).rewards == [0, 0.5, 1, 0.5, 0.25, 0.25, 1]
    assert len(judge.asked) == 4 * 3 + 2  # x and yyy are shown once in each order
    assert {"Why?" in text and "How?" in text for text in judge.asked} == {False}
    assert made.score(mine[:2]).by_name == {"judge": [0.0, 1.0]}
    assert len(judge.asked) == 14
    assert made.usage()["judge"].asked == 14


def test_answers_of_one_prompt_need_not_stand_together(judge):
    rows = [sample("a"), sample("bbb", "rows:2"), sample("bb"), sample("a", "rows:2")]
    assert rewards(judge.file).score(rows).rewards == [0.0, 1.0, 1.0, 0.0]


def test_comparisons_without_a_verdict_are_left_out(judge):
    rows = [sample("a"), sample("bb"), sample("mute")]
    dropped = rewards(judge.file, on_reward_error="drop").score(rows).rewards
    assert dropped[:2] == [0.0, 1.0] and math.isnan(dropped[2])
    with pytest.raises(RewardError, match=r"reward judge failed for rows:1.*holds no verdict"):
        rewards(judge.file).score(rows)
    alone = [sample("a"), sample("bb"), sample("a", "rows:2")]
    with pytest.raises(RewardError, match=r"for rows:2.*it is the only answer to its prompt"):
        rewards(judge.file).score(alone)


def test_it_has_a_rubric_of_its_own_and_no_scale(judge, tmp_path):
    (tmp_path / "rubric.txt").write_text("{prompt}: {completion}?")
    for more, problem in (
        ("rubric: rubric.txt", r"has no \{completion_a\} and no \{completion_b\}"),
        ("scale: [0, 1]", r"scale is of scores, and pairwise gives none"),
    ):
        judge.file.write_text(f"url: {judge.url}\npairwise: true\n{more}\n")
        with pytest.raises(ConfigError, match=problem):
            rewards(judge.file)
    (tmp_path / "rubric.txt").write_text(
        "{prompt}\nAnswer A:\n{completion_a}\n\nAnswer B:\n{completion_b}"
    )
    judge.file.write_text(f"url: {judge.url}\npairwise: true\nrubric: rubric.txt\n")
    assert rewards(judge.file).score([sample("a"), sample("bb")]).rewards == [0.0, 1.0]
    assert judge.asked[0] == "Why?\nAnswer A:\na\n\nAnswer B:\nbb"


def test_where_a_prompt_has_one_answer_it_is_refused_before_anything_loads(judge):
    spec = f"judge:{judge.file}"
    with pytest.raises(ConfigError, match="reward judge compares the answers to one prompt"):
        penchant.train("ppo", model="absent/model", data=PROMPTS, reward=spec, output="never")
    with pytest.raises(ConfigError, match="evaluate takes such a judge as --judge"):
        find_rewards([spec])
    require_judging(find_rewards([spec], num_answers=2), [])
    assert len(judge.asked) == 1
    judge.answer = lambda text: "Hm."
    with pytest.raises(ConfigError, match="gave no usable answer to a trial"):
        require_judging(find_rewards([spec], num_answers=2), [])


def test_a_file_for_comparing_says_so_to_every_reader(judge):
    assert read_settings(str(judge.file)).pairwise


def test_online_dpo_is_paired_by_what_a_judge_prefers(judge, tiny_model_dir, tmp_path):
    """And `check` has it compare two answers to one prompt."""

    def letters(text):
        return sum(c.isascii() and c.isalpha() for c in text)

    def answer(text):
        first, second = map(letters, compared(text))
        return f"Verdict: {'tie' if first == second else 'A' if first > second else 'B'}"

    judge.answer = answer
    keys = {
        **KEYS, "model": str(tiny_model_dir), "data": PROMPTS, "reward": f"judge:{judge.file}",
        "reward_normalization": "none", "num_generations": 4, "output": tmp_path / "run",
        "log_completions": 8, "save_steps": 100,
    }  # fmt: skip
    trials = penchant.check("online_dpo", **keys).trials
    assert len(trials) == 2 and len({trial.prompt for trial in trials}) == 1
    assert sum(trial.scores["judge"] for trial in trials) == 1.0
    penchant.train("online_dpo", **keys)
    lines = (tmp_path / "run" / "rollouts.jsonl").read_text(encoding="utf-8").splitlines()
    rows = list(map(json.loads, lines))
    groups = [rows[i : i + 4] for i in range(0, len(rows), 4)]
    assert len(groups) >= 6 and all(len({row["prompt"] for row in group}) == 1 for group in groups)
    for group in groups:
        told = [letters(row["completion"]) for row in group]
        worth = [sum((a > b) + (a == b) / 2 for b in told) / 3 - 1 / 6 for a in told]
        assert [row["reward"] for row in group] == pytest.approx(worth)
