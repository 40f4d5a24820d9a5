"""Evaluating a run, an adapter or a model gives the numbers that training gave."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import penchant
from penchant.core.errors import ConfigError, ModelError
from penchant.core.evaluation import Evaluation
from penchant.data.records import DataError
from penchant.training.result import TrainResult

NUMBERS = (
    "loss", "accuracy", "margin", "reward_chosen", "reward_rejected", "logprob_accuracy",
    "logprob_chosen", "logprob_rejected", "kl", "entropy",
)  # fmt: skip


def assert_same(found: Evaluation, expected: Evaluation | None) -> None:
    assert expected is not None
    assert found.num_examples == expected.num_examples
    for name in NUMBERS:
        if getattr(expected, name) is not None:  # a cache holds no reference to take KL from
            assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-4), name


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, tiny_keys: dict[str, Any], held_out_file: Path
) -> TrainResult:
    """Three epochs with LoRA and a beta that is not the default."""
    keys = {**tiny_keys, "eval_data": str(held_out_file), "num_train_epochs": 3, "beta": 0.3}
    return penchant.train("dpo", output=tmp_path_factory.mktemp("evaluated") / "run", **keys)


@pytest.mark.parametrize(
    ("method", "keys"),
    [
        ("dpo", {"label_smoothing": 0.1, "loss_type": "sigmoid"}),
        ("dpo", {"lora_r": 0, "learning_rate": 1e-3}),
        ("dpo", {"lora_r": 0, "learning_rate": 1e-3, "reference": "cache"}),
        ("ipo", {"log_ratio": "sum", "max_prompt_length": 8}),
        ("dpo", {"peft": {"init_lora_weights": "pissa"}, "lora_r": 4}),
    ],
    ids=str,
)
def test_run_directory_gives_the_numbers_that_the_run_ended_with(
    tmp_path: Path,
    tiny_keys: dict[str, Any],
    held_out_file: Path,
    method: str,
    keys: dict[str, Any],
) -> None:
    given = {**tiny_keys, "eval_data": str(held_out_file), "beta": 0.3, **keys}
    result = penchant.train(method, output=tmp_path / "run", **given)
    assert result.after is not None
    assert result.after.margin != 0
    assert_same(penchant.evaluate(model=result.output, data=held_out_file), result.after)


def test_evaluation_measures_the_distance_from_the_reference(run: TrainResult) -> None:
    assert run.after is not None
    assert run.after.kl is not None
    assert run.after.kl > 1e-4
    assert run.before is not None
    assert run.before.kl == pytest.approx(0, abs=1e-6)


def test_adapter_folder_is_compared_with_what_it_adapts(
    run: TrainResult, held_out_file: Path
) -> None:
    assert run.after is not None
    found = penchant.evaluate(model=run.model, data=held_out_file, beta=0.3, max_length=64)
    assert_same(found, run.after)


def test_adapter_that_took_something_out_of_its_base_is_compared_with_the_whole_of_it(
    tmp_path: Path, tiny_keys: dict[str, Any], held_out_file: Path
) -> None:
    keys = {**tiny_keys, "eval_data": str(held_out_file), "lora_r": 4}
    keys |= {"peft": {"init_lora_weights": "pissa"}, "reference": "copy"}
    result = penchant.train("dpo", output=tmp_path / "run", **keys)
    found = penchant.evaluate(model=result.model, data=held_out_file, max_length=64)
    assert_same(found, result.after)


def test_run_with_another_reference_model_is_compared_with_that(
    tmp_path: Path, tiny_keys: dict[str, Any], held_out_file: Path, run: TrainResult
) -> None:
    keys = {**tiny_keys, "eval_data": str(held_out_file), "reference_model": str(run.output)}
    result = penchant.train("dpo", output=tmp_path / "run", **keys)
    assert result.before is not None
    assert result.before.margin < -0.1  # already: the reference is the better model
    assert_same(penchant.evaluate(model=result.output, data=held_out_file), result.after)


def test_run_that_went_on_from_a_run_is_compared_with_that(
    tmp_path: Path, tiny_keys: dict[str, Any], held_out_file: Path, run: TrainResult
) -> None:
    keys = {**tiny_keys, "eval_data": str(held_out_file), "model": str(run.output)}
    result = penchant.train("dpo", output=tmp_path / "run", **keys)
    assert_same(penchant.evaluate(model=result.output, data=held_out_file), result.after)


def test_named_reference_wins_over_the_runs_own(run: TrainResult, held_out_file: Path) -> None:
    found = penchant.evaluate(model=run.output, data=held_out_file, reference=run.output)
    assert found.margin == pytest.approx(0, abs=1e-5)
    assert found.kl == pytest.approx(0, abs=1e-6)


def test_beta_scales_the_rewards_and_nothing_else(run: TrainResult, held_out_file: Path) -> None:
    assert run.after is not None
    found = penchant.evaluate(model=run.output, data=held_out_file, beta=0.6)
    assert found.margin == pytest.approx(2 * run.after.margin, rel=1e-4)
    assert found.kl == pytest.approx(run.after.kl, abs=1e-6)


def test_plain_model_needs_a_reference_and_then_is_compared_with_it(
    run: TrainResult, held_out_file: Path, tiny_model_dir: Path
) -> None:
    with pytest.raises(ConfigError, match="set reference"):
        penchant.evaluate(model=tiny_model_dir, data=held_out_file)
    found = penchant.evaluate(
        model=tiny_model_dir, data=held_out_file, reference=run.output, beta=0.3, max_length=64
    )
    assert run.after is not None
    assert found.margin == pytest.approx(-run.after.margin, abs=1e-4)  # seen from the other side
    assert found.accuracy == pytest.approx(1 - run.after.accuracy)


def test_batch_size_and_layout_change_no_number(run: TrainResult, held_out_file: Path) -> None:
    for keys in ({"batch_size": 1}, {"batch_size": 3}, {"attention": "plain"}):
        given: dict[str, Any] = keys
        assert_same(penchant.evaluate(model=run.output, data=held_out_file, **given), run.after)


def test_refused_rows_are_left_out_unless_strict(
    run: TrainResult, held_out_file: Path, tmp_path: Path
) -> None:
    data = tmp_path / "held-out.jsonl"
    data.write_text(held_out_file.read_text() + '{"prompt": "no completions"}\n')
    assert_same(penchant.evaluate(model=run.output, data=data), run.after)
    with pytest.raises(DataError, match=r"held-out\.jsonl:9"):
        penchant.evaluate(model=run.output, data=data, strict=True)


def test_run_that_did_not_finish_is_refused(
    run: TrainResult, held_out_file: Path, tmp_path: Path
) -> None:
    unfinished = tmp_path / "run"
    shutil.copytree(run.output, unfinished, ignore=shutil.ignore_patterns("model"))
    with pytest.raises(ModelError, match="holds no model"):
        penchant.evaluate(model=unfinished, data=held_out_file)


def test_unknown_key_is_refused(run: TrainResult, held_out_file: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean beta"):
        penchant.evaluate(model=run.output, data=held_out_file, bta=0.1)


def test_missing_data_is_refused(run: TrainResult, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.jsonl"):
        penchant.evaluate(model=run.output, data=tmp_path / "absent.jsonl")


def test_fp16_on_a_cpu_is_refused(run: TrainResult) -> None:
    with pytest.raises(ConfigError, match="precision fp16 needs a GPU; set precision to auto"):
        penchant.evaluate(model=run.output, data="no-such-data.jsonl", precision="fp16")
