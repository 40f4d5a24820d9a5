"""Runs that are watched: what they write, that they stay the same, and what findings do."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import penchant
from penchant.core.errors import RewardError
from penchant.core.team import ALONE, Team
from penchant.guards.monitors.monitor import _raw
from penchant.methods.grpo import GRPOOptions
from penchant.rl.rewards.make import find_rewards, make_rewards
from penchant.rl.rewards.samples import Sample

PROMPTS = [{"prompt": f"say {word}", "n": i} for i, word in enumerate("abcdefghij")]


def lines(run: Path, file: str) -> list[dict[str, Any]]:
    path = run / file
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def checks(run: Path) -> list[dict[str, Any]]:
    return [r for r in lines(run, "metrics.jsonl") if "monitor/seconds" in r]


def weights(run: Path) -> bytes:
    return (run / "model" / "adapter_model.safetensors").read_bytes()


def letters(completions: list[str], **_: Any) -> list[float]:
    return [sum("a" <= c.lower() <= "z" for c in text) / 6 for text in completions]


@pytest.fixture
def keys(tiny_keys: dict[str, Any], held_out_file: Path) -> dict[str, Any]:
    """Six steps, watched every three of them."""
    return {
        **tiny_keys, "eval_data": str(held_out_file), "monitor_prompts": 4, "monitor_steps": 3,
        "monitor_length": 6, "eval_samples": 0,
    }  # fmt: skip


@pytest.fixture
def online(tiny_model_dir: Path) -> dict[str, Any]:
    return {
        "model": str(tiny_model_dir), "data": PROMPTS, "reward": letters, "batch_size": 8,
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_length": 64,
        "max_completion_length": 6, "max_steps": 8, "ppo_epochs": 1, "learning_rate": 1e-2,
        "lora_r": 4, "eval_on_start": False, "warmup_ratio": 0.0, "monitor_prompts": 4,
        "monitor_steps": 2, "save_steps": 4,
    }  # fmt: skip


def test_offline_run_answers_the_same_held_out_prompts_and_measures(
    keys: dict[str, Any], tmp_path: Path
) -> None:
    penchant.train("dpo", output=tmp_path / "run", monitor_reward="length:4", **keys)
    found = checks(tmp_path / "run")
    assert [r["step"] for r in found] == [0, 3, 6]
    first, last = found[0], found[-1]
    assert first["monitor/kl_sequence"] == pytest.approx(0, abs=1e-5)
    assert last["monitor/kl_sequence"] > 0.01
    assert last["monitor/kl_sequence"] == pytest.approx(
        last["monitor/kl"] * last["monitor/length"], rel=1e-4
    )
    assert {"monitor/entropy", "monitor/self_bleu", "monitor/held_out_reward"} <= last.keys()
    assert 0 <= last["monitor/win_rate"] <= 1
    answers = lines(tmp_path / "run", "monitor.jsonl")
    assert len(answers) == 12
    assert [a["prompt"] for a in answers[:4]] == [a["prompt"] for a in answers[-4:]]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["monitor_seconds"] > 0


def test_watching_changes_neither_weights_nor_random_numbers(
    keys: dict[str, Any], tmp_path: Path
) -> None:
    for name, more in {"on": {}, "off": {"monitor_prompts": 0}}.items():
        penchant.train("dpo", output=tmp_path / name, **{**keys, "lora_dropout": 0.1, **more})
    assert weights(tmp_path / "on") == weights(tmp_path / "off")
    assert checks(tmp_path / "off") == []


def test_online_run_is_watched_on_a_sample_of_its_prompts_and_keeps_its_statistics(
    online: dict[str, Any], tmp_path: Path
) -> None:
    for name, more in {"on": {}, "off": {"monitor_prompts": 0}}.items():
        penchant.train("ppo", output=tmp_path / name, **{**online, **more})
    assert weights(tmp_path / "on") == weights(tmp_path / "off")
    (note,) = [
        f for f in lines(tmp_path / "on", "findings.jsonl") if f["id"] == "no-held-out-prompts"
    ]
    assert "4 of the training prompts" in note["what"]
    assert all("reward" in answer for answer in lines(tmp_path / "on", "monitor.jsonl"))


def test_reference_free_method_tells_its_divergence_by_switching_the_adapter_off(
    keys: dict[str, Any], tmp_path: Path
) -> None:
    penchant.train("simpo", output=tmp_path / "run", **keys)
    assert checks(tmp_path / "run")[-1]["monitor/kl_sequence"] > 0


def test_reference_free_method_takes_no_other_model_for_its_start(
    keys: dict[str, Any], tmp_path: Path
) -> None:
    """Switched off, this adapter leaves what is left of the base."""
    keys |= {"peft": {"init_lora_weights": "pissa"}, "lora_r": 4}
    penchant.train("simpo", output=tmp_path / "run", **keys)
    assert len(checks(tmp_path / "run")) == 3
    logged = lines(tmp_path / "run", "metrics.jsonl")
    assert not [name for record in logged for name in record if "kl" in name]
    said = [f for f in lines(tmp_path / "run", "findings.jsonl") if f["id"] == "start-not-at-hand"]
    assert [f["step"] for f in said] == [0]


def test_answers_are_held_against_a_cache_that_does_not_know_them(
    keys: dict[str, Any], tmp_path: Path
) -> None:
    """Beside a head that is run as it is: whole distributions are not compared."""
    keys |= {"peft": {"use_dora": True}, "lora_target_modules": "q_proj,lm_head", "lora_r": 4}
    penchant.train("dpo", output=tmp_path / "run", reference="cache", **keys)
    divergences = [r["monitor/kl_sequence"] for r in checks(tmp_path / "run")]
    assert divergences[0] == pytest.approx(0, abs=1e-4)
    last: dict[str, Any] = {}
    for record in lines(tmp_path / "run", "metrics.jsonl"):
        last |= record
    assert min(divergences[-1], last["eval/kl/sequence"]) > 0.001
    assert last["eval/reward/margin"] > 0.01
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert "full logits" in summary["scoring"]


def test_without_held_out_prompts_a_split_is_proposed(
    tiny_keys: dict[str, Any], tmp_path: Path
) -> None:
    penchant.train("dpo", output=tmp_path / "run", **{**tiny_keys, "monitor_prompts": 4})
    (note,) = [
        f for f in lines(tmp_path / "run", "findings.jsonl") if f["id"] == "no-held-out-prompts"
    ]
    assert "--train_fraction 0.9" in note["remedy"]
    assert checks(tmp_path / "run") == []


def test_short_run_is_not_watched_for_longer_than_it_takes(
    keys: dict[str, Any], tmp_path: Path
) -> None:
    """Six steps of a tiny model cannot pay for answers: said once, and left out."""
    penchant.train("dpo", output=tmp_path / "run", **{**keys, "monitor_steps": None})
    ids = [f["id"] for f in lines(tmp_path / "run", "findings.jsonl")]
    assert ids.count("monitor-too-slow") == 1
    assert checks(tmp_path / "run") == []


def test_reward_that_fails_on_monitored_answers_does_not_end_the_run(
    keys: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "broken.py"
    file.write_text("def judge(completions, **_):\n    raise ValueError('no')\n")
    penchant.train("dpo", output=tmp_path / "run", monitor_reward=f"{file}:judge", **keys)
    ids = [f["id"] for f in lines(tmp_path / "run", "findings.jsonl")]
    assert ids.count("monitor-failed") == 1
    assert (tmp_path / "run" / "summary.json").exists()


def test_an_answer_that_cannot_be_judged_is_left_out_and_the_monitors_go_on(
    keys: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "rewards.py"
    file.write_text(
        "def judge(completions, prompts, **_):\n"
        "    return [None if '25' in p else len(c) for p, c in zip(prompts, completions)]\n"
    )
    run = tmp_path / "run"
    penchant.train("dpo", output=run, monitor_reward=f"{file}:judge", **keys)
    assert [r["step"] for r in checks(run)] == [0, 3, 6]
    assert all({"monitor/held_out_reward", "monitor/win_rate"} <= r.keys() for r in checks(run)[1:])
    rewards = [answer["reward"] for answer in lines(run, "monitor.jsonl")]
    assert (len(rewards), rewards.count(None)) == (12, 3)
    found = lines(run, "findings.jsonl")
    (said,) = (f for f in found if f["id"] == "monitor-reward-dropped")
    assert "1 of 4 monitored answers have no reward" in said["what"]
    assert "monitor-failed" not in {f["id"] for f in found}


def test_what_a_judge_of_monitored_answers_was_asked_is_in_the_summary(
    keys: dict[str, Any], tmp_path: Path, serve_chat: Any
) -> None:
    judge = serve_chat(lambda text: f"Score: {1 + len(text) % 9}")
    penchant.train("dpo", output=tmp_path / "run", monitor_reward=f"judge:{judge.url}", **keys)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["monitor_asked"]["judge"].startswith(f"{len(judge.asked)} asked")
    assert judge.asked


@pytest.fixture(scope="module")
def sharp_model(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny model, so sure of its tokens that a few steps take it far from the reference."""
    folder = tmp_path_factory.mktemp("sharp") / "model"
    shutil.copytree(tiny_model_dir, folder)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] *= 20
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.fixture
def drifting(keys: dict[str, Any], sharp_model: str) -> dict[str, Any]:
    """A run that is some 37 nats an answer from its reference at its first check, of step 3."""
    return {**keys, "model": sharp_model, "monitor_length": 24}


