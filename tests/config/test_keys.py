"""The flat keys: what is refused, before a model loads, and what the user is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from penchant.config.keys import load_config
from penchant.core.errors import ConfigError

REQUIRED = {"model": "no-such-model", "data": "no-such-data.jsonl"}
HELD_OUT = {"eval_data": "held-out.jsonl"}


def message(method: str = "dpo", **values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(method, {**REQUIRED, **values})
    return str(caught.value)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("learning_rte", "learning_rate"),
        ("bta", "beta"),
        ("labelsmoothing", "label_smoothing"),
        ("max_prompt_len", "max_prompt_length"),
        # names of TRL and TrainingArguments that differ here
        ("ref_model", "reference_model"),
        ("output_dir", "output"),
    ],
)
def test_unknown_key_suggests_the_nearest(typed: str, meant: str) -> None:
    assert message(**{typed: "1"}) == f"unknown key {typed!r}; did you mean {meant}?"


def test_unknown_key_that_resembles_nothing_lists_what_there_is() -> None:
    told = message(zzzzzzzzzzzz=1)
    assert "zzzzzzzzzzzz" in told
    assert "beta" in told
    assert "learning_rate" in told


def test_option_of_another_method_names_its_owner() -> None:
    assert message("ipo", label_smoothing=0.1) == (
        "label_smoothing is an option of dpo, simpo, cpo and others, not of ipo; drop it"
    )
    assert "option of ipo, not of dpo" in message("dpo", log_ratio="sum")


def test_batch_size_of_a_method_that_samples_leads_to_the_key_that_serves_here() -> None:
    told = message("dpo", batch_size=8)
    assert told.endswith("not of dpo; set per_device_train_batch_size instead")


def test_unknown_method_suggests_the_nearest() -> None:
    assert message("dop") == "unknown method 'dop'; did you mean dpo?"


IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    ({"beta": 0}, "beta"),
    ({"beta": -0.1}, "beta"),
    ({"beta": "strong"}, "beta"),
    ({"beta": float("nan")}, "beta"),
    ({"beta": float("inf")}, "beta"),
    ({"label_smoothing": 0.5}, "label_smoothing"),
    ({"label_smoothing": -0.1}, "label_smoothing"),
    ({"loss_type": "exponential"}, "loss_type"),
    ({"learning_rate": 0}, "learning_rate"),
    ({"learning_rate": float("nan")}, "learning_rate"),
    ({"learning_rate": float("inf")}, "learning_rate"),
    ({"lr_scheduler_type": "linaer"}, "lr_scheduler_type"),
    ({"warmup_ratio": 1}, "warmup_ratio"),
    ({"adam_beta1": 1}, "adam_beta1"),
    ({"num_train_epochs": 0}, "num_train_epochs"),
    ({"max_steps": 0}, "max_steps"),
    ({"max_steps": 1.5}, "max_steps"),
    ({"per_device_train_batch_size": 0}, "per_device_train_batch_size"),
    ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps"),
    ({"save_total_limit": 0}, "save_total_limit"),
    ({"precision": "fp8"}, "precision"),
    ({"reference": "none"}, "reference"),
    ({"lora_r": -1}, "lora_r"),
    ({"lora_dropout": 1}, "lora_dropout"),
    ({"strict": "perhaps"}, "strict"),
    ({"max_length": 1}, "max_length"),
    ({"max_length": 64, "max_prompt_length": 64}, "max_prompt_length (64)"),
    ({"train_fraction": 1}, "train_fraction"),
    ({"train_fraction": 0.9, **HELD_OUT}, "eval_data and train_fraction"),
    ({"reference": "adapter", "lora_r": 0}, "reference: adapter needs LoRA"),
    ({"reference": "adapter", "reference_model": "other"}, "no reference_model"),
    ({"merge": True, "lora_r": 0}, "merge needs LoRA"),
    ({"dtype": "bf16", "lora_r": 0}, "dtype bf16"),
    ({"eval_steps": 5}, "eval_data or train_fraction"),
    ({"load_best_model_at_end": True, **HELD_OUT}, "set eval_steps"),
]


NO_REFERENCE = "has no reference; drop reference and reference_model"
IMPOSSIBLE_FOR: list[tuple[str, dict[str, Any], str]] = [
    *(("dpo", *case) for case in IMPOSSIBLE),
    *((m, {"reference": "copy"}, NO_REFERENCE) for m in ("simpo", "orpo", "cpo", "reward")),
    ("simpo", {"reference": "adapter"}, NO_REFERENCE),
    ("simpo", {"reference_model": "other"}, NO_REFERENCE),
    ("simpo", {"sync_ref_model": True}, "use a method that has one"),
    ("dpo", {"sync_ref_model": True, "reference": "cache"}, "set reference to copy"),
    ("dpo", {"ref_model_mixup_alpha": 0}, "ref_model_mixup_alpha"),
    ("kto", {"reference": "none"}, "kto compares with a reference"),
    ("kto", {"reference": "cache"}, "more than a cache holds"),
    ("dpo", {"reference": "cache", "ld_alpha": 0.5}, "more than a cache holds"),
    ("dpo", {"unpair": True}, "unpair is for methods that learn from labels, not dpo"),
]


@pytest.mark.parametrize(
    ("method", "values", "told"), IMPOSSIBLE_FOR, ids=[f"{m} {v}" for m, v, _ in IMPOSSIBLE_FOR]
)
def test_impossible_value_is_refused_before_a_model_loads(
    method: str, values: dict[str, Any], told: str, tmp_path: Path
) -> None:
    from penchant import train

    output = tmp_path / "run"
    with pytest.raises(ConfigError) as caught:  # not ModelError or DataError: neither was tried
        train(method, output=output, **{**REQUIRED, **values})
    assert told in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not output.exists()


def test_error_names_the_value_that_was_given_and_the_key_to_set() -> None:
    told = message(label_smoothing=0.7)
    assert "0.7" in told
    assert "less than 0.5" in told
    assert told.endswith("set label_smoothing")


def test_every_impossible_value_is_named_at_once() -> None:
    told = message(learning_rate=-1, lora_r=-2)
    assert "learning_rate" in told
    assert "lora_r" in told


@pytest.mark.parametrize("key", ["model", "data"])
def test_missing_required_key_is_named(key: str) -> None:
    given = {name: value for name, value in REQUIRED.items() if name != key}
    with pytest.raises(ConfigError, match=f"^{key} is required; set {key}$"):
        load_config("dpo", given)


def test_arguments_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model: m\ndata: d\nbeta: 0.3\nlearning_rate: 5e-6\nlora_r: 0\n")
    config = load_config("dpo", {"beta": 0.05}, file=file)
    assert config.options.model_dump()["beta"] == 0.05
    assert config.learning_rate == 5e-6  # YAML reads 5e-6 as text
    assert (config.model, config.lora_r) == ("m", 0)


def test_unknown_key_in_the_file_suggests_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model: m\ndata: d\nlora_rank: 8\n")
    with pytest.raises(ConfigError, match="unknown key 'lora_rank'; did you mean lora_r"):
        load_config("dpo", {}, file=file)


def test_file_of_another_method_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("method: ipo\nmodel: m\ndata: d\n")
    with pytest.raises(ConfigError, match="for method ipo, but dpo was asked for"):
        load_config("dpo", {}, file=file)
    assert load_config("ipo", {}, file=file).method == "ipo"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"beta: [0.1\nmodel: m\n", "not valid YAML"),
        (b"beta: 0.1\n\tmodel: m\n", "not valid YAML"),
        (b"\xff\xfe\x00b", "not valid YAML"),
        (b"- beta\n- model\n", "must hold flat keys (beta: 0.1), got list"),
        (b"", "must hold flat keys"),
        (b"1: 2\n", "unknown key '1'"),
    ],
)
def test_malformed_file_is_named_with_what_is_wrong(
    tmp_path: Path, content: bytes, told: str
) -> None:
    file = tmp_path / "broken.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config("dpo", REQUIRED, file=file)
    assert told in str(caught.value)


def test_what_a_method_without_a_reference_says_by_default_is_no_contradiction() -> None:
    for reference in ("auto", "none"):
        assert load_config("simpo", {**REQUIRED, "reference": reference}).spec.name == "simpo"
    no_estimate = {"loss_type": "apo_zero_unpaired", "reference": "cache"}
    assert load_config("kto", {**REQUIRED, **no_estimate}).reference == "cache"


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such configuration file: .*absent\.yaml"):
        load_config("dpo", REQUIRED, file=tmp_path / "absent.yaml")


def test_folder_given_as_configuration_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="could not be read"):
        load_config("dpo", REQUIRED, file=tmp_path)


def test_default_learning_rate_is_the_methods_own_for_what_is_trained() -> None:
    assert load_config("dpo", REQUIRED).peak_learning_rate == 5e-5
    assert load_config("dpo", {**REQUIRED, "lora_r": 0}).peak_learning_rate == 1e-6
    assert load_config("dpo", {**REQUIRED, "learning_rate": 2e-4}).peak_learning_rate == 2e-4


def test_prompt_budget_is_half_of_max_length_unless_set() -> None:
    assert load_config("dpo", {**REQUIRED, "max_length": 300}).prompt_budget == 150
    config = load_config("dpo", {**REQUIRED, "max_length": 300, "max_prompt_length": 299})
    assert config.prompt_budget == 299


def test_config_of_a_run_starts_the_same_run_again(
    tmp_path: Path, tiny_keys: dict[str, Any]
) -> None:
    from penchant import train

    keys = {**tiny_keys, "max_steps": 2, "adam_epsilon": 1e-8, "label_smoothing": 0.1}
    first = train("dpo", output=tmp_path / "first", **keys)
    file = first.output / "config.yaml"
    assert load_config("dpo", {}, file=file) == load_config(
        "dpo", {**keys, "output": tmp_path / "first"}
    )
    second = train("dpo", config=file, output=tmp_path / "second")
    weights = [r.model / "adapter_model.safetensors" for r in (first, second)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_config_of_a_run_records_versions_and_data(
    tmp_path: Path, tiny_keys: dict[str, Any]
) -> None:
    import torch
    import yaml

    from penchant import train

    result = train("dpo", output=tmp_path / "run", max_steps=1, **tiny_keys)
    recorded = yaml.safe_load((result.output / "config.yaml").read_text())
    assert recorded["versions"]["torch"] == torch.__version__
    assert len(recorded["data_fingerprints"]) == 1
    assert recorded["num_processes"] == 1


def test_config_of_a_run_starts_it_again_from_any_folder(
    tmp_path: Path,
    tiny_keys: dict[str, Any],
    held_out_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import yaml

    from penchant import train

    named = {"model": "model", "reference_model": "model", "chat_template": "template.jinja"}
    named |= {"data": "data.jsonl", "eval_data": "held-out.jsonl"}
    (tmp_path / "model").symlink_to(tiny_keys["model"])
    (tmp_path / "data.jsonl").symlink_to(tiny_keys["data"])
    (tmp_path / "held-out.jsonl").symlink_to(held_out_file)
    (tmp_path / "template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    monkeypatch.chdir(tmp_path)
    keys = {**tiny_keys, "max_steps": 1, "eval_samples": 0, **named}
    result = train("dpo", output=tmp_path / "run", **keys)
    recorded = yaml.safe_load((result.output / "config.yaml").read_text())
    assert {key: recorded[key] for key in named} == {k: f"{tmp_path}/{v}" for k, v in named.items()}
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    train("dpo", config=result.output / "config.yaml", output=tmp_path / "again")
    # and the run itself is still the same run
    (result.output / "summary.json").unlink()
    train("dpo", config=result.output / "config.yaml", resume=True)


def test_a_list_stands_for_text_with_commas() -> None:
    """As it comes from Python and YAML; so does a mapping where each id has its action."""
    base = {"model": "m", "data": "d"}
    texts = {
        "lora_target_modules": "q_proj,v_proj",
        "report_to": "tensorboard,wandb",
        "silence": "collapse,reward-hacking",
        "reward": "gsm8k",
        "reward_weights": "0.5",
    }
    lists = {name: text.split(",") for name, text in texts.items()}
    actions = {"reward-hacking": "adapt", "collapse": "rollback"}
    listed = load_config("grpo", {**base, **lists, "on_finding": actions})
    on_finding = "reward-hacking=adapt,collapse=rollback"
    assert listed == load_config("grpo", {**base, **texts, "on_finding": on_finding})
    assert listed.lora_target_modules == "q_proj,v_proj"
    with pytest.raises(ConfigError, match="report_to: unknown tracker 'wand'"):
        load_config("grpo", {**base, **lists, "report_to": ["tensorboard", "wand"]})
