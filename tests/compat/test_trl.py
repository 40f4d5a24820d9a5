"""Scripts written for TRL run on this engine, and no argument is accepted without its effect."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import EvaConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
)

from penchant.compat.trl import (
    CPOConfig,
    CPOTrainer,
    DPOConfig,
    DPOTrainer,
    KTOConfig,
    KTOTrainer,
    ORPOConfig,
    ORPOTrainer,
    RewardConfig,
    RewardTrainer,
)
from penchant.core.errors import ConfigError, ModelError, TrainingError, UserError

# Scripts for TRL: only the import line, the model's name and the folder differ


def test_reward_script_runs(tiny_model_dir, preference_dataset, tmp_path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(
        tiny_model_dir, num_labels=1, torch_dtype=torch.bfloat16
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    config = RewardConfig(
        output_dir=str(tmp_path / "reward_model"),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=8,
        learning_rate=1.5e-5,
        num_train_epochs=1,  # 1 epoch to avoid overfitting
        bf16=True,
        max_length=1024,
        logging_steps=10,
    )
    trainer = RewardTrainer(
        model=model, tokenizer=tokenizer, config=config,
        train_dataset=preference_dataset,
    )  # fmt: skip
    trainer.train()
    assert {"loss", "accuracy", "margin"} <= trainer.state.log_history[0].keys()
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward_model" / "model")
    assert saved.config.num_labels == 1


def test_dpo_script_runs(tiny_model_dir, preference_dataset, tmp_path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, torch_dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokenizer.pad_token = tokenizer.eos_token
    peft_config = LoraConfig(
        r=16, lora_alpha=32, lora_dropout=0.05,
        target_modules=["q_proj", "v_proj", "k_proj", "o_proj"],
        task_type="CAUSAL_LM",
    )  # fmt: skip
    dpo_config = DPOConfig(
        output_dir=str(tmp_path / "dpo_output"),
        beta=0.1,  # KL penalty strength
        per_device_train_batch_size=2,
        gradient_accumulation_steps=8,
        learning_rate=5e-6,
        num_train_epochs=1,
        bf16=True,
        max_length=1024,
        max_prompt_length=512,
        logging_steps=10,
        loss_type="sigmoid",  # sigmoid (standard) or hinge
    )
    trainer = DPOTrainer(
        model=model, ref_model=None,  # None = use implicit ref via peft
        config=dpo_config, tokenizer=tokenizer,
        train_dataset=preference_dataset,
        peft_config=peft_config,
    )  # fmt: skip
    done = trainer.train()
    assert done.global_step == 1
    assert done.training_loss == pytest.approx(0.693, abs=0.01)
    adapter = json.loads((tmp_path / "dpo_output" / "model" / "adapter_config.json").read_text())
    assert adapter["r"] == 16 and adapter["lora_alpha"] == 32 and adapter["lora_dropout"] == 0.05
    assert set(adapter["target_modules"]) == {"q_proj", "v_proj", "k_proj", "o_proj"}
    summary = json.loads((tmp_path / "dpo_output" / "summary.json").read_text())
    assert summary["reference"] == "adapter"


def test_kto_script_runs(model, tokenizer, rows, tmp_path) -> None:
    labelled = Dataset.from_list(
        [
            {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
            for row in rows
            for side in ("chosen", "rejected")
        ]
    )
    kto_config = KTOConfig(
        output_dir=str(tmp_path / "kto_output"),
        learning_rate=5e-7,
        per_device_train_batch_size=4,
        num_train_epochs=1,
        max_length=1024,
        bf16=True,
        # KTO-specific: ratio of desirable to undesirable examples
        desirable_weight=1.0,
        undesirable_weight=1.0,
    )
    trainer = KTOTrainer(model=model, config=kto_config, tokenizer=tokenizer,
                         train_dataset=labelled)  # fmt: skip
    trainer.train()
    entry = trainer.state.log_history[-2]
    assert entry["rewards/margins"] == entry["rewards/chosen"] - entry["rewards/rejected"]


def test_orpo_script_runs(model, tokenizer, preference_dataset, tmp_path) -> None:
    orpo_config = ORPOConfig(
        output_dir=str(tmp_path / "orpo_output"),
        learning_rate=8e-6,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        num_train_epochs=1,
        max_length=1024,
        bf16=True,
        beta=0.1,  # Weight of the odds ratio loss
    )
    trainer = ORPOTrainer(model=model, config=orpo_config, tokenizer=tokenizer,
                          train_dataset=preference_dataset)  # fmt: skip
    assert trainer.train().global_step == 2


def test_simpo_script_runs(model, tokenizer, preference_dataset, tmp_path) -> None:
    cpo_config = CPOConfig(
        output_dir=str(tmp_path / "simpo_output"),
        learning_rate=5e-7,
        per_device_train_batch_size=2,
        num_train_epochs=1,
        max_length=1024,
        bf16=True,
        loss_type="simpo",  # "simpo" for SimPO, "sigmoid" for standard CPO
        cpo_alpha=1.0,  # NLL loss weight (SimPO uses this)
        simpo_gamma=0.5,  # Reward margin (SimPO-specific)
    )
    trainer = CPOTrainer(model=model, config=cpo_config, tokenizer=tokenizer,
                         train_dataset=preference_dataset)  # fmt: skip
    trainer.train()
    keys = trainer.run_config.flat()
    assert (keys["method"], keys["gamma"], keys["cpo_alpha"]) == ("simpo", 0.5, 1.0)


# The same numbers as TRL's


@pytest.fixture
def theirs(of_trl: Any) -> Any:
    """The steps that TRL's trainer logs."""

    def log(kind: str, model: Any, tokenizer: Any, rows: Any, settings: dict[str, Any]) -> Any:
        folder = settings["output_dir"] + "-trl"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = of_trl(f"{kind}Trainer")(
                model=copy.deepcopy(model),
                args=of_trl(f"{kind}Config")(
                    **{**settings, "output_dir": folder},
                    use_cpu=True,
                    gradient_checkpointing=False,
                    save_strategy="no",
                ),
                train_dataset=Dataset.from_list(rows),
                processing_class=copy.deepcopy(tokenizer),
            )
            run.train()
        return [entry for entry in run.state.log_history if "loss" in entry]

    return log


