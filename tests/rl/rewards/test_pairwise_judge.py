"""A judge that compares the answers to one prompt with one another, as a reward."""

from __future__ import annotations

import json
import math

import pytest

import penchant
from penchant.commands.draw_pairs import build_with_model
from penchant.core.errors import ConfigError, RewardError
from penchant.methods.online_dpo import OnlineDPOOptions
from penchant.models.load import load_tokenizer
from penchant.objectives.rollouts import RolloutObjective
from penchant.rl.rewards.make import find_rewards, make_rewards, require_judging
from penchant.rl.rewards.samples import Sample
from penchant.rl.sampling.text import answer_text

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


def sample(completion, where="rows:1", prompt="Why?", number=0):
    return Sample(prompt, completion, [1], [], True, {}, where, number=number)


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


def test_a_prompt_that_comes_up_twice_in_a_batch_is_two(judge):
    rows = [sample("a"), sample("bb"), sample("a", number=7), sample("cccc", number=7)]
    assert rewards(judge.file).score(rows).rewards == [0.0, 1.0, 0.0, 1.0]


def test_comparisons_without_a_verdict_are_ties(judge):
    rows = [sample("a"), sample("bb"), sample("mute")]
    dropped = rewards(judge.file, on_reward_error="drop").score(rows).rewards
    assert dropped[:2] == [0.25, 0.75] and math.isnan(dropped[2])
    with pytest.raises(RewardError, match=r"reward judge failed for rows:1.*holds no verdict"):
        rewards(judge.file).score(rows)
    alone = [sample("a"), sample("bb"), sample("a", "rows:2")]
    with pytest.raises(RewardError, match=r"for rows:2.*it is the only answer to its prompt"):
        rewards(judge.file).score(alone)


def test_how_often_the_verdict_followed_the_order_is_told(judge):
    made = rewards(judge.file)
    made.score([sample("aa"), sample("bb"), sample("c"), sample("c")])
    assert str(made.usage()["judge"]).endswith("; 6 compared, 1 by their order alone")


def test_beside_others_it_is_left_out_where_an_answer_is_judged_by_itself(judge):
    specs = [f"judge:{judge.file}", "length:4"]
    options = OnlineDPOOptions(reward=specs, reward_weights=[1, 3], reward_normalization="none")
    both = make_rewards(find_rewards(specs, num_answers=2), options, None)
    assert not both.score([sample("a"), sample("bb")]).relative
    assert both.compares and not both.alone.compares
    assert both.alone.weights == (3.0,) and [one.name for one in both.alone.rewards] == ["length"]
    assert both.alone.alone.rewards == both.alone.rewards


def test_it_has_a_rubric_of_its_own_and_no_scale(judge, tmp_path):
    (tmp_path / "rubric.txt").write_text("{prompt}: {completion}?")
    for more, problem in (
        ("rubric: rubric.txt", r"has no \{completion_a\} and no \{completion_b\}"),
        ("scale: [0, 1]", r"judge.yaml: scale is of scores, and pairwise gives none"),
    ):
        judge.file.write_text(f"url: {judge.url}\npairwise: true\n{more}\n")
        with pytest.raises(ConfigError, match=problem):
            rewards(judge.file)
    (tmp_path / "rubric.txt").write_text("{prompt} {completion_a} {completion_b}")
    judge.file.write_text(f"url: {judge.url}\nrubric: rubric.txt\n")
    with pytest.raises(ConfigError, match=r"no \{completion\}.* or set pairwise: true in the jud"):
        rewards(judge.file)
    (tmp_path / "rubric.txt").write_text(
        "{prompt}\nAnswer A:\n{completion_a}\n\nAnswer B:\n{completion_b}"
    )
    judge.file.write_text(f"url: {judge.url}\npairwise: true\nrubric: rubric.txt\n")
    assert rewards(judge.file).score([sample("a"), sample("bb")]).rewards == [0.0, 1.0]
    assert set(judge.asked) == {
        f"Why?\nAnswer A:\n{one}\n\nAnswer B:\n{other}" for one, other in (("a", "bb"), ("bb", "a"))
    }


def test_where_a_prompt_has_one_answer_it_is_refused_before_anything_loads(judge):
    spec = f"judge:{judge.file}"
    with pytest.raises(ConfigError, match=r"reward judge:\S+ compares the answers to one"):
        penchant.train("ppo", model="absent/model", data=PROMPTS, reward=spec, output="never")
    with pytest.raises(ConfigError, match="takes such a judge as --judge"):
        find_rewards([spec])
    require_judging(find_rewards([spec], num_answers=2), [])
    assert len(judge.asked) == 1
    judge.answer = lambda text: "Hm."
    with pytest.raises(ConfigError, match="gave no usable answer to a trial"):
        require_judging(find_rewards([spec], num_answers=2), [])


