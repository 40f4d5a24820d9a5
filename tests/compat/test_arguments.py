"""Every argument of TRL has its effect, changes no result, or is refused; the page says which."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, SchedulerType

import penchant.compat.trl as compat
from penchant.compat.trl import (
    CPOConfig,
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    KTOConfig,
    RewardConfig,
    RLOOConfig,
    tables,
)
from penchant.compat.trl.configs import DPO_LOSSES
from penchant.compat.trl.ppo.config import CONFIG_STANDING
from penchant.compat.trl.ppo.generation import GENERATION_STANDING
from penchant.compat.trl.ppo.model import MODEL_STANDING
from penchant.compat.trl.ppo.trainer import TRAINER_STANDING as PPO_STANDING
from penchant.core.errors import ConfigError

THEIRS = ["RewardConfig", "DPOConfig", "KTOConfig", "ORPOConfig", "CPOConfig", "GRPOConfig"]
THEIRS += ["RLOOConfig"]


@pytest.mark.parametrize("name", THEIRS)
def test_every_argument_of_trl_is_taken_at_its_default(name, of_trl) -> None:
    """A script that spells a default out runs, and one that leaves it out gets the same."""
    ours = getattr(compat, name)
    theirs = {
        field.name: field.default
        for field in dataclasses.fields(of_trl(name))
        if field.init and field.default is not dataclasses.MISSING
    }
    # `max_length` None is without a limit; the others TRL sets by the machine, or not at all.
    machine = {"output_dir", "bf16", "fp16", "gradient_checkpointing", "report_to", "max_length"}
    if name == "KTOConfig":  # TRL needs neighbours to differ; here batches are made so that they do
        machine.add("train_sampling_strategy")
    taken = {n: value for n, value in theirs.items() if n not in machine}
    if name == "GRPOConfig":  # 8 answers to a prompt, of which TRL samples so many at a time
        assert ours(**taken)._batch_size() == 8
    config = ours(**taken)
    for field in type(config).model_fields.keys() & taken.keys():
        assert getattr(ours(), field) == getattr(config, field), field


@pytest.mark.parametrize("name", [name.replace("Config", "Trainer") for name in THEIRS])
def test_every_argument_of_trls_trainers_is_known(name, of_trl, model, rows) -> None:
    known = {**inspect.signature(of_trl(name).__init__).parameters}
    passed = {"self", "model", "args", "train_dataset", "eval_dataset", "reward_funcs"}
    others = {n: one.default for n, one in known.items() if n not in passed}
    if "reward_funcs" in known:
        others["reward_funcs"] = shortest
    if name == "RewardTrainer":
        model.config.num_labels = 1
        model = AutoModelForSequenceClassification.from_config(model.config)
    trainer = getattr(compat, name)(model, train_dataset=rows, **others)
    assert trainer.model is model


def shortest(completions, **columns) -> list[float]:
    return [-float(len(text)) for text in completions]


def test_arguments_that_change_no_result_are_taken_and_said_once(
    model, tokenizer, rows, small, said
) -> None:
    config = DPOConfig(
        **small, run_name="mine", dataset_num_proc=4, dataloader_num_workers=8, tf32=True,
        logging_first_step=True, torch_compile=True, use_liger_kernel=True, do_train=True,
        remove_unused_columns=False, evaluation_strategy="no", ddp_find_unused_parameters=False,
    )  # fmt: skip
    DPOTrainer(model, args=config, train_dataset=rows, processing_class=tokenizer)
    assert said().count("taken without effect, as they change no result: run_name,") == 1
    DPOTrainer(model, args=DPOConfig(**small), train_dataset=rows, processing_class=tokenizer)
    assert "without effect" not in said()


@pytest.mark.parametrize("name", THEIRS)
def test_all_refusals_come_in_one_error(name) -> None:
    ours = getattr(compat, name)
    wrong = dict.fromkeys(ours.standing, "something else")
    with pytest.raises(ConfigError) as caught:
        ours(**wrong, lerning_rate=1, learning_rate="fast", bf16=True, fp16=True, save_strategy="x")
    lines = str(caught.value).splitlines()
    assert [line.split("=")[0] for line in lines[: len(wrong)]] == list(wrong)
    for start, line in zip(
        ["unknown argument 'lerning_rate'; did you mean learning_rate?", "learning_rate should be",
         "bf16 and fp16 exclude", "save_strategy='x' cannot be had here; set no, steps, epoch"],
        lines[len(wrong) :], strict=True,
    ):  # fmt: skip
        assert line.startswith(start)


def test_arguments_reach_the_engine() -> None:
    run = {"model": "m", "data": "d", "eval_data": "e", "lora_r": 0}
    for given, expected in (
        ({"label_smoothing": 0.2, "beta": 0.3}, {"label_smoothing": 0.2, "beta": 0.3}),
        ({"loss_type": "exo_pair"}, {"method": "exo", "label_smoothing": 1e-3}),
        ({"loss_type": ["sigmoid", "sft"]}, {"rpo_alpha": 1.0}),
        ({"loss_type": ["sft", "hinge"], "loss_weights": [0.2, 1]}, {"rpo_alpha": 0.2}),
        ({"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1], "beta": 0.3},
         {"method": "mpo", "losses": {"dpo": 0.8, "bco": 0.2, "sft": 1.0}}),
        ({"loss_type": ["ipo"], "loss_weights": [0.5]}, {"method": "mpo", "losses": {"ipo": 0.5}}),
        ({"sync_ref_model": True, "ref_model_sync_steps": 7}, {"ref_model_sync_steps": 7}),
        ({"precompute_ref_log_probs": True}, {"reference": "cache"}),
        ({"max_steps": -1}, {"max_steps": None, "num_train_epochs": 3.0}),
        ({"warmup_steps": 0.25}, {"warmup_ratio": 0.25}),
        ({"lr_scheduler_type": SchedulerType.COSINE}, {"lr_scheduler_type": "cosine"}),
        ({"bf16": True}, {"precision": "bf16"}),
        ({"bf16": False, "gradient_checkpointing": True},
         {"precision": "fp32", "gradient_checkpointing": "on"}),
        ({"fp16": True, "gradient_checkpointing": False},
         {"precision": "fp16", "gradient_checkpointing": "off"}),
        ({"report_to": ["tensorboard", "mlflow"]}, {"report_to": "tensorboard,mlflow"}),
        ({"report_to": []}, {"report_to": "none", "precision": "auto"}),
        ({"eval_strategy": "steps"}, {"eval_steps": 10, "eval_samples": 0}),
        ({"generate_during_eval": True, "eval_strategy": "steps", "eval_steps": 3},
         {"eval_samples": 3, "eval_steps": 3}),
        ({"overwrite_output_dir": True}, {"overwrite": True}),
        ({"metric_for_best_model": "eval_loss"}, {"load_best_model_at_end": False}),
    ):  # fmt: skip
        keys = DPOConfig(**given).run_config(run).flat()
        assert {name: keys[name] for name in expected} == expected, given
    for loss_type, weight in (("sigmoid", 1.0), ("simpo", 1.0), ("alphapo", 0.0)):
        keys = CPOConfig(loss_type=loss_type).run_config(run).flat()
        assert keys["cpo_alpha"] == weight, loss_type
    with pytest.raises(ImportError, match=r"no SFTTrainer; it has .*DPOTrainer"):
        importlib.import_module("penchant.compat.trl").SFTTrainer  # noqa: B018


def test_wrong_arguments_are_named() -> None:
    two = {"loss_type": ["ipo", "sft"]}
    for config, given, message in (
        (RewardConfig, {"beta": 0.1}, "unknown argument 'beta'"),
        (DPOConfig, {"fsdp_config2": 5}, "unknown argument 'fsdp_config2'; did you mean fsdp_"),
        (DPOConfig, {"max_length": None}, "max_length should be a valid integer"),
        (DPOConfig, {"label_smoothing": 0.7}, "label_smoothing should be less than 0.5"),
        (DPOConfig, {"loss_type": "sigmoyd"}, "unknown loss_type 'sigmoyd'; did you mean sigmoid?"),
        (DPOConfig, {"loss_type": ["sigmoid", "hinge"]}, r"loss_type \['sigmoid', 'hinge'\] names"),
        (DPOConfig, {**two, "loss_weights": [1.0]}, "loss_weights has 1"),
        (DPOConfig, {**two, "rpo_alpha": 1.0}, "rpo_alpha"),
        (DPOConfig, {"discopop_tau": 0.1}, "discopop_tau is an option of discopop, not of dpo"),
        (DPOConfig, {"loss_type": "exo_pair", "label_smoothing": 0.0}, "label_smoothing should be"),
        (DPOConfig, {"f_alpha_divergence_coef": 0.3}, "f_alpha_divergence_coef"),
        (DPOConfig, {"ld_alpha": 0.5, "precompute_ref_log_probs": True}, "^precompute_ref_log"),
        (KTOConfig, {"precompute_ref_log_probs": True}, "^precompute_ref_log_probs"),
        (DPOConfig, {"sync_ref_model": True, "precompute_ref_log_probs": True}, "sync_ref_model"),
        (DPOConfig, {"ref_model_sync_steps": 5}, "ref_model_sync_steps has no effect"),
        (CPOConfig, {"simpo_gamma": 0.7}, "simpo_gamma is the margin of SimPO"),
        (CPOConfig, {"loss_type": "alphapo", "cpo_alpha": 1.0}, "cpo_alpha"),
        (DPOConfig, {"warmup_steps": 5}, "warmup_steps needs max_steps"),
        (DPOConfig, {"warmup_steps": 5, "max_steps": 5}, "warmup_steps"),
        (DPOConfig, {"warmup_steps": 1, "warmup_ratio": 0.1, "max_steps": 9}, "warmup_steps"),
        (DPOConfig, {"eval_steps": 5}, "eval_steps has no effect"),
        (DPOConfig, {"save_steps": 2.5}, "save_steps must be a number of steps, or a share"),
        (DPOConfig, {"load_best_model_at_end": True}, "load_best_model_at_end"),
        (DPOConfig, {"load_best_model_at_end": True, "eval_strategy": "steps",
                     "metric_for_best_model": "eval_loss"}, "^metric_for_best_model='eval_loss'"),
        (DPOConfig, {"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy"),
        (DPOConfig, {"report_to": "all"}, "report_to: unknown tracker 'all'"),
        (GRPOConfig, {"steps_per_generation": 3, "gradient_accumulation_steps": 2},
         r"generation_batch_size \(24 answers\) must be a multiple of per_device"),
        (GRPOConfig, {"num_generations": 3}, r"multiple of num_generations \(3\)"),
        (GRPOConfig, {"generation_batch_size": 8, "steps_per_generation": 1}, "say the same"),
        (GRPOConfig, {"loss_type": "vespo"}, "loss_type should be"),
        (GRPOConfig, {"loss_type": "cispo"}, "set epsilon_high=5.0"),
        (GRPOConfig, {"beta": 0.1, "num_generations": 1}, "num_generations"),
        (RLOOConfig, {"reward_clip_range": (-1.0, 2.0)}, r"reward_clip_range=\(-1.0, 2.0\)"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            config(**given)


def test_wrong_objects_are_named_together(model, rows) -> None:
    with pytest.raises(ConfigError) as caught:
        DPOTrainer(
            None, beta=0.1, callbacks=[print], eval_dataset={"a": []}, args=KTOConfig(),
            processing_class="gpt2", ref_model=torch.nn.Linear(1, 1),
        )  # fmt: skip
    for line, start in zip(
        str(caught.value).splitlines(),
        ["unknown argument 'beta'", "callbacks=", "args must be a penchant.compat.trl.DPOConfig",
         "processing_class must be a tokenizer", "a trainer needs data", "a trainer needs a model",
         "ref_model must be a transformers model"], strict=True,
    ):  # fmt: skip
        assert line.startswith(start), line
    for change, message in (
        ({"eval_dataset": {"a": [], "b": []}}, "eval_dataset holds several"),
        ({"args": DPOConfig(), "config": DPOConfig()}, "args and config are the same"),
        ({"args": DPOConfig(eval_strategy="steps")}, "set eval_dataset"),
        ({"peft_config": {"r": 8}}, "peft_config must be a peft.LoraConfig"),
        ({"peft_config": LoraConfig(task_type="SEQ_CLS")}, "task_type"),
        ({"peft_config": LoraConfig(inference_mode=True)}, "inference_mode is not to be set"),
        ({"peft_config": LoraConfig(alora_invocation_tokens=[1])}, "alora_invocation_tokens"),
    ):
        with pytest.raises(ConfigError, match=message):
            DPOTrainer(model, **{"train_dataset": rows, **change})


# The documentation

PAGE = Path(__file__).parents[2] / "docs" / "compat-trl.md"


def cells(heading: str) -> list[list[str]]:
    """The rows of the first table after a heading of the page."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n{heading}\n", 1)[1]
    table = section[section.index("\n|") + 1 :].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table]