@pytest.fixture
def drifting_online(online: dict[str, Any], sharp_model: str) -> dict[str, Any]:
    """The same with sampling: its first check is that of step 2."""
    return {**online, "model": sharp_model, "max_completion_length": 24, "monitor_length": 24}


def drifts(run: Path) -> list[dict[str, Any]]:
    return [f for f in lines(run, "findings.jsonl") if f["id"] == "drift"]


def test_stop_ends_the_run_with_its_evaluation_and_model(
    drifting: dict[str, Any], tmp_path: Path
) -> None:
    result = penchant.train("dpo", output=tmp_path / "run", on_finding="drift=stop", **drifting)
    assert result.steps == 3
    assert result.after is not None
    assert weights(tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["stopped"].startswith("drift")
    (found,) = drifts(tmp_path / "run")
    assert found["action"].startswith("stop")


@pytest.mark.parametrize("killed", [2, 4], ids=["at the action", "after it"])
def test_adapt_raises_the_penalty_and_resumes_with_it(
    killed: int, drifting_online: dict[str, Any], tmp_path: Path, as_killed: Any
) -> None:
    keys = {**drifting_online, "on_finding": "adapt", "init_kl_coef": 0.05, "adap_kl_ctrl": False}
    keys |= {"save_steps": 2, "save_total_limit": 9}
    penchant.train("ppo", output=tmp_path / "whole", **keys)
    coefficients = [r["objective/kl_coef"] for r in lines(tmp_path / "whole", "metrics.jsonl")
                    if "objective/kl_coef" in r]  # fmt: skip
    assert coefficients[:3] == [0.05, 0.05, 0.2]  # of the next batch on
    findings = lines(tmp_path / "whole", "findings.jsonl")
    assert next(r["action"] for r in findings if r.get("action", "").startswith("adapt")) == (
        "adapt: init_kl_coef raised from 0.05 to 0.2, learning_rate lowered from 0.01 to 0.005"
    )
    run = as_killed(tmp_path / "whole", tmp_path / "run", after=killed)
    penchant.train("ppo", output=run, resume=True, **keys)
    assert weights(tmp_path / "whole") == weights(run)


def test_a_coefficient_that_is_steered_after_it_was_raised_is_resumed_as_it_was(
    drifting_online: dict[str, Any], tmp_path: Path, as_killed: Any
) -> None:
    keys = {**drifting_online, "on_finding": "adapt", "init_kl_coef": 0.05, "horizon": 40}
    penchant.train("ppo", output=tmp_path / "whole", **keys)
    found = lines(tmp_path / "whole", "findings.jsonl")
    assert any("init_kl_coef raised" in r.get("action", "") for r in found if r["step"] < 4)
    run = as_killed(tmp_path / "whole", tmp_path / "run", after=4)
    penchant.train("ppo", output=run, resume=True, **keys)
    assert weights(tmp_path / "whole") == weights(run)


def test_adapt_raises_beta_of_methods_with_a_reference(
    drifting: dict[str, Any], tmp_path: Path
) -> None:
    for name, more in {"adapted": {"on_finding": "adapt"}, "warned": {}}.items():
        penchant.train("dpo", output=tmp_path / name, **{**drifting, **more})
    assert weights(tmp_path / "adapted") != weights(tmp_path / "warned")
    (warned,) = drifts(tmp_path / "warned")
    assert "action" not in warned
    action = drifts(tmp_path / "adapted")[0]["action"]
    assert action.startswith("adapt: beta raised from 0.1 to 0.2, learning_rate lowered")


def test_rollback_returns_to_the_best_weights_before_the_alarm(
    drifting_online: dict[str, Any], tmp_path: Path
) -> None:
    calls = []

    def rising(completions: list[str], **_: Any) -> list[float]:
        """Every check is the best so far, also that which raises the alarm."""
        calls.append(completions)
        return [len(calls) + value for value in letters(completions)]

    keys = {**drifting_online, "reward": rising, "reward_normalization": "none", "max_steps": 4}
    penchant.train("ppo", output=tmp_path / "run", **keys, on_finding="drift=rollback")
    (found,) = drifts(tmp_path / "run")
    assert found["step"] == 2
    assert found["action"].startswith("rollback: back to the weights of step 0 ")
    divergence = {r["step"]: r["kl/sequence"] for r in lines(tmp_path / "run", "metrics.jsonl")
                  if "kl/sequence" in r}  # fmt: skip
    assert checks(tmp_path / "run")[1]["monitor/kl_sequence"] > 15
    assert divergence[3] == pytest.approx(0, abs=1e-4)


def test_one_reading_leads_to_one_return(drifting: dict[str, Any], tmp_path: Path) -> None:
    """Until the next check nothing tells of the weights that were put back."""
    keys = {**drifting, "max_steps": 16, "monitor_steps": 8}
    penchant.train("dpo", output=tmp_path / "run", on_finding="drift=rollback", **keys)
    returned = [r["step"] for r in lines(tmp_path / "run", "metrics.jsonl") if "returned_to" in r]
    assert returned in ([8], [8, 16])
    assert [f["step"] for f in drifts(tmp_path / "run")] == returned


def test_a_process_that_loses_its_share_of_rewards_ends_no_check() -> None:
    def broken(completions: list[str]) -> list[float]:
        raise OSError("the service is away")

    options = GRPOOptions(reward=("broken",), on_reward_error="drop")
    rewards = make_rewards(find_rewards([broken]), options, None)  # type: ignore[arg-type]
    samples = [Sample("a", "b", [], [], True, {}, "rows:1")]
    raw, apart = _raw(rewards, samples, Team(0, 2))
    assert [math.isnan(value) for value in (*raw, *apart)] == [True, True]
    with pytest.raises(RewardError, match="the service is away"):
        _raw(rewards, samples, ALONE)
