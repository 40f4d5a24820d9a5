"""Adapters and optimizers beside the usual ones: the losses of a few steps are TRL's."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from penchant.compat import trl as ours

pytestmark = pytest.mark.slow

ROWS = [
    {"prompt": f"Is {i} even?", "chosen": f" {'yes' if i % 2 else 'no'} sir", "rejected": " maybe"}
    for i in range(12)
]
LORA = {"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"}


def losses(library: Any, model: Any, tokenizer: Any, folder: Path, **arguments: Any) -> list[float]:
    peft_config = arguments.pop("peft_config", None)
    more = {"gradient_checkpointing": False} if library is trl else {}
    args = library.DPOConfig(
        output_dir=str(folder), max_steps=4, per_device_train_batch_size=4, logging_steps=1,
        lr_scheduler_type="constant", train_sampling_strategy="sequential", bf16=False,
        max_length=64, report_to="none", save_strategy="no", **arguments, **more,
    )  # fmt: skip
    torch.manual_seed(0)
    trainer = library.DPOTrainer(
        model=copy.deepcopy(model), args=args, train_dataset=Dataset.from_list(ROWS),
        processing_class=tokenizer, peft_config=peft_config,
    )  # fmt: skip
    if library is trl and peft_config is not None:
        assert any(p.requires_grad for p in trainer.model.parameters())
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("adafactor", {"optim": "adafactor", "learning_rate": 1e-3}),
        ("sgd", {"optim": "sgd", "learning_rate": 1e-1}),
        ("adamw_8bit", {"optim": "adamw_bnb_8bit", "learning_rate": 1e-3}),
        ("dora", {"peft_config": {"use_dora": True, "target_modules": ["q_proj", "v_proj"]}}),
        ("pattern", {"peft_config": {"use_rslora": True, "target_modules": r".*\.1\..*_proj"}}),
        (
            "whole",
            {"peft_config": {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}},
        ),
        (
            "tokens",
            {
                "peft_config": {"trainable_token_indices": [40, 41], "target_modules": ["q_proj"]},
                "learning_rate": 1e-1,
            },
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_losses_are_trls(
    name: str, arguments: dict[str, Any], tiny_model_dir: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    keys = {"learning_rate": 1e-2, **arguments}
    found = []
    for library in (ours, trl):
        own = dict(keys)
        if "peft_config" in own:
            # The first matrix decides what a step does; both draw it after the same seed.
            own["peft_config"] = LoraConfig(**LORA, **own["peft_config"])
        found.append(losses(library, model, tokenizer, tmp_path / library.__name__, **own))
    assert len(found[0]) == 4
    assert max(found[1]) - min(found[1]) > 1e-3, "nothing was learned"
    assert found[0] == pytest.approx(found[1], abs=1e-3), name
