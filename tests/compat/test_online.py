"""GRPO and RLOO scripts of TRL: reward functions are called as TRL calls them, and learned from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from penchant.compat.trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from penchant.core.errors import ConfigError, ModelError, UserError

CALLS: list[dict[str, Any]] = []


@pytest.fixture
def stories(shared: Path) -> Path:
    return shared / "models" / "stories260k"


@pytest.fixture
def small(small: dict[str, Any]) -> dict[str, Any]:
    """Two steps of four answers to each of two prompts."""
    sampled = {"gradient_accumulation_steps": 2, "num_generations": 4, "max_completion_length": 8}
    of_pairs = ("max_length", "train_sampling_strategy")
    return {**{key: value for key, value in small.items() if key not in of_pairs}, **sampled}


@pytest.fixture
def prompts() -> Dataset:
    return Dataset.from_list(
        [{"prompt": f"Once upon a time {name}", "answer": name} for name in ("Tim", "Lily", "Ben")]
    )


def names_it(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float]:
    CALLS.append({"prompts": prompts, "completions": completions, "ids": completion_ids, **columns})
    pairs = zip(columns["answer"], completions, strict=True)
    return [float(name in text) for name, text in pairs]


async def many_tokens(completion_ids: Any, **others: Any) -> list[float | None]:
    """As TRL allows: asynchronous, and None where there is no score."""
    return [None if i == 0 else len(set(ids)) / 8 for i, ids in enumerate(completion_ids)]


@pytest.mark.parametrize(
    ("trainer", "config", "method"),
    [(GRPOTrainer, GRPOConfig, "grpo"), (RLOOTrainer, RLOOConfig, "rloo")],
)
def test_script_trains_two_steps(trainer, config, method, stories, prompts, small) -> None:
    CALLS.clear()
    model = AutoModelForCausalLM.from_pretrained(stories)
    before = model.model.layers[0].mlp.up_proj.weight.clone()
    done = trainer(
        model=model,
        reward_funcs=[names_it, many_tokens],
        args=config(**small, reward_weights=[1.0, 0.5]),
        train_dataset=prompts,
        processing_class=AutoTokenizer.from_pretrained(stories),
    )
    out = done.train()
    assert out.global_step == 2 and len(CALLS) == 2
    call = CALLS[0]
    assert all(isinstance(text, str) for text in call["prompts"] + call["completions"])
    assert [len(call[n]) for n in ("prompts", "completions", "ids", "answer")] == [8] * 4
    assert all(p.endswith(name) for p, name in zip(call["prompts"], call["answer"], strict=True))
    assert not torch.equal(before, model.model.layers[0].mlp.up_proj.weight)
    keys = done.run_config.flat()
    assert (keys["method"], keys["batch_size"], keys["reward_normalization"]) == (method, 8, "none")
    assert keys["reward"] == ["names_it", "many_tokens"]
    entry = done.state.log_history[0]
    assert {"reward", "reward_std", "completions/mean_length", "rewards/names_it/mean"} <= set(
        entry
    )
    # The weighted sum, to which None adds nothing.
    scores = [sum(name in text for name, text in zip(call["answer"], call["completions"],
                                                     strict=True))]  # fmt: skip
    tokens = [len(set(ids)) / 8 for ids in call["ids"]][1:]
    assert entry["reward"] == pytest.approx((scores[0] + 0.5 * sum(tokens)) / 8, abs=1e-6)


def test_chats_are_passed_as_lists_of_messages(tiny_model_dir, small) -> None:
    CALLS.clear()
    chats = [
        {"prompt": [{"role": "user", "content": f"Is {i} so?"}], "answer": "yes"} for i in range(4)
    ]

    def reward(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        CALLS.append({"prompts": prompts, "completions": completions})
        return [float(len(turns[0]["content"])) for turns in completions]

    done = GRPOTrainer(
        str(tiny_model_dir), reward, args=GRPOConfig(**small), train_dataset=chats,
        peft_config=LoraConfig(r=2, target_modules=["q_proj", "v_proj"]),
    )  # fmt: skip
    done.train()
    assert [turn["role"] for turn in CALLS[0]["prompts"][0]] == ["user"]
    assert [set(turns[0]) for turns in CALLS[0]["completions"]] == [{"role", "content"}] * 8
    adapter = Path(small["output_dir"]) / "model" / "adapter_config.json"
    assert set(json.loads(adapter.read_text())["target_modules"]) == {"q_proj", "v_proj"}


def test_a_reward_model_scores_prompt_and_answer_as_one_text(
    stories, prompts, small, tmp_path
) -> None:
    torch.manual_seed(0)
    judge = AutoModelForSequenceClassification.from_pretrained(stories, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(stories)
    small["max_steps"] = 1
    done = RLOOTrainer(
        str(stories), judge, args=RLOOConfig(**small, temperature=1e-3), train_dataset=prompts,
        reward_processing_classes=tokenizer,
    )  # fmt: skip
    done.train()
    rollout = json.loads((tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()[0])
    text = rollout["prompt"] + rollout["completion"]
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        expected = float(judge(**inputs).logits)
    assert rollout["reward"] == pytest.approx(expected, abs=1e-3)


def test_epochs_are_counted_in_steps_of_answers(stories, prompts, small) -> None:
    args = GRPOConfig(
        **{**small, "max_steps": -1, "num_train_epochs": 2}, save_strategy="epoch",
        eval_strategy="epoch", per_device_eval_batch_size=2,
    )  # fmt: skip
    done = GRPOTrainer(
        str(stories), names_it, args=args, train_dataset=prompts, eval_dataset=prompts
    )
    done.train()
    # 3 prompts of 4 answers are 12 answers: two steps of 8 an epoch.
    assert done.run_config.save_steps == done.run_config.eval_steps == 2
    assert [e["step"] for e in done.state.log_history if "eval_reward" in e] == [2, 3]


def test_what_cannot_judge_is_refused(stories, prompts, tiny_model_dir, small) -> None:
    def staged(completions: Any, trainer_state: Any) -> list[float]:
        return []

    def wants(completions: Any, solution: Any) -> list[float]:
        return []

    plain = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    for reward, message in (
        (None, "set reward_funcs"),
        (3, "got int"),
        (staged, "staged asks for trainer_state"),
        (plain, "a reward model has a scalar head"),
    ):
        with pytest.raises((ConfigError, ModelError), match=message):
            GRPOTrainer(str(stories), reward, train_dataset=prompts)
    with pytest.raises(ConfigError, match="2 entries for 1"):
        GRPOTrainer(
            str(stories), names_it, train_dataset=prompts, reward_processing_classes=[None, None]
        )
    with pytest.raises(UserError, match="wants needs the argument 'solution'"):
        GRPOTrainer(str(stories), wants, train_dataset=prompts, args=GRPOConfig(**small)).train()


def test_an_answer_without_a_score_is_left_out_and_an_error_ends_the_run(
    stories, prompts, small, tmp_path
) -> None:
    def mostly(completion_ids: Any, **columns: Any) -> list[float | None]:
        return [None if i == 0 else float(ids[0]) for i, ids in enumerate(completion_ids)]

    def fails(completions: Any, **columns: Any) -> list[float]:
        return [1 / 0]

    small["max_steps"] = 1
    done = GRPOTrainer(str(stories), mostly, args=GRPOConfig(**small), train_dataset=prompts)
    done.train()
    assert done.state.log_history[0]["reward/dropped"] == 1
    small["output_dir"] = str(tmp_path / "other")
    with pytest.raises(UserError, match="fails raised ZeroDivisionError"):
        GRPOTrainer(str(stories), fails, args=GRPOConfig(**small), train_dataset=prompts).train()


def test_vllm_is_taken_with_its_weights_and_room() -> None:
    mine = {"use_vllm": True, "vllm_gpu_memory_utilization": 0.5, "vllm_max_model_length": 99}
    taken = GRPOConfig("run", **mine).chosen().options
    wanted = {"generation": "vllm", "importance_sampling": "sequence"}
    wanted |= {"vllm_gpu_memory_utilization": 0.5, "vllm_max_model_length": 99}
    wanted |= {"importance_sampling_cap": 3.0}
    assert {name: taken[name] for name in wanted} == wanted
    token = {"vllm_importance_sampling_mode": "token_truncate"}
    token |= {"vllm_importance_sampling_clip_max": 2.0}
    taken = GRPOConfig("run", **mine, **token).chosen().options
    assert (taken["importance_sampling"], taken["importance_sampling_cap"]) == ("token", 2.0)
    off = GRPOConfig("run", **mine, vllm_importance_sampling_correction=False).chosen().options
    assert off["importance_sampling"] == "off"
    assert RLOOConfig("run", **mine).chosen().options["importance_sampling"] == "off"
    masked = {"vllm_importance_sampling_mode": "token_mask"}
    with pytest.raises(ConfigError, match="set token_truncate or sequence_mask"):
        GRPOConfig("run", **mine, **masked).chosen()


def test_cut_answers_are_not_left_out_of_means_that_count_them() -> None:
    cut: dict[str, Any] = {"mask_truncated_completions": True}
    assert GRPOConfig("run", loss_type="dapo", **cut).chosen().options.items() >= cut.items()
    for loss_type in ("grpo", "dr_grpo"):
        with pytest.raises(ConfigError, match="divides by the answers that it leaves out"):
            GRPOConfig("run", loss_type=loss_type, **cut).chosen()
    with pytest.raises(ConfigError, match="with RLOO divides by"):
        RLOOConfig("run", **cut).chosen()
    assert GRPOConfig("run", vllm_max_model_length=99).chosen().options["generation"] == "auto"