def letters(text):
    return sum(c.isascii() and c.isalpha() for c in text)


def by_letters(text):
    first, second = map(letters, compared(text))
    return f"Verdict: {'tie' if first == second else 'A' if first > second else 'B'}"


@pytest.fixture
def keys(judge, tiny_model_dir, tmp_path):
    """Three prompts to learn from, so that batches of four ask one of them twice."""
    judge.answer = by_letters
    return {
        **KEYS, "model": str(tiny_model_dir), "data": PROMPTS[:3], "eval_data": PROMPTS[3:6],
        "reward": f"judge:{judge.file}", "reward_normalization": "none", "num_generations": 4,
        "batch_size": 16, "per_device_train_batch_size": 4, "output": tmp_path / "run",
        "log_completions": 16, "save_steps": 100, "max_steps": 4, "eval_on_start": True,
        "eval_steps": 2, "monitor_prompts": 3, "monitor_steps": 2, "monitor_reward": "length:4",
    }  # fmt: skip


def read(folder, file):
    return [json.loads(line) for line in (folder / file).read_text("utf-8").splitlines()]


@pytest.mark.parametrize("method", ["online_dpo", "grpo"])
def test_a_run_learns_what_a_judge_prefers_and_is_watched_without_it(
    method, keys, tmp_path, monkeypatch
):
    learnt, compute = [], RolloutObjective.__call__

    def loss(self, model, examples, shared):
        learnt.extend(examples)
        return compute(self, model, examples, shared)

    trials = penchant.check(method, **keys).trials
    assert len(trials) == 2 and len({trial.prompt for trial in trials}) == 1
    assert sum(trial.scores["judge"] for trial in trials) == 1.0
    monkeypatch.setattr(RolloutObjective, "__call__", loss)
    penchant.train(method, **keys)
    rows = read(tmp_path / "run", "rollouts.jsonl")
    groups = [rows[i : i + 4] for i in range(0, len(rows), 4)]
    assert len(groups) >= 4 and all(len({row["prompt"] for row in group}) == 1 for group in groups)
    for group in groups:
        told = [letters(row["completion"]) for row in group]
        worth = [sum((a > b) + (a == b) / 2 for b in told) / 3 - 1 / 6 for a in told]
        assert [row["reward"] for row in group] == pytest.approx(worth)
    metrics = read(tmp_path / "run", "metrics.jsonl")
    assert not any("reward/mean" in one or "eval/reward/mean" in one for one in metrics)
    assert any("eval/kl/sequence" in one for one in metrics)
    watched = [one for one in metrics if "monitor/held_out_reward" in one]
    assert watched
    assert all(one["monitor/reward"] == one["monitor/held_out_reward"] for one in watched)
    assert not [f for f in read(tmp_path / "run", "findings.jsonl") if f["id"] == "monitor-failed"]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))
    assert "compared, 0 by their order alone" in summary["sampling"]["asked"]["judge"]
    tokenizer, earned = load_tokenizer(keys["model"]), {}
    for one in learnt[:8]:  # of the first batch
        ended = one.completion[-1] == tokenizer.eos_token_id
        text = answer_text(one.completion, tokenizer, ended=ended)
        earned.setdefault(one.number, []).append((letters(text), float(one.advantages[0])))
    assert earned
    for answers in earned.values():  # the more letters, the higher the advantage
        assert max(answers)[1] > 0 > min(answers)[1]


def test_a_sweep_that_nothing_could_rank_is_refused(keys, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    keys |= {"data": str(file), "eval_data": None, "train_fraction": 0.5}
    with pytest.raises(ConfigError, match="a sweep ranks its points by the rewards of held-out"):
        penchant.sweep("online_dpo", vary={"beta": [0.1, 0.2]}, **keys)


def test_answers_are_sampled_and_paired_by_what_a_judge_prefers(keys, tmp_path):
    file, output = tmp_path / "prompts.jsonl", tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    build_with_model(
        file, output, model=keys["model"], reward=[keys["reward"]], n=3, max_completion_length=6
    )
    pairs = read(tmp_path, "pairs.jsonl")
    assert len(pairs) > 5
    assert all(letters(pair["chosen"]) > letters(pair["rejected"]) for pair in pairs)
