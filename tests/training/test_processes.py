"""Several processes train what one trains, however their shares of a step come out."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import penchant
from penchant.methods import METHODS
from penchant.models.load import load_causal_model
from penchant.rl import rollout
from penchant.rl.rewards import shared_adapter
from penchant.rl.rewards.judging import Rewards
from penchant.rl.sampling.sampler import CachedSampler
from penchant.rl.scoring import Scoring
from penchant.training.result import TrainResult
from penchant.training.step import Step


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


FOLLOWED = {"sync_ref_model": True, "ref_model_sync_steps": 2}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "num_processes", "num_pairs", "changes"),
    [
        # Steps of 8, 8 and 1 pairs: at last one process has nothing of its own.
        ("dpo", 2, 17, {"lora_r": 8}),
        ("dpo", 2, 17, {"lora_r": 0}),
        ("reward", 2, 17, {"lora_r": 8}),
        # Steps of 12 and 2: two processes have something to share, one has not.
        ("aot", 3, 14, {"lora_r": 8}),
        ("kto", 3, 13, {"lora_r": 8, "unpair": True}),
        ("dpo", 2, 17, {"lora_r": 8, "use_weighting": True}),  # WPO
        # Weights in parts, gathered for their passes.
        ("dpo", 2, 17, {"lora_r": 8, "sharding": "full", "merge": True}),
        ("dpo", 2, 17, {"lora_r": 0, "sharding": "full", "reference": "copy"}),
        ("dpo", 2, 17, {"lora_r": 0, "sharding": "full", "reference": "cache"}),
        ("dpo", 2, 17, {"lora_r": 0, "sharding": "full", "offload": True, "max_grad_norm": 0.1}),
        ("dpo", 2, 17, {"lora_r": 8, "sharding": "full", **FOLLOWED}),
        ("dpo", 2, 17, {"lora_r": 0, "sharding": "full", **FOLLOWED}),
        ("dpo", 2, 17, {"lora_r": 0, "sharding": "full", "reference": "copy-8bit"}),
        ("orpo", 3, 17, {"lora_r": 0, "sharding": "full", "gradient_checkpointing": "on"}),
        ("reward", 3, 17, {"lora_r": 8, "sharding": "full", "merge": True}),
        ("aot", 3, 14, {"lora_r": 8, "sharding": "full"}),
        ("kto", 2, 13, {"lora_r": 8, "unpair": True, "sharding": "full"}),
    ],
    ids=str,
)
def test_several_processes_train_what_one_trains(
    tmp_path: Path,
    tiny_keys: dict[str, Any],
    held_out_file: Path,
    fork: Any,
    method: str,
    num_processes: int,
    num_pairs: int,
    changes: dict[str, Any],
) -> None:
    rows = Path(tiny_keys["data"]).read_text().splitlines()[:num_pairs]
    (tmp_path / "data.jsonl").write_text("\n".join(rows) + "\n")
    keys = {
        **tiny_keys,
        "data": str(tmp_path / "data.jsonl"),
        "eval_data": str(held_out_file),
        "num_train_epochs": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "save_steps": 2,
        "adam_epsilon": 1e-4,  # else Adam makes steps of rounding errors where gradients vanish
        **changes,
    }
    lora_r = keys["lora_r"]
    keys["gradient_accumulation_steps"] = 2 * num_processes
    alone = {key: value for key, value in keys.items() if key != "offload"}
    one = penchant.train(method, output=tmp_path / "one", **alone)
    both = {**keys, "gradient_accumulation_steps": 2, "output": tmp_path / "two"}
    fork(method, both, num_processes)
    two = TrainResult.from_summary(json.loads((tmp_path / "two" / "summary.json").read_text()))
    name = "adapter_model.safetensors" if lora_r else "model.safetensors"
    expected, found = (load_file(run.model / name) for run in (one, two))
    start = load_file(Path(tiny_keys["model"]) / "model.safetensors")
    assert expected.keys() == found.keys()
    if not lora_r:
        assert max((expected[n] - start[n]).abs().max() for n in expected) > 1e-3
    for weight in expected:
        torch.testing.assert_close(found[weight], expected[weight], atol=1e-6, rtol=0)
    for a, b in zip(metrics(one.output), metrics(two.output), strict=True):
        assert a["step"] == b["step"]
        # Labels of one prompt share its tokens only where they are in one process.
        shared = {"tokens"} if METHODS[method].data == "labels" else set()
        for metric in set(a) - {"tokens_per_second", "memory_peak_bytes"} - shared:
            assert a[metric] == pytest.approx(b[metric], rel=1e-4, abs=1e-5), metric
    if method == "dpo":  # They go on from a checkpoint, too.
        if "merge" in keys:
            assert (two.output / "merged" / "model.safetensors").exists()
        (two.output / "summary.json").unlink()
        shutil.rmtree(two.model)
        shutil.rmtree(two.output / "checkpoints" / "step-6")
        fork(method, {**both, "resume": True}, num_processes)
        again = load_file(two.model / name)
        assert all(torch.equal(again[weight], found[weight]) for weight in found)
        assert [m["step"] for m in metrics(two.output)] == [m["step"] for m in metrics(one.output)]


MIXED = '''
def reward(completions, n, **_):
    """Of one prompt in three the answers differ; the others are all alike."""
    letters = [sum("a" <= c.lower() <= "z" for c in text) / 6 for text in completions]
    return [value if number % 3 == 0 else 1.0 for value, number in zip(letters, n, strict=True)]
'''


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("grpo", {"dynamic_sampling": True, "num_generations": 4}),
        ("distill", {"beta": 0.5}),
        ("distill", {"beta": 1.0, "sharding": "full"}),
        ("distill", {"beta": 1.0, "sharding": "full", "lora_r": 0}),
    ],
    ids=str,
)
def test_two_processes_sample_and_train_what_one_does(
    tmp_path: Path, tiny_model_dir: Path, launch: Any, method: str, changes: dict[str, Any]
) -> None:
    rows = [json.dumps({"prompt": f"say {word}", "n": i}) for i, word in enumerate("abcdefghij")]
    (tmp_path / "data.jsonl").write_text("\n".join(rows) + "\n")
    (tmp_path / "mixed.py").write_text(MIXED)
    shutil.copytree(tiny_model_dir, tmp_path / "teacher")
    taught = load_file(tmp_path / "teacher" / "model.safetensors")
    taught["lm_head.weight"] = taught["lm_head.weight"].flip(0).contiguous()
    save_file(taught, tmp_path / "teacher" / "model.safetensors", metadata={"format": "pt"})
    teacher = {"teacher_model": str(tmp_path / "teacher")} if method == "distill" else {}
    keys = {
        **{"model": str(tiny_model_dir), "data": str(tmp_path / "data.jsonl"), "max_steps": 4},
        **{"reward": f"{tmp_path / 'mixed.py'}:reward", "max_completion_length": 6},
        **{"max_length": 64, "batch_size": 16, "per_device_train_batch_size": 4},
        **{"learning_rate": 1e-3, "adam_epsilon": 1e-4, "lora_r": 4, "monitor_prompts": 0},
        **{"eval_samples": 0, **teacher, **changes},
    }
    whole = {k: v for k, v in keys.items() if k != "sharding"}
    one = penchant.train(method, output=tmp_path / "one", gradient_accumulation_steps=2, **whole)
    launch(2, method, {**keys, "gradient_accumulation_steps": 1, "output": tmp_path / "two"})
    for ours, theirs in zip(metrics(one.output), metrics(tmp_path / "two"), strict=True):
        for name in ("loss", "grad_norm", "reward/mean", "resampling/thrown_away", "kl/teacher"):
            if name in ours:
                assert theirs[name] == pytest.approx(ours[name], rel=1e-3, abs=1e-5), name


@pytest.mark.slow
def test_runs_follow_each_other_in_several_processes(
    tmp_path: Path, tiny_keys: dict[str, Any], held_out_file: Path, launch: Any
) -> None:
    keys = {**tiny_keys, "eval_data": str(held_out_file), "max_steps": 2, "ensemble": 2}
    launch(2, "reward", {**keys, "output": str(tmp_path / "ensemble")})
    summary = json.loads((tmp_path / "ensemble" / "ensemble.json").read_text())
    assert summary["members"] == ["member-1/model", "member-2/model"]


# Two processes, forked: what is quick enough to be tested every time.


def assert_same(found: Path, expected: Path, *, within: float = 1e-6) -> None:
    files = list((expected / "model").glob("*.safetensors"))
    assert files
    for file in files:
        theirs = load_file(file)
        for name, weight in load_file(found / "model" / file.name).items():
            torch.testing.assert_close(weight, theirs[name], atol=within, rtol=0)


def alone(keys: dict[str, Any]) -> dict[str, Any]:
    return {**keys, "gradient_accumulation_steps": 2 * keys["gradient_accumulation_steps"]}


def test_two_processes_train_what_one_trains(
    tmp_path: Path, few_keys: dict[str, Any], held_out_file: Path, fork: Any
) -> None:
    keys = {**few_keys, "eval_data": str(held_out_file), "eval_samples": 1}
    penchant.train("dpo", output=tmp_path / "one", **alone(keys))
    fork("dpo", {**keys, "output": tmp_path / "two"})
    assert_same(tmp_path / "two", tmp_path / "one")
    for a, b in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        for metric in {*a} - {"tokens_per_second", "memory_peak_bytes"}:
            assert a[metric] == pytest.approx(b[metric], rel=1e-4, abs=1e-5), metric


def test_one_process_goes_on_from_the_parts_that_two_have_saved(
    tmp_path: Path, few_keys: dict[str, Any], as_killed: Any, fork: Any
) -> None:
    keys = {**few_keys, "lora_r": 0, "save_steps": 2}
    fork("orpo", {**keys, "sharding": "full", "output": tmp_path / "two"})
    run = as_killed(tmp_path / "two", tmp_path / "one", after=2)
    assert len([*(run / "checkpoints" / "step-2").glob("shard-*.safetensors")]) == 2
    penchant.train("orpo", output=run, resume=True, **alone(keys))
    assert_same(run, tmp_path / "two")


def held(run: Path) -> dict[str, int]:
    summary = json.loads((run / "summary.json").read_text())
    return {name: size for name, size in summary["memory_held"].items() if size}


def length(completions: list[str], **_: Any) -> list[float]:
    """Tell answers apart; the second of two processes takes memory for it."""
    if os.environ.get("RANK") == "1":
        assert b"x" * 2**28
    return [float(sum(map(ord, text))) for text in completions]


def test_two_processes_learn_from_answers_what_one_learns(
    tmp_path: Path, few_keys: dict[str, Any], fork: Any
) -> None:
    answers = {"batch_size": 16, "num_generations": 4, "max_completion_length": 4}
    keys = {**few_keys, **answers, "reward": length, "max_steps": 2}
    penchant.train("grpo", output=tmp_path / "one", **alone(keys))
    fork("grpo", {**keys, "output": tmp_path / "two"})
    assert_same(tmp_path / "two", tmp_path / "one")
    summary = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert summary["memory_peak_bytes"] >= metrics(tmp_path / "two")[-1]["memory_peak_bytes"]


def test_a_check_that_is_launched_forecasts_its_processes(
    tmp_path: Path, tiny_keys: dict[str, Any], fork: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = penchant.check

    def checked(method: str, **keys: Any) -> None:
        found = check(method, **keys)
        assert not found.errors
        assert found.estimate is not None and found.estimate.num_steps == 24 / (2 * 4)

    monkeypatch.setattr(penchant, "check", checked)
    keys = {**tiny_keys, "lora_r": 0, "sharding": "hybrid", "output": tmp_path / "run"}
    fork("orpo", keys, command="check")


class Clock:
    """Time that passes only in work that is timed: a second for each item of it."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def timed(self, work: Any) -> Any:
        """A method whose first argument holds the items."""

        def take(own: Any, items: Any, *given: Any) -> Any:
            self.now += len(items)
            return work(own, items, *given)

        return take


