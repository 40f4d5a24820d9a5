"""A policy's answers against its start's: what compare finds too, judges, lengths, certainty."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import penchant
from penchant.cli.main import main
from penchant.commands.opened import load_model
from penchant.commands.win_rate import win_rate
from penchant.commands.yardstick import Measured
from penchant.core.errors import ConfigError, ModelError, RewardError, UserError
from penchant.core.http import HttpError
from penchant.core.resampling import Difference
from penchant.models.memory import is_quantised
from penchant.rl.rewards.make import make_rewards

REWARDS = """
def vowels(completions, **columns):
    return [sum(text.count(letter) for letter in "aeiou") for text in completions]


def even(completions, prompts, **columns):
    return [None if "25" in prompt else len(text) % 2 for text, prompt in zip(completions, prompts)]


def all_but_the_last(completions, prompts, **columns):
    return [None if "31" in prompt else len(text) for text, prompt in zip(completions, prompts)]
"""
SHORT = {"max_new_tokens": 8}
NUM_PROMPTS = 8


@pytest.fixture(scope="module")
def rewards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rewards") / "rewards.py"
    file.write_text(REWARDS)
    return file


def test_it_is_the_win_rate_that_compare_finds(
    tiny_keys: dict[str, Any], held_out_file: Path, rewards: Path, tmp_path: Path
) -> None:
    reward = f"{rewards}:vowels"
    keys = {**tiny_keys, "max_new_tokens": 8, "eval_data": str(held_out_file), "max_steps": 6}
    compared = penchant.compare(["dpo"], output=tmp_path, monitor_reward=reward, **keys)
    measured = compared.points[0].measured
    assert isinstance(measured, Measured)
    run = compared.points[0].output
    found = win_rate(model=run, prompts=held_out_file, reward=reward, **SHORT)
    assert [one["win"] for one in found.answers] == measured.win_rate
    assert [one["answer"].strip() for one in found.answers] == [
        one["answer"] for one in measured.answers
    ]
    assert found.win_rate.mean == pytest.approx(sum(measured.win_rate) / 8)
    assert found.reward == measured.interval("reward")
    assert found.other_reward == compared.start.interval("reward")
    assert found.gain == measured.ahead(compared.start, "reward")
    assert found.num_tokens == pytest.approx(sum(measured.length) / 8)
    assert (found.wins + found.ties + found.losses, found.unjudged) == (8, 0)
    assert 0 <= found.win_rate.low <= found.win_rate.mean <= found.win_rate.high <= 1
    assert found.lead.num_decided == found.wins + found.losses
    # All of five prompts won: the interval leaves one half out, five coins do not.
    won = Difference(0.5, 0.5, 0.5, 5, 5, 2 / 32)
    assert "cannot be told apart" in replace(found, lead=won).verdict
    assert "is worse than" in replace(found, lead=Difference(-0.5, -0.5, -0.5, 6, 6, 0.03)).verdict


def test_two_models_are_tested_against_each_other_and_a_model_against_itself_is_even(
    adapter_run: Path, tiny_model_dir: Path, held_out_file: Path, rewards: Path
) -> None:
    given: Any = {"prompts": held_out_file, "reward": f"{rewards}:vowels", **SHORT}
    start = win_rate(model=adapter_run, **given)
    named = win_rate(model=adapter_run, against=tiny_model_dir, **given)
    turned = win_rate(model=tiny_model_dir, against=adapter_run, **given)
    assert turned.win_rate.mean == pytest.approx(1 - named.win_rate.mean)
    # Named alone, the start is a model with a template, which is asked through it.
    assert [one["answer"] for one in start.answers] == [one["answer"] for one in named.answers]
    even = win_rate(model=adapter_run, against=adapter_run, **given)
    assert (even.win_rate.mean, even.ties, even.equal_length) == (0.5, 8, None)
    assert (even.lead.num_decided, even.lead.p) == (0, 1.0)
    assert even.verdict == f"{adapter_run} and {adapter_run} cannot be told apart"


def test_answers_without_a_reward_are_left_out_and_counted(
    adapter_run: Path, held_out_file: Path, rewards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = [f"{rewards}:vowels", f"{rewards}:even"]
    found = win_rate(model=adapter_run, prompts=held_out_file, reward=several, **SHORT)
    (left_out,) = (one for one in found.answers if math.isnan(one["win"]))
    assert "25" in left_out["prompt"]
    assert (found.unjudged, found.win_rate.num_prompts) == (1, 7)
    # The last answers alone may have no reward, where others have one.
    monkeypatch.setattr("penchant.commands.better_answer.SCORED_AT_ONCE", NUM_PROMPTS - 1)
    last = f"{rewards}:all_but_the_last"
    found = win_rate(model=adapter_run, prompts=held_out_file, reward=last, **SHORT)
    assert [math.isnan(one["win"]) for one in found.answers] == [False] * 7 + [True]
    monkeypatch.setattr("penchant.commands.better_answer.SCORED_AT_ONCE", 1)
    with pytest.raises(RewardError, match="correct the reward"):
        win_rate(model=adapter_run, prompts=held_out_file, reward=last, **SHORT)


def test_a_judge_sees_both_orders_and_equal_answers_are_not_asked_about(
    adapter_run: Path, held_out_file: Path, serve_chat: Callable[..., Any]
) -> None:
    def answer(text: str) -> str:
        first, second = text.partition("Answer A:")[2].split("Answer B:")
        more = first.count("e") - second.count("e")
        return "Verdict: A" if more > 0 else "Verdict: B" if more < 0 else "Verdict: A"

    judge = serve_chat(answer)
    found = win_rate(model=adapter_run, prompts=held_out_file, judge=judge.url, **SHORT)
    expected = [
        (a > b) + 0.5 * (a == b)
        for one in found.answers
        for a, b in [(one["answer"].count("e"), one["other"].count("e"))]
    ]
    assert [one["win"] for one in found.answers] == expected
    assert found.win_rate.mean == pytest.approx(sum(expected) / 8)
    equal = sum(one["answer"] == one["other"] for one in found.answers)
    assert found.contradicted == expected.count(0.5) - equal
    assert (found.judged_by, found.reward, found.gain) == ("judge judge", None, None)
    assert found.usage.startswith(f"{len(judge.asked)} asked")
    assert len(judge.asked) == 1 + 2 * (8 - equal)  # the first is a trial


def test_a_start_is_loaded_in_codes_where_its_model_is(
    tiny_keys: dict[str, Any],
    held_out_file: Path,
    rewards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, loaded = tmp_path / "run", []

    def load(folder: str, config: Any, *rest: Any, **more: Any) -> Any:
        loaded.append(load_model(folder, config, *rest, **more))
        return loaded[-1]

    monkeypatch.setattr("penchant.commands.opened.load_model", load)
    penchant.train("dpo", **{**tiny_keys, "lora_r": 0, "max_steps": 1, "output": run})
    given: Any = {"prompts": held_out_file, "reward": f"{rewards}:vowels", **SHORT}
    win_rate(model=run, quantization="4bit", **given)
    assert [is_quantised(model) for model in loaded] == [True, True]


def test_what_cannot_be_compared_is_refused(
    adapter_run: Path, tiny_model_dir: Path, held_out_file: Path, rewards: Path, tmp_path: Path
) -> None:
    given: Any = {"prompts": held_out_file, "reward": f"{rewards}:vowels", **SHORT}
    with pytest.raises(ConfigError, match="either a reward or a judge"):
        win_rate(model=adapter_run, prompts=held_out_file)
    with pytest.raises(ConfigError, match="says nothing about what it was tuned from; give"):
        win_rate(model=tiny_model_dir, **given)
    with pytest.raises(ConfigError, match="temperature must be 0 or more"):
        win_rate(model=adapter_run, **given, temperature=-1)
    with pytest.raises(ConfigError, match="did you mean max_length"):
        win_rate(model=adapter_run, **given, max_lenght=3)
    with pytest.raises(ConfigError, match="is no folder, no hub id"):
        win_rate(model=adapter_run, **{**given, "reward": "nothing"})


def test_a_reward_model_judges_and_answers_nothing(
    adapter_run: Path, classifier: Callable[[int], str], held_out_file: Path
) -> None:
    judge = classifier(1)
    found = win_rate(model=adapter_run, prompts=held_out_file, reward=judge, **SHORT)
    assert found.reward is not None and found.reward.num_prompts == 8
    with pytest.raises(ModelError, match="is a reward model, which scores answers"):
        win_rate(model=adapter_run, against=judge, prompts=held_out_file, reward=judge, **SHORT)


def test_the_command_prints_what_may_be_concluded(
    adapter_run: Path,
    held_out_file: Path,
    rewards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["evaluate", "--model", str(adapter_run), "--prompts", str(held_out_file)]
    words += ["--reward", f"{rewards}:vowels", "--max_new_tokens", "8", "--temperature", "0"]
    file = tmp_path / "new folder" / "answers.jsonl"
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["yardstick"], found["against"]) == ("win_rate", "its start")
    assert "answers" not in found
    assert main([*words, "--answers", str(file)]) == 0
    answers = [json.loads(line) for line in file.read_text().splitlines()]
    assert sum(one["win"] for one in answers) / 8 == found["win_rate"]["mean"]
    assert {"prompt", "answer", "other", "win"} == set(answers[0])
    shown = capsys.readouterr().out
    assert found["verdict"] in shown.replace("\n", "")
    assert "share of prompts whose answer has a higher reward than that of its start" in shown
    lead = found["lead"]
    assert f"{lead['num_decided']} of 8, p = {lead['p']:.2g}" in shown


def test_answers_that_cannot_be_written_are_refused_before_a_model_answers(
    adapter_run: Path,
    held_out_file: Path,
    rewards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["evaluate", "--model", str(adapter_run), "--prompts", str(held_out_file)]
    words += ["--reward", f"{rewards}:vowels", "--max_new_tokens", "2", "--answers"]
    with monkeypatch.context() as patch:
        patch.setattr("penchant.commands.win_rate.win_rate", lambda **_: pytest.fail("it answered"))
        for place in (tmp_path, rewards / "answers.jsonl"):
            assert main([*words, str(place)]) == 1
            assert "set --answers" in capsys.readouterr().err

    written: list[str] = []

    def full(_: Path, text: str) -> None:
        written.append(text)
        if len(written) > 1:
            raise OSError(28, "No space left on device")

    # What was paid for is printed all the same.
    monkeypatch.setattr("penchant.cli.evaluate.write_atomically", full)
    assert main([*words, str(tmp_path / "answers.jsonl"), "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["wins"] >= 0
    assert "answers.jsonl: No space left on device; set --answers" in err.replace("\n", "")


def no_answers(*_: Any) -> None:
    pytest.fail("answers were drawn")


def test_what_could_judge_no_answer_is_refused_before_any_is_drawn(
    adapter_run: Path,
    tiny_model_dir: Path,
    classifier: Callable[[int], str],
    held_out_file: Path,
    serve_chat: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("penchant.commands.two_answers._answers", no_answers)
    file, settings = tmp_path / "needs.py", tmp_path / "judge.yaml"
    file.write_text("def judge(completions, solution):\n    return [1.0 for _ in completions]\n")
    settings.write_text(f"url: {serve_chat(lambda text: 'Hm.').url}\nretries: 0\n")
    cases: list[tuple[Any, str]] = [
        ({"reward": f"{file}:judge"}, r"needs the argument 'solution', and .*\.jsonl:1 has no"),
        ({"reward": str(tiny_model_dir)}, "is no reward model: it has no score head"),
        ({"judge": str(settings)}, r"no usable answer to a trial \(its answer holds no verdict"),
        ({"reward": f"judge:{settings}"}, "no usable answer to a trial"),
        ({"reward": "length:4", "against": classifier(1)}, "which scores answers and gives none"),
    ]
    for given, message in cases:
        with pytest.raises(UserError, match=message):
            win_rate(model=adapter_run, prompts=held_out_file, **given, **SHORT)


def test_a_judge_that_refuses_the_key_is_known_before_answers_are_drawn(
    adapter_run: Path,
    held_out_file: Path,
    serve_chat: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(_: Any, path: str, __: Any) -> None:
        raise HttpError(f"{path} answered 401: no such key", 401)

    url = serve_chat(lambda text: "Verdict: A").url
    monkeypatch.setattr("penchant.commands.two_answers._answers", no_answers)
    monkeypatch.setattr("penchant.core.http.JsonClient.post", refused)
    named: list[Any] = [{"judge": url}, {"reward": f"judge:{url}"}]
    for given in named:
        with pytest.raises(ConfigError, match="401: no such key; set the environment variable"):
            win_rate(model=adapter_run, prompts=held_out_file, **given, **SHORT)


def test_answers_are_kept_where_judging_them_fails(
    adapter_run: Path,
    held_out_file: Path,
    serve_chat: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def away(*_: Any) -> None:
        raise ConfigError("the judge went away")

    monkeypatch.setattr("penchant.commands.better_answer.judge_both_orders", away)
    judge, file = serve_chat(lambda text: "Verdict: A"), tmp_path / "answers.jsonl"
    words = ["evaluate", "--model", str(adapter_run), "--prompts", str(held_out_file)]
    words += ["--judge", judge.url, "--max_new_tokens", "8", "--answers", str(file)]
    assert main(words) == 1
    assert "the judge went away" in capsys.readouterr().err
    answers = [json.loads(line) for line in file.read_text().splitlines()]
    assert [set(one) for one in answers] == [{"prompt", "answer", "other"}] * 8


def test_settings_hold_for_both_models_and_reward_models_read_prompts_as_they_were_asked(
    tiny_model_dir: Path,
    adapter_run: Path,
    classifier: Callable[[int], str],
    held_out_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[list[Any]] = []
    contexts: list[Any] = []

    def scores(rewards: Any, samples: list[Any]) -> list[float]:
        seen.append(samples)
        return [0.0] * len(samples)

    def made(found: Any, options: Any, context: Any) -> Any:
        contexts.append(context)
        return make_rewards(found, options, context)

    monkeypatch.setattr("penchant.commands.better_answer._scores", scores)
    monkeypatch.setattr("penchant.commands.better_answer.make_rewards", made)
    template = tmp_path / "template.jinja"
    template.write_text(
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[{{ mood | default('so') }}]{% endif %}"
    )
    given: Any = {"prompts": held_out_file, "reward": classifier(1), "max_new_tokens": 2}
    given |= {"chat_template": str(template), "chat_template_kwargs": {"mood": "glum"}}
    win_rate(model=tiny_model_dir, against=tiny_model_dir, **given, batch_size=3, dtype="bf16")
    own, theirs = seen
    assert [one.rendered for one in own] == [one.rendered for one in theirs]
    assert own[0].rendered == f"[user]{own[0].prompt}[glum]"
    (message,) = own[0].as_chat
    assert (message["role"], message["content"]) == ("user", own[0].prompt)
    (context,) = contexts
    assert (context.batch_size, context.dtype) == (3, torch.bfloat16)
    assert context.reads_plain(str(adapter_run / "model")) and context.reads_plain(str(adapter_run))
    assert not context.reads_plain(str(tiny_model_dir))
    seen.clear()
    win_rate(model=adapter_run, against=adapter_run, **given, max_length=8, max_prompt_length=4)
    assert {len(one.prompt_ids) for samples in seen for one in samples} == {4}
    assert {one.as_chat for samples in seen for one in samples} == {None}  # trained on plain texts