@pytest.mark.parametrize(
    "options",
    [
        {"loss_type": "sigmoid", "beta": 0.3},
        {"loss_type": ["ipo", "sft"], "loss_weights": [1.0, 0.5]},
        {"loss_type": "robust", "label_smoothing": 0.1, "lr_scheduler_type": "cosine"},
        {"loss_type": "aot", "warmup_steps": 2, "max_steps": 4, "weight_decay": 0.1},
    ],
    ids=lambda options: str(options["loss_type"]),
)
def test_dpo_logs_what_trl_logs(options, theirs, rows, model, tokenizer, small) -> None:
    settings = {**small, "max_steps": 3, **options}
    wanted = theirs("DPO", model, tokenizer, rows, settings)
    trainer = DPOTrainer(
        model, args=DPOConfig(**settings), train_dataset=rows, processing_class=tokenizer
    )
    trainer.train()
    ours = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(ours) == len(wanted)
    names = ["loss", "learning_rate", "logps/chosen", "logps/rejected", "epoch", "grad_norm"]
    if trainer.run_config.method != "ipo":  # whose rewards are averages over tokens, as its loss
        names += ["rewards/chosen", "rewards/rejected", "rewards/margins"]
    for own, other in zip(ours, wanted, strict=True):
        for name in names:
            assert own[name] == pytest.approx(float(other[name]), rel=1e-4, abs=1e-4), name


@pytest.mark.parametrize(
    ("kind", "trainer", "config", "options"),
    [
        ("CPO", CPOTrainer, CPOConfig, {"loss_type": "sigmoid", "cpo_alpha": 0.5}),
        ("CPO", CPOTrainer, CPOConfig, {"loss_type": "simpo", "simpo_gamma": 0.7, "beta": 2.0}),
        ("CPO", CPOTrainer, CPOConfig, {"loss_type": "simpo", "label_smoothing": 0.1}),
        ("ORPO", ORPOTrainer, ORPOConfig, {"beta": 0.3}),
    ],
    ids=str,
)
def test_losses_without_a_reference_are_trls(
    kind, trainer, config, options, theirs, rows, model, tokenizer, small
) -> None:
    wanted = theirs(kind, model, tokenizer, rows, {**small, **options})
    done = trained(trainer, model, rows, tokenizer, config(**small, **options))
    ours = [entry for entry in done.state.log_history if "loss" in entry]
    for own, other in zip(ours, wanted, strict=True):
        for name in ("loss", "nll_loss", "rewards/chosen", "rewards/margins"):
            assert own[name] == pytest.approx(float(other[name]), rel=1e-4, abs=1e-4), name