def names_in(text: str) -> list[str]:
    return re.findall(r"`(\w+)`", text)


def test_the_page_lists_what_is_refused_and_what_changes_nothing() -> None:
    """A row names exactly the arguments that the tables of the code hold."""
    offline = [name for row in cells("### Refused") for name in names_in(row[0])]
    assert sorted(offline) == sorted(tables.STANDING)
    online = [name for row in cells("### GRPO and RLOO: refused") for name in names_in(row[0])]
    assert sorted(online) == sorted(tables.ONLINE_STANDING)
    idle = [name for row in cells("### Taken without effect") for name in names_in(row[1])]
    assert sorted(idle) == sorted(tables.WITHOUT_EFFECT | tables.ONLINE_WITHOUT_EFFECT)
    trainers = [name for row in cells("## The trainer") for name in names_in(row[0])]
    assert {*tables.TRAINER_STANDING, *tables.ONLINE_TRAINER_STANDING} <= {*trainers}
    known = {name for row in cells("## The configuration") for name in names_in(row[0])}
    known |= {name for row in cells("### GRPO and RLOO") for name in names_in(row[0])}
    text = PAGE.read_text(encoding="utf-8")
    for name in THEIRS:
        fields = getattr(compat, name).model_fields
        assert {field for field in fields if f"`{field}`" not in text} == set(), name
    every = {field for name in THEIRS for field in getattr(compat, name).model_fields}
    assert known <= every | {"evaluation_strategy", "no_cuda"}


