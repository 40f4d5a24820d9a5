"""`penchant check` shows what the rewards pay for, before a run."""

from __future__ import annotations

import json

import pytest

import penchant
from penchant.core.errors import RewardError
from penchant.models.load import load_tokenizer
from penchant.rl.rewards.make import ModelContext, RewardOptions, make_rewards

SILENCE = "few-records,no-held-out,warmup,chat-as-text,learning-rate,no-held-out-prompts"


@pytest.fixture
def keys(tiny_model_dir, tmp_path):
    rows = [{"prompt": f"{n} + {n}?", "answer": str(2 * n)} for n in range(1, 9)]
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": str(tiny_model_dir), "data": str(data), "output": tmp_path / "run",
        "max_length": 64, "max_completion_length": 16, "batch_size": 8, "num_generations": 4,
        "max_steps": 1, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1,
        "silence": SILENCE,
    }  # fmt: skip


def test_check_without_weights_tries_the_functions_on_the_datas_own_answers(keys):
    found = penchant.check("grpo", probe=False, reward="gsm8k", **keys)
    assert [(t.prompt, t.answer, t.sampled) for t in found.trials] == [
        ("1 + 1?", "2", False),
        ("2 + 2?", "4", False),
    ]
    assert [trial.scores for trial in found.trials] == [{"gsm8k": 1.0}] * 2
    assert found.as_dict()["trials"][0]["scores"] == {"gsm8k": 1.0}


def test_the_format_is_tried_on_a_right_answer_after_what_the_template_opens(keys, tmp_path):
    template = tmp_path / "opens.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<think>{% endif %}"
    )
    data = tmp_path / "chat.jsonl"
    data.write_text(json.dumps({"prompt": [{"role": "user", "content": "2?"}], "answer": "2"}))
    chat = {**keys, "data": str(data), "chat_template": str(template)}
    (trial,) = penchant.check("grpo", probe=False, reward="format", **chat).trials
    assert trial.prompt == "2?<think>"
    assert trial.answer == "This is a thought.</think><answer>2</answer>"
    assert trial.scores == {"format": 1.0}


def test_check_with_weights_tries_the_rewards_on_sampled_answers(keys):
    found = penchant.check("grpo", reward="length:16", **keys)
    assert [trial.sampled for trial in found.trials] == [True, True]
    assert all(0 <= trial.scores["length"] <= 1 for trial in found.trials)


def test_a_reward_that_fails_is_an_error_of_the_check(keys):
    def broken(completions):
        raise KeyError("oops")

    (error,) = penchant.check("grpo", probe=False, reward=broken, **keys).errors
    assert (error.id, "KeyError" in error.what) == ("reward", True)


def test_a_file_without_a_function_lists_its_functions(tmp_path, tiny_model_dir):
    file = tmp_path / "judges.py"
    file.write_text("from math import sqrt\ndef short(completions): ...\ndef _own(): ...\n")
    options = RewardOptions(reward=(str(file),))
    context = ModelContext(load_tokenizer(str(tiny_model_dir)))
    with pytest.raises(RewardError, match=r"names no function.*set reward to \S+judges\.py:short$"):
        make_rewards(options.reward, options, context)