def test_kto_losses_are_trls(theirs, rows, model, tokenizer, small) -> None:
    # One completion a prompt: TRL takes the KL from a neighbour, whatever its prompt.
    labelled = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row, side in zip(rows, ["chosen", "rejected"] * 8, strict=True)
    ]
    options = {**small, "desirable_weight": 1.5, "beta": 0.3}
    wanted = theirs("KTO", model, tokenizer, labelled, options)
    done = trained(KTOTrainer, model, labelled, tokenizer, KTOConfig(**options))
    ours = [entry for entry in done.state.log_history if "loss" in entry]
    for own, other in zip(ours, wanted, strict=True):
        assert own["loss"] == pytest.approx(float(other["loss"]), rel=1e-3)
        assert own["rewards/chosen"] == pytest.approx(float(other["rewards/chosen"]), abs=1e-4)


def test_reward_losses_are_trls(theirs, rows, tiny_model_dir, tokenizer, small) -> None:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=1)
    options = {**small, "center_rewards_coefficient": 0.1}
    wanted = theirs("Reward", model, tokenizer, rows, options)
    done = trained(RewardTrainer, model, rows, tokenizer, RewardConfig(**options))
    ours = [entry for entry in done.state.log_history if "loss" in entry]
    for own, other in zip(ours, wanted, strict=True):
        for name in ("loss", "accuracy", "margin"):
            assert own[name] == pytest.approx(float(other[name]), rel=1e-4, abs=1e-4), name


def test_wrong_model_is_named(model, tiny_model_dir, rows) -> None:
    scored = AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=1)
    two = AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=2)
    for trainer, wrong, message in (
        (DPOTrainer, scored, "no causal language model"),
        (RewardTrainer, model, "scalar head"),
        (RewardTrainer, two, "2 labels"),
        (DPOTrainer, torch.nn.Linear(2, 2), "transformers model"),
        (DPOTrainer, get_peft_model(copy.deepcopy(model), LoraConfig()), "adapter already"),
    ):
        with pytest.raises(ModelError, match=message):
            trainer(wrong, train_dataset=rows)
    with pytest.raises(ConfigError, match="one object"):
        DPOTrainer(model, model, train_dataset=rows)
    with pytest.raises(ConfigError, match="ref_model='x' cannot be had here"):
        ORPOTrainer(model, ref_model="x", train_dataset=rows)


def test_streamed_data_are_refused(model, rows, tokenizer, small) -> None:
    stream = IterableDataset.from_generator(lambda: iter(rows))
    trainer = DPOTrainer(
        model, args=DPOConfig(**small), train_dataset=stream, processing_class=tokenizer
    )
    with pytest.raises((UserError, TypeError), match="IterableDataset"):
        trainer.train()


# Effects


def trained(trainer: Any, model: Any, rows: Any, tokenizer: Any, config: Any, **more: Any) -> Any:
    done = trainer(model, args=config, train_dataset=rows, processing_class=tokenizer, **more)
    done.train()
    return done


def test_beta_scales_rewards(model, tokenizer, rows, small, tmp_path) -> None:
    found = {}
    for beta in (0.1, 0.2):
        config = DPOConfig(**{**small, "output_dir": str(tmp_path / str(beta))}, beta=beta)
        twin = copy.deepcopy(model)
        done = trained(DPOTrainer, twin, rows, tokenizer, config, eval_dataset=rows[:4])
        assert done.run_config.flat()["beta"] == beta
        found[beta] = done.evaluate()["eval_rewards/margins"]
    assert found[0.2] == pytest.approx(2 * found[0.1], rel=0.2) and found[0.1] != 0


def test_desirable_weight_scales_the_loss(model, tokenizer, rows, small, tmp_path) -> None:
    losses = []
    for weight in (1.0, 3.0):
        output = str(tmp_path / str(weight))
        config = KTOConfig(**{**small, "output_dir": output, "max_steps": 1},
                           desirable_weight=weight)  # fmt: skip
        done = trained(KTOTrainer, copy.deepcopy(model), rows, tokenizer, config)
        losses.append(done.state.log_history[0]["loss"])
    # Pairs are taken apart into as many good as bad completions, each of loss one half.
    assert losses == pytest.approx([0.5, 1.0])


def test_max_prompt_length_cuts_prompts(model, tokenizer, rows, small) -> None:
    config = DPOConfig(**small, max_prompt_length=4)
    done = trained(DPOTrainer, model, rows, tokenizer, config)
    summary = json.loads((Path(done.args.output_dir) / "summary.json").read_text())
    assert summary["tokenising"]["training"]["prompts_cut"] == len(rows)
    assert summary["tokenising"]["training"]["longest_prompt"] == 4


