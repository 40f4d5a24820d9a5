"""A judge as a reward: rubric, scores, and how a run names it."""

from __future__ import annotations

import pytest

from penchant.core.errors import ConfigError, RewardError
from penchant.core.judge import JudgeSettings, read_settings
from penchant.methods.grpo import GRPOOptions
from penchant.rl.rewards.make import find_rewards, make_rewards
from penchant.rl.rewards.samples import Sample


@pytest.fixture
def judge(serve_chat):
    """Gives an answer the number of its letters e."""

    def answer(text):
        answer = text.rpartition("Answer:")[2]
        said = f"Right. The first score: 99 is not mine.\n**Score:** {answer.count('e')}"
        return said if "nothing" not in answer else "I cannot say."

    return serve_chat(answer)


def sample(completion, prompt="Say {completion}"):
    return Sample(prompt, completion, [], [], True, {}, "rows:1")


def rewards(spec, **options):
    options = GRPOOptions(reward=spec, reward_normalization="none", **options)
    return make_rewards(find_rewards([spec]), options, None)


def test_a_judge_scores_answers_and_is_asked_once_for_each(judge):
    made = rewards(f"judge:{judge.url}")
    samples = [sample("three e e e"), sample("e e"), sample("three e e e")]
    assert made.score(samples).rewards == [5.0, 2.0, 5.0]
    assert made.score(samples[:2]).by_name == {"judge": [5.0, 2.0]}
    assert len(judge.asked) == 2
    # What stands in a prompt is no place of the rubric's.
    assert "Request:\nSay {completion}\n" in judge.asked[0]
    assert "from 1 (worst) to 10 (best)" in judge.asked[0]


def test_who_said_what_is_shown_where_several_spoke(judge):
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    rewards(f"judge:{judge.url}").score([sample("e", [*chat, {"role": "user", "content": "So?"}])])
    assert "User: Hi\n\nAssistant: Hello\n\nUser: So?" in judge.asked[0]


def test_a_file_sets_rubric_scale_and_cache(judge, tmp_path):
    (tmp_path / "rubric.txt").write_text("{prompt} {low}-{high}\nAnswer:{completion}")
    (tmp_path / "judge.yaml").write_text(
        f"url: {judge.url}\nrubric: rubric.txt\nscale: [0, 3]\ncache: answers.db\nretries: 0\n"
    )
    spec = f"judge:{tmp_path / 'judge.yaml'}"
    assert read_settings(spec).timeout == 600  # a model that thinks is silent until it answers
    assert rewards(spec).score([sample("e")]).rewards == [1.0]
    assert judge.asked == ["Say {completion} 0-3\nAnswer:e"]
    assert rewards(spec).score([sample("e")]).rewards == [1.0]
    assert len(judge.asked) == 1
    with pytest.raises(RewardError, match=r"reward judge failed for rows:1.*holds no verdict"):
        rewards(spec).score([sample("e"), sample("eeee")])
    dropped = rewards(spec, on_reward_error="drop").score([sample("e"), sample("nothing")])
    assert dropped.rewards == pytest.approx([1.0, float("nan")], nan_ok=True)


@pytest.mark.parametrize(
    ("said", "score"),
    [("Score: -3", -3.0), ("**Score:** -2.5", -2.5), ("score - 4", 4.0), ("[[-1]]", -1.0)],
)
def test_a_score_below_zero_keeps_its_sign(serve_chat, tmp_path, said, score):
    server = serve_chat(lambda text: said)
    (tmp_path / "judge.yaml").write_text(f"url: {server.url}\nscale: [-5, 5]\n")
    assert rewards(f"judge:{tmp_path / 'judge.yaml'}").score([sample("e")]).rewards == [score]


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ("Score (1-10): 8", 8.0),
        ("**Score (1 to 10):** **8**", 8.0),
        ("**Score** [1\u201310]: 8.5", 8.5),
        ("Score (from 1 to 10, higher is better): 8", 8.0),
        ("Score 1-10: 8", 8.0),
        ("Score: 8 (1-10)", 8.0),
        ("Score (8): it is right", 8.0),
        ("Score (8/10): it is right", 8.0),
        ("Score: 8 - 2 steps are missing", 8.0),
        ("Score (1-10): eight", None),
    ],
)
def test_the_scale_that_a_judge_repeats_is_not_its_score(serve_chat, tmp_path, said, score):
    server = serve_chat(lambda text: said)
    (tmp_path / "judge.yaml").write_text(f"url: {server.url}\nretries: 0\n")
    (reward,) = rewards(f"judge:{tmp_path / 'judge.yaml'}").rewards
    assert reward._read(said) == score


@pytest.mark.parametrize("scale", ["[10, 1]", "[3, 3]", "[.nan, 1]"])
def test_a_scale_that_does_not_rise_is_refused(tmp_path, scale):
    (tmp_path / "judge.yaml").write_text(f"url: http://127.0.0.1:9/v1\nscale: {scale}\n")
    with pytest.raises(ConfigError, match=r"judge\.yaml: scale: must be the lowest score, then"):
        read_settings(f"judge:{tmp_path / 'judge.yaml'}")


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "judge.yaml").write_text("url: http://127.0.0.1:9/v1\n")
    monkeypatch.setattr("pathlib.Path.read_text", refused)
    with pytest.raises(ConfigError, match=r"judge\.yaml could not be read: Permission denied; see"):
        read_settings(f"judge:{tmp_path / 'judge.yaml'}")


def test_a_judge_that_cannot_be_had_is_named_before_anything_loads(tmp_path):
    (tmp_path / "bad.yaml").write_text("url: http://127.0.0.1:9/v1\nrubrik: r.txt\n")
    (tmp_path / "r.txt").write_text("Rate this: {completion}")
    for spec, message in (
        ("judge:nowhere.yaml", "no such file; write judge:http"),
        (f"judge:{tmp_path / 'bad.yaml'}", "rubrik: Extra inputs.*known keys are url, model"),
        ("judge:http://127.0.0.1:9/v1", "no model answers at http://127.0.0.1:9/v1"),
    ):
        with pytest.raises(ConfigError, match=message):
            find_rewards([spec])
    assert read_settings("http://h/v1") == JudgeSettings(url="http://h/v1")
    (tmp_path / "bad.yaml").write_text("url: http://127.0.0.1:9/v1\nmodel: m\nrubric: r.txt\n")
    with pytest.raises(ConfigError, match=r"has no \{prompt\}"):
        find_rewards([f"judge:{tmp_path / 'bad.yaml'}"])