def test_the_page_says_which_method_a_loss_comes_to() -> None:
    config, seen = "", []
    for first, losses, method in cells("### Methods"):
        config = first.strip("`") or config
        for loss in re.findall(r"`(\w+)`", losses) or [None]:
            if losses.startswith('`["'):
                continue
            chosen = getattr(compat, config)(**({} if loss is None else {"loss_type": loss}))
            assert f"[{chosen.chosen().method}]" in method, (config, loss)
            seen.append((config, loss))
    assert {config for config, _ in seen} == {*THEIRS}
    assert {loss for config, loss in seen if config == "DPOConfig"} == {*DPO_LOSSES}


def test_the_page_lists_what_ppo_refuses() -> None:
    """Of the configuration, the model, `generate` and the trainer."""
    every = (CONFIG_STANDING, MODEL_STANDING, GENERATION_STANDING, PPO_STANDING)
    section = PAGE.read_text(encoding="utf-8").split("## PPO", 1)[1]
    refused = section.split("Refused, but for the value", 1)[1].split("\n\n")[1]
    listed = {name for row in refused.splitlines() for name in names_in(row.split("|")[1])}
    assert listed == {name for standing in every for name in standing}
    assert not {name for name in compat.PPOConfig.model_fields if f"`{name}`" not in section}