def test_half_precision_weights_are_trained_in_fp32(
    tiny_model_dir, tokenizer, rows, small, said
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.bfloat16)
    config = ORPOConfig(**{**small, "bf16": True})
    done = ORPOTrainer(model, args=config, train_dataset=rows, processing_class=tokenizer)
    done.train()
    assert model.dtype == torch.float32
    assert "bfloat16 weights are trained in float32" in said()


def test_lora_leaves_the_base_in_its_precision(tiny_model_dir, tokenizer, rows, small) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.bfloat16)
    lora = LoraConfig(r=2, lora_alpha=4)
    done = trained(DPOTrainer, model, rows, tokenizer, DPOConfig(**small), peft_config=lora)
    assert isinstance(done.model, PeftModel)
    weights = dict(done.model.named_parameters())
    assert {w.dtype for n, w in weights.items() if "lora_" not in n} == {torch.bfloat16}
    # PEFT's own choice for this architecture, where none is made
    targets = {name.split(".")[-4] for name in weights if "lora_A" in name}
    assert targets == {"q_proj", "v_proj"}


@pytest.mark.parametrize(("epochs", "kind"), [(1, "copy"), (3, "cache")])
def test_reference_object_is_compared_with(
    epochs, kind, model, tokenizer, rows, small, tiny_model_dir
) -> None:
    reference = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    with torch.no_grad():
        reference.lm_head.weight += 0.05 * torch.randn_like(reference.lm_head.weight)
    kept = copy.deepcopy(reference.state_dict())
    config = DPOConfig(**small, num_train_epochs=epochs)
    done = trained(DPOTrainer, model, rows, tokenizer, config, ref_model=reference)
    summary = json.loads((Path(done.args.output_dir) / "summary.json").read_text())
    assert summary["reference"] == kind
    assert abs(done.state.log_history[0]["rewards/chosen"]) > 1e-3
    assert all(torch.equal(weight, kept[name]) for name, weight in reference.state_dict().items())
    reference.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2, do_sample=False)


def test_reference_can_be_named(model, tokenizer, rows, small, tiny_model_dir) -> None:
    name = str(tiny_model_dir)
    with torch.no_grad():
        model.lm_head.weight *= 3.0
    done = trained(DPOTrainer, model, rows, tokenizer, DPOConfig(**small), ref_model=name)
    assert abs(done.state.log_history[0]["rewards/chosen"]) > 1e-3


@pytest.mark.parametrize("lora", [None, LoraConfig(r=2)])
@pytest.mark.parametrize("own", [True, False], ids=["own", "other"])
def test_precomputed_reference_gives_the_same_losses(
    lora, own, model, tokenizer, rows, small, tmp_path
) -> None:
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight *= 1.1
    losses = []
    for precompute in (False, True):
        config = DPOConfig(
            **{**small, "output_dir": str(tmp_path / str(precompute))},
            precompute_ref_log_probs=precompute,
        )
        more = {} if own else {"ref_model": copy.deepcopy(other)}
        twin = copy.deepcopy(model)
        done = trained(DPOTrainer, twin, rows, tokenizer, config, peft_config=lora, **more)
        losses.append([e["loss"] for e in done.state.log_history if "loss" in e])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_dropout_is_switched_off_unless_wanted(rows, tokenizer, make_model, small) -> None:
    for wanted in (True, False):
        model = make_model("gpt2", vocab_size=len(tokenizer), attn_pdrop=0.1, resid_pdrop=0.1)
        config = DPOConfig(**{**small, "output_dir": f"{small['output_dir']}{wanted}"},
                           disable_dropout=wanted)  # fmt: skip
        done = trained(DPOTrainer, model, rows, tokenizer, config)
        found = {m.p for m in done.model.modules() if isinstance(m, torch.nn.Dropout)}
        assert (0.1 in found) is not wanted
        lines = (Path(config.output_dir) / "findings.jsonl").read_text().splitlines()
        said = {json.loads(line)["id"] for line in lines}
        assert ("dropout" in said) is not wanted  # the checks see what is trained


def test_warmup_steps_are_that_many(model, tokenizer, rows, small) -> None:
    config = DPOConfig(**{**small, "max_steps": 6}, warmup_steps=3)
    done = trained(DPOTrainer, model, rows, tokenizer, config)
    rates = [entry["learning_rate"] for entry in done.state.log_history if "loss" in entry]
    assert rates == pytest.approx([0, 1e-3 / 3, 2e-3 / 3, 1e-3, 2e-3 / 3, 1e-3 / 3])


