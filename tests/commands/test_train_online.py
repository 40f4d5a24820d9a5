"""Runs of methods that sample: they learn, resume exactly, refuse what cannot be, and report."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import penchant
from penchant.config.keys import load_config
from penchant.core.asking import Usage
from penchant.core.errors import ConfigError, TrainingError, UserError
from penchant.guards.monitors.levers import length_lever
from penchant.methods.kl import FixedKLController
from penchant.rl.sampling.sampler import CachedSampler
from penchant.rl.scoring import Scoring
from penchant.rl.source import RolloutSource
from penchant.training.accelerator import make_accelerator
from penchant.training.inputs import read_inputs, read_run_data
from penchant.training.kind_prompts import Prompts, require_whole_mini_batches
from penchant.training.prepare import prepare

from ..online_runs import KEYS, PROMPTS

GROUPED = {"num_generations": 4}
METHODS = {"ppo": {"ppo_epochs": 2}, "grpo": {**GROUPED, "num_iterations": 2}, "rloo": GROUPED}


def share_of_letters(completions, **_):
    """Characters that are letters: something that a random model can learn to say."""
    return [sum("a" <= c.lower() <= "z" for c in text) / 6 for text in completions]


def train(method, model, output, reward=share_of_letters, data=PROMPTS, **keys):
    return penchant.train(
        method, model=str(model), data=data, output=output, reward=reward,
        **{**KEYS, **METHODS.get(method, {}), **keys},
    )  # fmt: skip


def read(run, file):
    return [json.loads(line) for line in (Path(run) / file).read_text().splitlines()]


def weights(run):
    files = (Path(run) / "model").glob("*.safetensors")  # an adapter or all weights; a value head
    return {name: value for file in files for name, value in load_file(file).items()}


@pytest.mark.parametrize("method", METHODS)
def test_the_reward_rises(method, tiny_model_dir, tmp_path):
    # Wide clipping: each of 259 tokens has little probability, which a step may not much raise.
    free = {"init_kl_coef": 0.0, "adap_kl_ctrl": False, "cliprange": 2.0}
    keys = free if method == "ppo" else {"beta": 0.0, "epsilon": 0.9, "epsilon_high": 2.0}
    keys |= {"max_steps": 20, "batch_size": 32, "per_device_train_batch_size": 16}
    # Under seed 0 PPO stays at answers of one letter for longer than these steps.
    keys |= {"learning_rate": 3e-2, "lora_r": 0, "save_steps": 500, "seed": 1}
    train(method, tiny_model_dir, tmp_path / "run", **keys)
    rewards = [record["reward/mean"] for record in read(tmp_path / "run", "metrics.jsonl")]
    assert rewards[-1] > rewards[0] + 1


def assert_same_run(one, other):
    whole, halved = weights(one), weights(other)
    assert whole.keys() == halved.keys()
    assert all(torch.equal(whole[name], halved[name]) for name in whole)
    timed = ("tokens_per_second", "memory_peak_bytes")
    records = (read(run, "metrics.jsonl") for run in (one, other))
    for first, second in zip(*records, strict=True):
        for name in first:
            if name not in timed and not name.startswith("seconds/"):
                assert first[name] == second[name], name
    completions = [[r["completion"] for r in read(run, "rollouts.jsonl")] for run in (one, other)]
    assert completions[0] == completions[1]


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_ends_in_the_same_weights(method, tiny_model_dir, tmp_path, as_killed):
    """Wherever in a batch it was killed; with running statistics and a controller, for PPO."""
    keys = {"save_total_limit": 9}
    if method == "ppo":
        keys |= {"reward_normalization": "running", "target_kl": 0.01, "horizon": 20}
    train(method, tiny_model_dir, tmp_path / "whole", **keys)
    if method == "ppo":
        coefficients = {r["objective/kl_coef"] for r in read(tmp_path / "whole", "metrics.jsonl")}
        assert len(coefficients) == 2  # a batch each
    for killed in (1, 2, 3, 5):
        halved = as_killed(tmp_path / "whole", tmp_path / str(killed), after=killed)
        torch.manual_seed(999)
        train(method, tiny_model_dir, halved, resume=True, **keys)
        assert_same_run(tmp_path / "whole", halved)


def test_online_dpo_learns_what_a_reward_model_prefers_and_resumes_exactly(
    tiny_model_dir, tmp_path, classifier, as_killed
):
    """Killed between the two steps of a batch."""
    torch.manual_seed(0)
    keys = {"num_generations": 8, "batch_size": 64, "per_device_train_batch_size": 8}
    keys |= {"gradient_accumulation_steps": 1, "max_steps": 16, "save_steps": 13, "lora_r": 0}
    keys |= {"learning_rate": 5e-2, "lr_scheduler_type": "constant", "reward": classifier(1)}
    whole = tmp_path / "whole"
    train("online_dpo", tiny_model_dir, whole, **keys)
    first, *_, last = read(whole, "metrics.jsonl")
    assert last["reward/mean"] > first["reward/mean"] + first["reward/std"]
    halved = as_killed(whole, tmp_path / "halved", after=13)
    torch.manual_seed(999)
    train("online_dpo", tiny_model_dir, halved, resume=True, **keys)
    assert_same_run(whole, halved)


def test_a_resumed_run_says_that_auto_is_another_engine(
    tiny_model_dir, tmp_path, as_killed, monkeypatch
):
    keys = {"save_total_limit": 9}
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(
            "penchant.rl.sampling.engines.engines_of", lambda *_, **__: ["static", "cached"]
        )
        train("grpo", tiny_model_dir, tmp_path / "whole", **keys)
    halved = as_killed(tmp_path / "whole", tmp_path / "halved", after=1)
    train("grpo", tiny_model_dir, halved, resume=True, **keys)
    (found,) = [f for f in read(halved, "findings.jsonl") if f["id"] == "other-engine"]
    assert found["evidence"] == {"before": "static", "now": "cached"}
    assert "other-engine" not in {f["id"] for f in read(tmp_path / "whole", "findings.jsonl")}


def test_a_run_that_is_interrupted_while_it_samples_goes_on(tiny_model_dir, tmp_path):
    train("ppo", tiny_model_dir, tmp_path / "whole")
    asked = []

    def interrupted(completions, **_):
        asked.append(completions)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return share_of_letters(completions)

    with pytest.raises(KeyboardInterrupt):
        train("ppo", tiny_model_dir, tmp_path / "halved", reward=interrupted)
    train("ppo", tiny_model_dir, tmp_path / "halved", resume=True, reward=interrupted)
    assert_same_run(tmp_path / "whole", tmp_path / "halved")


def test_passes_over_answers_filled_by_tokens_change_nothing_and_resume(
    tiny_model_dir, tmp_path, as_killed
):
    keys = {"max_steps": 2, "max_tokens_per_batch": 64}
    whole = tmp_path / "whole"
    train("grpo", tiny_model_dir, tmp_path / "fixed", max_steps=2)
    train("grpo", tiny_model_dir, whole, **keys)
    fixed, filled = (read(tmp_path / name, "metrics.jsonl")[0] for name in ("fixed", "whole"))
    assert filled["grad_norm"] == pytest.approx(fixed["grad_norm"], rel=1e-4)
    assert filled["loss"] == pytest.approx(fixed["loss"], abs=1e-6)
    assert filled["tokens"] < fixed["tokens"]  # all answers of a prompt share it
    halved = as_killed(whole, tmp_path / "halved", after=1)
    train("grpo", tiny_model_dir, halved, resume=True, **keys)
    assert_same_run(whole, halved)


def test_a_run_reports_what_it_sampled(tiny_model_dir, tmp_path):
    run = tmp_path / "run"
    result = train("ppo", tiny_model_dir, run, eval_data=None, train_fraction=0.7,
                   eval_on_start=True, log_completions=3)  # fmt: skip
    assert result.before.reward is not None
    assert result.after.kl_sequence is not None
    first = read(run, "metrics.jsonl")[1]  # the evaluation before training comes first
    for name in ("reward/mean", "kl/sequence", "entropy", "completion/length", "policy/clipfrac",
                 "policy/approxkl", "loss/policy", "loss/value", "objective/kl_coef",
                 "returns/mean", "seconds/generation", "logprob/sampling_difference"):  # fmt: skip
        assert name in first, name
    assert first["kl/sequence"] == 0
    assert first["logprob/sampling_difference"] < 1e-4
    rollouts = read(run, "rollouts.jsonl")
    assert len(rollouts) == 3 * 2  # two batches: six steps of four, two epochs over eight answers
    assert {"prompt", "completion", "reward", "ended", "iteration"} <= set(rollouts[0])
    summary = json.loads((run / "summary.json").read_text())
    assert summary["sampling"]["episodes"] == 16
    assert 0 < summary["sampling"]["generation_seconds"] < summary["train_seconds"]


@pytest.mark.parametrize("num_generations", [4, 8])
def test_as_many_answers_are_sampled_as_were_asked_for_where_not_all_are_trained_on(
    num_generations, tiny_model_dir, tmp_path
):
    def ranked(completions, **_):
        return list(range(len(completions)))

    penchant.train(
        "online_dpo", model=str(tiny_model_dir), data=PROMPTS, output=tmp_path, reward=ranked,
        **{**KEYS, "max_steps": None, "total_episodes": 16, "num_generations": num_generations},
    )  # fmt: skip
    assert json.loads((tmp_path / "summary.json").read_text())["sampling"]["episodes"] == 16


def test_what_a_judge_was_asked_is_in_the_summary_of_a_run_that_was_resumed_too(
    tiny_model_dir, tmp_path, serve_chat, as_killed
):
    judge = serve_chat(lambda text: f"Score: {1 + len(text) % 9}")
    keys = {"reward": f"judge:{judge.url}", "max_steps": 8, "save_total_limit": 9}
    whole = tmp_path / "whole"
    train("grpo", tiny_model_dir, whole, **keys)
    told = [json.loads((whole / "summary.json").read_text())["sampling"]["asked"]["judge"]]
    assert told[0].startswith(f"{len(judge.asked)} asked, ")
    halved = as_killed(whole, tmp_path / "halved", after=4)
    train("grpo", tiny_model_dir, halved, resume=True, **keys)
    told.append(json.loads((halved / "summary.json").read_text())["sampling"]["asked"]["judge"])
    # What was known before the kill is asked for again: the cache was in memory.
    sums = [sum(map(int, re.findall(r"(\d+) (?:asked|known)", text))) for text in told]
    assert sums[0] == sums[1] > 8


def test_samples_that_a_reward_model_cuts_are_said_once_in_a_run(
    tiny_model_dir, tmp_path, classifier, as_killed
):
    judge = Path(classifier(1))
    settings = json.loads((judge / "config.json").read_text())
    (judge / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": 8}))
    keys = {"reward": str(judge), "save_total_limit": 9}
    whole = tmp_path / "whole"
    train("grpo", tiny_model_dir, whole, **keys)
    halved = as_killed(whole, tmp_path / "halved", after=2)
    train("grpo", tiny_model_dir, halved, resume=True, **keys)
    for run in (whole, halved):
        found = [f for f in read(run, "findings.jsonl") if "lose the start of" in f["what"]]
        assert [(one["id"], one["step"]) for one in found] == [("reward-setup", 0)]


def test_what_was_asked_is_summed_over_processes_and_counts_from_the_start_of_the_run():
    rewards = SimpleNamespace(usage=lambda: {"judge": replace(usage)}, state_dict=dict)
    usage = Usage(asked=100, refused=3)
    team = SimpleNamespace(gather=lambda own: [own, {"judge": Usage(asked=1)}])
    collector = SimpleNamespace(rewards=rewards, team=team, agrees=None)
    controller = FixedKLController(0.0)
    source = RolloutSource([], collector, None, controller, None, None, None)
    usage.asked += 5
    usage.refused += 1
    assert source.summary()["asked"]["judge"].startswith("6 asked")
    _, state = source.state()
    assert Usage(**json.loads(json.dumps(state))["asked"]["judge"]) == Usage(asked=6, refused=1)


def test_a_value_model_of_its_own(tiny_model_dir, tmp_path):
    shared, copied = tmp_path / "shared", tmp_path / "copied"
    train("ppo", tiny_model_dir, shared, max_steps=1)
    train("ppo", tiny_model_dir, copied, max_steps=1, value_model="copy", reference="copy")
    one, other = read(shared, "metrics.jsonl")[0], read(copied, "metrics.jsonl")[0]
    for name in ("loss", "loss/policy", "loss/value", "reward/mean", "kl/sequence"):
        assert one[name] == pytest.approx(other[name], abs=1e-5), name


def test_a_value_model_of_its_own_is_as_precise_as_the_policy(
    tiny_model_dir, tmp_path, monkeypatch
):
    frozen = []

    scorer = Prompts.scorer

    def made(kind, config, model, pad_token_id, critic):
        for one in (model, critic):
            frozen.append({p.dtype for p in one.parameters() if not p.requires_grad})
        return scorer(kind, config, model, pad_token_id, critic)

    monkeypatch.setattr(Prompts, "scorer", made)
    keys = {"max_steps": 1, "value_model": "copy", "dtype": "bf16", "precision": "bf16"}
    train("ppo", tiny_model_dir, tmp_path / "run", **keys)
    assert frozen == [{torch.bfloat16}, {torch.bfloat16}]
    frozen.clear()
    train("ppo", tiny_model_dir, tmp_path / "exact", **{**keys, "dtype": "fp32"})
    assert frozen == [{torch.float32}, {torch.float32}]


def test_all_weights_train_with_a_copied_reference(tiny_model_dir, tmp_path):
    train("ppo", tiny_model_dir, tmp_path / "run", lora_r=0, learning_rate=1e-3)
    records = read(tmp_path / "run", "metrics.jsonl")
    assert records[0]["kl/sequence"] == pytest.approx(0, abs=1e-5)
    assert records[-1]["kl/sequence"] != 0


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"batch_size": 10}, "multiple of the mini-batch"),
        ({"max_completion_length": 64}, "do not fit in max_length"),
        ({"reference": "cache"}, "a cache cannot know"),
        ({"reference": "none"}, "compares with a reference"),
        ({"generation": "continuous"}, "needs a CUDA GPU"),
        ({"reward": "no_such_module:reward"}, "no_such_module"),
    ],
)
def test_what_cannot_be_is_refused(keys, said, tiny_model_dir, tmp_path):
    with pytest.raises(UserError, match=said):
        train("ppo", tiny_model_dir, tmp_path / "run", **keys)


@pytest.mark.parametrize("reward", ["exact", "no_such_module:reward", "./no_such_folder"])
def test_a_reward_that_is_not_there_is_refused_before_a_model_loads(
    reward, model_without_weights, tmp_path
):
    with pytest.raises(UserError, match=r"no_such|'exact' is no folder"):
        train("ppo", model_without_weights, tmp_path / "run", reward=reward)


@pytest.mark.parametrize("side", ["data", "eval_data"])
def test_a_reward_whose_column_a_prompt_lacks_is_refused_before_a_model_loads(
    side, model_without_weights, tmp_path
):
    def by_number(completions, n):
        return [float(one) for one in n]

    keys = {"data": PROMPTS[:8], "eval_data": PROMPTS[8:]}
    keys[side] = [*keys[side], {"prompt": "say nothing"}]
    place = rf"and list:{len(keys[side])} has no such column"
    with pytest.raises(UserError, match=rf"by_number needs the argument 'n', {place}"):
        train("grpo", model_without_weights, tmp_path / "run", reward=by_number, **keys)


def test_equal_rewards_are_found_and_end_a_grouped_run(tiny_model_dir, tmp_path):
    def constant(completions, **_):
        return [1.0] * len(completions)

    with pytest.raises(TrainingError, match="nothing to learn from"):
        train("grpo", tiny_model_dir, tmp_path / "grpo", reward=constant)
    findings = read(tmp_path / "grpo", "findings.jsonl")
    assert "reward-constant" in {f["id"] for f in findings}
    with pytest.raises(UserError, match="nothing to learn from"):
        train("rloo", tiny_model_dir, tmp_path / "rloo", reward=constant)
    train("ppo", tiny_model_dir, tmp_path / "ppo", reward=constant)  # the penalty still teaches
    assert "reward-constant" in {f["id"] for f in read(tmp_path / "ppo", "findings.jsonl")}


def test_a_run_whose_reward_is_all_won_ends_with_what_it_has_learned(tiny_model_dir, tmp_path):
    asked = []

    def won_after_two_batches(completions, **_):
        asked.append(completions)
        return [1.0 if len(asked) > 2 else v for v in share_of_letters(completions)]

    run = tmp_path / "run"
    train("grpo", tiny_model_dir, run, reward=won_after_two_batches, max_steps=40, save_steps=100)
    steps = [record["step"] for record in read(run, "metrics.jsonl")]
    found = {f["id"]: f for f in read(run, "findings.jsonl")}["nothing-left-to-learn"]
    assert found["step"] == steps[-1] < 40
    assert f"ends after step {steps[-1]}" in found["what"]
    assert any(w.abs().sum() > 0 for name, w in weights(run).items() if "lora_B" in name)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == steps[-1]
    penchant.report(run, output=tmp_path / "report.html")


def test_large_rewards_without_normalisation_are_found(tiny_model_dir, tmp_path, capfd):
    def large(completions, **_):
        return [100.0 * v for v in share_of_letters(completions)]

    train("ppo", tiny_model_dir, tmp_path / "run", reward=large, reward_normalization="none")
    found = {f["id"]: f["what"] for f in read(tmp_path / "run", "findings.jsonl")}
    assert "reward-scale" in found
    said = " ".join(capfd.readouterr().err.split())  # on the screen too, whatever its width
    assert "rewards enter with a deviation" in said
    assert "reward_normalization is none" in said
    assert any("normal" in what for what in found.values())


def test_the_scale_of_rewards_is_nothing_to_methods_that_divide_by_it(tiny_model_dir, tmp_path):
    def large(completions, **_):
        return [100.0 * v for v in share_of_letters(completions)]

    train("grpo", tiny_model_dir, tmp_path / "run", reward=large, reward_normalization="none")
    found = [f["id"] for f in read(tmp_path / "run", "findings.jsonl")]
    assert "reward-scale" not in found


def test_answers_that_never_end_are_found(tiny_model_dir, tmp_path):
    train("ppo", tiny_model_dir, tmp_path / "run", max_completion_length=2, seed=3)
    records = read(tmp_path / "run", "metrics.jsonl")
    found = {f["id"] for f in read(tmp_path / "run", "findings.jsonl")}
    assert ("never-ends" in found) == any(r["completion/ended"] == 0 for r in records)
    assert "never-ends" in found


def test_filters_hold_while_sampling_and_scoring(tiny_model_dir, tmp_path):
    train("ppo", tiny_model_dir, tmp_path / "run", temperature=0.8, top_k=7, top_p=0.9)
    records = read(tmp_path / "run", "metrics.jsonl")
    assert max(r["logprob/sampling_difference"] for r in records) < 1e-4
    assert records[0]["policy/approxkl"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_what_sampling_tells_spares_a_pass_and_changes_nothing(
    method, tiny_model_dir, tmp_path, monkeypatch
):
    """Once a batch has shown that it agrees: of PPO the second, whose values are not all 0."""
    passes = []
    of_policy = Scoring._of_policy

    def counted(self, groups, batch):
        passes.append(len(groups))
        return of_policy(self, groups, batch)

    monkeypatch.setattr(Scoring, "_of_policy", counted)
    keys = {"learning_rate": 1e-3, "max_steps": 12}
    train(method, tiny_model_dir, tmp_path / "told", **keys)
    told = len(passes)
    monkeypatch.setattr(CachedSampler, "tells", False)
    train(method, tiny_model_dir, tmp_path / "scored", **keys)
    batches = read(tmp_path / "told", "metrics.jsonl")[-1]["iteration"]
    assert batches > 2
    compared = 2 if method == "ppo" else 1
    assert (len(passes) - told) * compared == batches * told
    runs = [read(tmp_path / name, "metrics.jsonl") for name in ("told", "scored")]
    for one, other in zip(*runs, strict=True):
        for name in ("loss", "entropy", "kl/sequence", "grad_norm", "reward/mean"):
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-5), name


def test_epochs_stop_early_when_the_policy_has_moved(tiny_model_dir, tmp_path):
    keys = {"ppo_epochs": 4, "max_steps": 8, "learning_rate": 0.1}
    train("ppo", tiny_model_dir, tmp_path / "on", early_stopping_kl=1e-6, **keys)
    train("ppo", tiny_model_dir, tmp_path / "off", **keys)
    on, off = (read(tmp_path / name, "metrics.jsonl")[-1]["iteration"] for name in ("on", "off"))
    assert off == 1
    assert on > 1


def test_fields_of_a_record_reach_the_reward(tiny_model_dir, tmp_path):
    seen = []

    def reward(prompts, completions, n, **_):
        seen.extend(zip(prompts, n, strict=True))
        return [float(len(text)) for text in completions]

    train("rloo", tiny_model_dir, tmp_path / "run", reward=[reward, share_of_letters],
          reward_weights=(1.0, 0.5), max_steps=1)  # fmt: skip
    assert set(seen) <= {(row["prompt"], row["n"]) for row in PROMPTS}


def test_empty_prompts_and_long_ones(tiny_model_dir, tmp_path):
    data = [*PROMPTS, {"prompt": ""}, {"prompt": "x" * 300}]
    train("ppo", tiny_model_dir, tmp_path / "run", data=data, max_steps=1)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["tokenising"]["training"]["prompts_cut"] == 1
    with pytest.raises(UserError, match="empty"):
        train("ppo", tiny_model_dir, tmp_path / "strict", data=data, strict=True)


def test_answers_that_do_not_fill_the_mini_batches_of_all_processes_are_refused(tiny_model_dir):
    keys = {"model": str(tiny_model_dir), "data": "prompts.jsonl", "reward": "length:4"}
    sizes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "batch_size": 8}
    config = load_config("ppo", {**keys, **sizes})
    require_whole_mini_batches(config, 2)
    with pytest.raises(ConfigError, match=r"batch_size \(8 .* of 3 processes \(12"):
        require_whole_mini_batches(config, 3)


def test_a_sampled_policy_is_held_against_pairs_too(tiny_model_dir, tmp_path):
    train("ppo", tiny_model_dir, tmp_path / "run", max_steps=2)
    pairs = [{"prompt": "say a", "chosen": "aaa", "rejected": "zzz"}] * 2
    found = penchant.evaluate(model=tmp_path / "run", data=pairs)
    assert found.accuracy in (0.0, 1.0)
    assert found.kl >= 0


def test_a_sweep_loads_rewards_anew_for_each_point(tiny_model_dir, tmp_path):
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    found = penchant.sweep(
        "ppo", {"init_kl_coef": [0.05, 0.5]}, model=str(tiny_model_dir), data=str(data),
        reward="length:3", output=tmp_path / "sweep", train_fraction=0.7,
        **{**KEYS, "max_steps": 2, "eval_on_start": True},
    )  # fmt: skip
    assert [point.error for point in found.points] == [None, None]
    assert found.points[0].after.reward is not None
    assert found.recommended is not None
    assert "reward" in found.reason


def test_a_penalty_that_a_guard_raised_ends_with_its_run(tiny_model_dir, tmp_path):
    config = load_config(
        "ppo", {**KEYS, "model": str(tiny_model_dir), "data": "<list>", "reward": ["length:3"]}
    )
    inputs = read_inputs(config, read_run_data(config, PROMPTS, None))
    collector = prepare(config, make_accelerator(config.precision), inputs).collector
    before = collector.rewards.options
    length_lever(collector.rewards, 4).turn()
    assert collector.rewards.options.length_penalty > before.length_penalty
    collector.reset()
    assert collector.rewards.options == before


@pytest.mark.parametrize("method", METHODS)
def test_a_mini_batch_is_the_same_however_it_is_divided(method, tiny_model_dir, tmp_path):
    divisions = {"whole": (4, 1), "halves": (2, 2), "singles": (1, 4)}
    for name, (size, passes) in divisions.items():
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": passes}
        train(method, tiny_model_dir, tmp_path / name, max_steps=3, **sizes)
    whole = weights(tmp_path / "whole")
    for name in ("halves", "singles"):
        divided = weights(tmp_path / name)
        for key, value in whole.items():
            torch.testing.assert_close(divided[key], value, rtol=1e-3, atol=2e-5)