def test_a_check_that_is_launched_forecasts_sampling_as_one_process_does_for_all(
    tmp_path: Path, tiny_keys: dict[str, Any], fork: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the three prompts of a launched probe the leader, whose seconds count, answers two."""
    clock = Clock()
    monkeypatch.setattr(rollout, "time", clock)
    for owner, name in ((CachedSampler, "sample"), (Rewards, "ask"), (Scoring, "columns")):
        monkeypatch.setattr(owner, name, clock.timed(getattr(owner, name)))
    answers = {"batch_size": 12, "generation_batch_size": 8, "num_generations": 4}
    keys = {**tiny_keys, **answers, "reward": length, "max_completion_length": 4, "max_steps": 3}
    keys |= {"per_device_train_batch_size": 2, "output": tmp_path / "run"}
    check = penchant.check

    def sampling(**more: Any) -> dict[str, float]:
        found = check("grpo", **keys, **more).estimate
        return {name: found.times[name] for name in ("generation", "rewards", "scoring")}

    one = sampling(num_processes=2)
    assert one["rewards"] == 6

    def checked(*_: Any, **__: Any) -> None:
        assert sampling() == pytest.approx(one, rel=0.1)

    monkeypatch.setattr(penchant, "check", checked)
    fork("grpo", {}, command="check")


def unlucky(take: Any) -> Any:
    """Let memory run out in the second process, in a pass that the first one waits for."""

    def fail(*given: Any) -> Any:
        if os.environ.get("RANK") == "1":
            raise torch.OutOfMemoryError("of this process alone")
        return take(*given)

    return fail


def test_a_sweep_ends_where_one_process_alone_fails_in_a_point(
    tmp_path: Path,
    few_keys: dict[str, Any],
    held_out_file: Path,
    fork: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next point would be begun by this process, while the others wait for it in this one."""
    monkeypatch.setattr(Step, "take", unlucky(Step.take))
    keys = {**few_keys, "eval_data": str(held_out_file), "output": str(tmp_path / "sweep")}
    fork("dpo", {**keys, "vary": {"beta": [0.1, 0.3]}}, command="sweep", fails=True)
    assert not [*(tmp_path / "sweep").glob("*/point.json")]


def test_a_point_that_diverges_in_all_processes_is_recorded_by_a_sweep(
    tmp_path: Path, few_keys: dict[str, Any], held_out_file: Path, fork: Any
) -> None:
    keys = {**few_keys, "eval_data": str(held_out_file), "output": str(tmp_path / "sweep")}
    del keys["adam_epsilon"]
    keys |= {"max_grad_norm": 1e30, "optim": "sgd", "max_steps": 3}
    fork("dpo", {**keys, "vary": {"learning_rate": [1e30, 1e-3]}}, command="sweep")
    found = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert "is not finite" in found["points"][0]["error"]
    assert found["recommended"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["off", "full"])
@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("grpo", {"num_generations": 4, "num_iterations": 2}),
        ("grpo", {"num_generations": 4, "lora_r": 0, "beta": 0.1, "reference": "copy"}),
        ("rloo", {"num_generations": 4}),
        ("online_dpo", {}),
        ("ppo", {"ppo_epochs": 2}),
        ("ppo", {"value_model": "copy", "kl_penalty": "full", "reference": "copy", "lora_r": 0}),
        ("ppo", {"share_reward_adapter": True}),
    ],
    ids=str,
)
def test_several_processes_learn_from_answers_what_one_learns(
    tmp_path: Path,
    few_keys: dict[str, Any],
    as_killed: Any,
    fork: Any,
    method: str,
    changes: dict[str, Any],
    sharding: str,
) -> None:
    keys = {**few_keys, "batch_size": 16, "max_completion_length": 4, "reward": length, **changes}
    if "share_reward_adapter" in changes:
        reward = {**few_keys, "gradient_accumulation_steps": 1}
        keys["reward"] = str(penchant.train("reward", output=tmp_path / "reward", **reward).model)
    keys |= {"save_steps": 1, "save_total_limit": 9}
    penchant.train(method, output=tmp_path / "one", **alone(keys))
    fork(method, {**keys, "sharding": sharding, "output": tmp_path / "two"})
    assert_same(tmp_path / "two", tmp_path / "one")
    one, two = (held(tmp_path / name) for name in ("one", "two"))
    for part in ("policy, frozen", "policy, trained", "value model"):
        if part in one:
            expected = one[part] / (2 if sharding == "full" else 1)
            assert two[part] == pytest.approx(expected, rel=0.05), part
    # One process goes on from the answers of both.
    run = as_killed(tmp_path / "two", tmp_path / "again", after=1)
    penchant.train(method, output=run, resume=True, **alone(keys))
    assert_same(run, tmp_path / "one")