@pytest.mark.parametrize(
    ("strategy", "steps", "kept"),
    [
        ("no", 1, []),
        ("steps", 1, ["step-1", "step-2"]),
        ("steps", 0.7, ["step-2"]),
        ("epoch", 1, ["step-2"]),
    ],
)
def test_checkpoints_are_those_asked_for(
    strategy, steps, kept, model, tokenizer, rows, small
) -> None:
    config = DPOConfig(
        **{**small, "per_device_train_batch_size": 8}, save_strategy=strategy, save_steps=steps
    )
    done = trained(DPOTrainer, model, rows, tokenizer, config)
    folder = Path(done.args.output_dir) / "checkpoints"
    assert sorted(path.name for path in folder.glob("*")) == kept


# Behind training


def test_model_is_trained_in_place_and_can_generate(model, tokenizer, rows, small) -> None:
    done = trained(DPOTrainer, model, rows, tokenizer, DPOConfig(**small))
    assert done.model is model and not model.training
    saved = load_file(Path(done.args.output_dir) / "model" / "model.safetensors")
    assert torch.equal(saved["lm_head.weight"], model.lm_head.weight)
    model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2, do_sample=False)


def test_model_can_be_named(tiny_model_dir, rows, small) -> None:
    trainer = DPOTrainer(str(tiny_model_dir), args=DPOConfig(**small), train_dataset=rows)
    trainer.train()
    assert trainer.model.config.model_type == "llama"
    assert trainer.processing_class.eos_token == "<|im_end|>"


def test_chat_messages_train(model, tokenizer, small) -> None:
    chats = [
        {
            side: [
                {"role": "user", "content": f"Is {number} so?"},
                {"role": "assistant", "content": answer},
            ]
            for side, answer in (("chosen", "Yes."), ("rejected", "No."))
        }
        for number in range(8)
    ]
    done = trained(DPOTrainer, model, Dataset.from_list(chats), tokenizer, DPOConfig(**small))
    assert done.state.global_step == 2


def test_history_and_evaluation_have_trls_names(model, tokenizer, rows, small) -> None:
    config = DPOConfig(**small, eval_strategy="steps", eval_steps=1, load_best_model_at_end=True)
    done = trained(DPOTrainer, model, rows, tokenizer, config, eval_dataset=rows[:4])
    history = done.state.log_history
    step = next(entry for entry in history if "loss" in entry)
    held_out = next(entry for entry in history if "eval_loss" in entry)
    names = [f"rewards/{n}" for n in ("chosen", "rejected", "margins", "accuracies")]
    assert {*names, "logps/chosen", "logps/rejected", "grad_norm", "learning_rate"} <= step.keys()
    assert {f"eval_{name}" for name in names} <= held_out.keys()
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert history[-1]["train_loss"] == pytest.approx(sum(losses) / 2)
    best = max(
        (e for e in history if "eval_loss" in e),
        key=lambda e: (e["eval_rewards/accuracies"], e["eval_rewards/margins"]),
    )
    assert done.state.best_global_step == best["step"]
    now = done.evaluate()
    assert now["eval_loss"] == pytest.approx(best["eval_loss"], abs=1e-5)
    assert history[-1] == {"step": 2, **now}


def test_evaluation_before_training_finds_no_margin(model, tokenizer, rows, small) -> None:
    trainer = DPOTrainer(
        model,
        args=DPOConfig(**small),
        train_dataset=rows,
        eval_dataset=rows[:4],
        processing_class=tokenizer,
    )
    assert trainer.evaluate()["eval_rewards/margins"] == pytest.approx(0, abs=1e-5)
    trainer.train()
    assert trainer.evaluate()["eval_rewards/margins"] != pytest.approx(0, abs=1e-5)


def test_evaluation_needs_data(model, rows) -> None:
    with pytest.raises(ConfigError, match="set eval_dataset"):
        DPOTrainer(model, train_dataset=rows).evaluate()


@pytest.mark.parametrize("folder", [None, "elsewhere"])
def test_saved_model_can_be_loaded(folder, model, tokenizer, rows, small, tmp_path) -> None:
    done = trained(DPOTrainer, model, rows, tokenizer, DPOConfig(**small))
    target = None if folder is None else tmp_path / folder
    done.save_model(target)
    loaded = AutoModelForCausalLM.from_pretrained(target or small["output_dir"])
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert len(AutoTokenizer.from_pretrained(target or small["output_dir"])) == len(tokenizer)
    assert (Path(small["output_dir"]) / "model" / "config.json").exists()