def stumbling(score: Any) -> Any:
    """Let a reward on the policy's weights fail once in the second process, within a layer."""
    due = [ValueError("of this process alone")]

    def fail(*_: Any) -> None:
        raise due.pop()

    def forward(scorer: Any, *given: Any) -> Any:
        if os.environ.get("RANK") != "1" or not due:
            return score(scorer, *given)
        handle = scorer.causal_model.model.layers[1].mlp.register_forward_pre_hook(fail)
        try:
            return score(scorer, *given)
        finally:
            handle.remove()

    return forward


@pytest.mark.slow
def test_a_reward_that_fails_once_in_one_process_is_tried_again_while_the_others_wait(
    tmp_path: Path, few_keys: dict[str, Any], fork: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = shared_adapter._SharedScorer
    monkeypatch.setattr(shared, "forward", stumbling(shared.forward))
    reward = penchant.train("reward", output=tmp_path / "reward", **few_keys).model
    keys = {**few_keys, "reward": str(reward), "share_reward_adapter": True, "batch_size": 16}
    keys |= {"max_completion_length": 4, "on_reward_error": "drop"}
    penchant.train("ppo", output=tmp_path / "one", **alone(keys))
    fork("ppo", {**keys, "sharding": "full", "output": tmp_path / "two"})
    assert_same(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("given", ["model", "reference_model"])
def test_an_adapter_on_a_head_that_is_its_embedding_is_sharded(
    tmp_path: Path, few_keys: dict[str, Any], fork: Any, given: str
) -> None:
    """Every process loads it whole, where of other models the first alone does."""
    base, adapter = tmp_path / "tied", tmp_path / "adapter"
    shutil.copytree(few_keys["model"], base)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.lm_head.weight = model.model.embed_tokens.weight
    model.config.tie_word_embeddings = True
    model.save_pretrained(base)
    get_peft_model(model, LoraConfig(r=2, init_lora_weights=False)).save_pretrained(adapter)
    AutoTokenizer.from_pretrained(base).save_pretrained(adapter)
    named = {"model": str(base), given: str(adapter)}
    assert load_causal_model(str(adapter), dtype=torch.float32).config.tie_word_embeddings
    keys = {**few_keys, **named, "lora_r": 0, "reference": "copy"}
    penchant.train("dpo", output=tmp_path / "one", **alone(keys))
    fork("dpo", {**keys, "sharding": "full", "output": tmp_path / "two"})
    assert_same(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("lora_r", [8, 0])
def test_weights_of_two_precisions_are_sharded_together(
    tmp_path: Path, few_keys: dict[str, Any], fork: Any, lora_r: int
) -> None:
    """As on a GPU by default: a frozen base in bf16 under an adapter in fp32, products in bf16."""
    keys = {**few_keys, "precision": "bf16", "lora_r": lora_r}
    penchant.train("dpo", output=tmp_path / "one", **alone(keys))
    fork("dpo", {**keys, "sharding": "full", "output": tmp_path / "two"})
    assert_same(tmp_path / "two", tmp_path / "one", within=1e-4)


@pytest.mark.slow
def test_nodes_that_are_copies_of_each_other_train_what_one_process_trains(
    tmp_path: Path, few_keys: dict[str, Any], as_killed: Any, fork: Any
) -> None:
    keys = {**few_keys, "lora_r": 0, "save_steps": 2, "per_device_train_batch_size": 2}
    nodes = {**keys, "sharding": "hybrid", "output": tmp_path / "nodes"}
    fork("orpo", nodes, 4, nodes=2)
    whole = {**keys, "gradient_accumulation_steps": 4}
    penchant.train("orpo", output=tmp_path / "one", **whole)
    assert_same(tmp_path / "nodes", tmp_path / "one")
    run = as_killed(tmp_path / "nodes", tmp_path / "again", after=2)
    fork("orpo", {**nodes, "output": run, "resume": True}, 4, nodes=2)
    assert_same(run, tmp_path / "one")


@pytest.mark.slow
def test_weights_are_sharded_where_the_launcher_asks_for_it(
    tmp_path: Path, few_keys: dict[str, Any], fork: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    fork("orpo", {**few_keys, "lora_r": 0, "save_steps": 2, "output": tmp_path / "run"})
    sizes = [f.stat().st_size for f in (tmp_path / "run/checkpoints/step-4").glob("shard-*")]
    assert len(sizes) == 2
    assert max(sizes) < 1.1 * min(sizes)