def test_output_dir_is_never_written_over(model, tokenizer, rows, small) -> None:
    done = trained(DPOTrainer, model, rows, tokenizer, DPOConfig(**small))
    with pytest.raises(TrainingError, match=r"^output_dir"):
        trained(DPOTrainer, copy.deepcopy(model), rows, tokenizer, DPOConfig(**small))
    with pytest.raises(TrainingError, match="complete"):
        done.train(resume_from_checkpoint=True)
    with pytest.raises(ConfigError, match="resume_from_checkpoint"):
        done.train(resume_from_checkpoint="checkpoint-5")  # type: ignore[arg-type]


def test_interrupted_run_goes_on(model, tokenizer, rows, small, tmp_path) -> None:
    config = {**small, "max_steps": 4, "save_steps": 2}
    start = copy.deepcopy(model)
    whole = trained(DPOTrainer, model, rows, tokenizer, DPOConfig(**config))
    run = Path(config["output_dir"])
    (run / "summary.json").unlink()
    again = DPOTrainer(
        start, args=DPOConfig(**config), train_dataset=rows, processing_class=tokenizer
    )
    (run / "checkpoints" / "step-4").rename(tmp_path / "step-4")
    again.train(resume_from_checkpoint=True)
    assert torch.equal(again.model.lm_head.weight, whole.model.lm_head.weight)
    losses = [[e["loss"] for e in t.state.log_history if "loss" in e] for t in (whole, again)]
    assert losses[0] == losses[1] and len(losses[0]) == 4


@pytest.mark.parametrize("way", ["argument", "model_init_kwargs", "object"])
def test_a_base_in_four_bits_is_trained_however_a_script_asks_for_it(
    way: str, tiny_model_dir, preference_dataset, tmp_path
) -> None:
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model, given, own = str(tiny_model_dir), {}, {}
    if way == "argument":
        own = {"quantization_config": how}
    elif way == "model_init_kwargs":
        given = {"model_init_kwargs": {"quantization_config": how, "dtype": "float32"}}
    else:
        model = AutoModelForCausalLM.from_pretrained(model, quantization_config=how)
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(str(tmp_path / "run"), max_steps=1, bf16=False, **given),
        train_dataset=preference_dataset,
        processing_class=AutoTokenizer.from_pretrained(tiny_model_dir),
        peft_config=LoraConfig(r=2, target_modules=["q_proj"]),
        **own,
    )
    assert trainer.train().training_loss == pytest.approx(0.6931, abs=1e-3)
    base = trainer.model.get_base_model()
    assert base.is_loaded_in_4bit and base.lm_head.weight.dtype == torch.float32


def test_an_adapter_starts_from_the_records_where_its_configuration_says_so(
    model, tiny_model_dir, preference_dataset, tmp_path
) -> None:
    eva = EvaConfig(rho=1.5)
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(str(tmp_path / "run"), max_steps=1, bf16=False),
        train_dataset=preference_dataset,
        processing_class=AutoTokenizer.from_pretrained(tiny_model_dir),
        peft_config=LoraConfig(
            r=2, target_modules="all-linear", init_lora_weights="eva", eva_config=eva
        ),
    )
    assert trainer.train().training_loss == pytest.approx(0.6931, abs=1e-3)
    made = trainer.model.peft_config["default"]
    assert made.eva_config == eva and made.rank_pattern  # ranks follow the layers' inputs


def test_what_a_quantization_cannot_serve_is_refused(
    tiny_model_dir, model, preference_dataset, tmp_path
) -> None:
    how = BitsAndBytesConfig(load_in_4bit=True)
    lora = LoraConfig(r=2, target_modules=["q_proj"])
    both = DPOConfig(str(tmp_path), model_init_kwargs={"quantization_config": how})
    other = DPOConfig(str(tmp_path), model_init_kwargs={"device_map": "auto"})
    named = str(tiny_model_dir)
    for arguments, message in (
        ({"model": named, "quantization_config": how}, "pass peft_config"),
        ({"model": model, "quantization_config": how, "peft_config": lora}, "this one is loaded"),
        ({"model": named, "quantization_config": how, "args": both}, "drop one of them"),
        ({"model": named, "args": other}, "device_map cannot be had here"),
    ):
        with pytest.raises(ConfigError, match=message):
            DPOTrainer(train_dataset=preference_dataset, **arguments)
