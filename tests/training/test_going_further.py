"""A complete run that is asked to go further stays complete until it does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import penchant
from penchant.core.errors import TrainingError

Command = Callable[..., Any]


def train(**keys: Any) -> Any:
    return penchant.train("dpo", **keys).after


def sweep(**keys: Any) -> Any:
    return [(one.after, one.error) for one in penchant.sweep("dpo", {"beta": [0.1]}, **keys).points]


def compare(**keys: Any) -> Any:
    found = penchant.compare(["dpo"], num_answers=2, **keys)
    return [(one.measured, one.error) for one in found.points]


def ensemble(**keys: Any) -> Any:
    return penchant.train("reward", ensemble=2, **keys).after


@pytest.fixture
def keys(
    tiny_keys: dict[str, Any], tiny_model_dir: Path, held_out_file: Path, tmp_path: Path
) -> dict[str, Any]:
    """Return the keys of a run on a model of its own, whose weights may be taken away."""
    shutil.copytree(tiny_model_dir, tmp_path / "model")
    places = {"model": tmp_path / "model", "eval_data": held_out_file, "output": tmp_path / "run"}
    return {**tiny_keys, **{key: str(path) for key, path in places.items()}, "lora_r": 4}


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("command", [train, sweep, compare, ensemble])
def test_weights_that_cannot_be_loaded_leave_it_as_it_was(
    command: Command, keys: dict[str, Any], tmp_path: Path
) -> None:
    before = command(max_steps=2, **keys)
    files = contents(tmp_path / "run")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises((OSError, ValueError), match=r"model\.safetensors"):
        command(max_steps=4, resume=True, **keys)
    assert contents(tmp_path / "run") == files
    assert command(max_steps=2, resume=True, **keys) == before  # for which no weights are needed


@pytest.mark.parametrize("command", [train, sweep, compare, ensemble])
def test_a_checkpoint_that_cannot_serve_leaves_what_was_found_of_it(
    command: Command, keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = command(max_steps=2, **keys)

    def refused(_: Any) -> None:
        raise TrainingError("the checkpoint is of another base")

    monkeypatch.setattr("penchant.training.restoring._restore", refused)
    try:
        (point,) = command(max_steps=4, resume=True, **keys)
    except TrainingError as error:
        point = (None, str(error))
    assert point == (None, "the checkpoint is of another base")
    assert command(max_steps=2, resume=True, **keys) == before


def test_overwriting_with_a_trl_script_waits_for_the_new_run_as_well(
    keys: dict[str, Any], held_out_file: Path, tmp_path: Path
) -> None:
    penchant.train("dpo", max_steps=2, **keys)
    files = contents(tmp_path / "run")
    (tmp_path / "model" / "model.safetensors").unlink()
    rows = [{"prompt": "Is it so?", "chosen": " yes", "rejected": " no"}] * 4
    args = penchant.compat.trl.DPOConfig(
        output_dir=keys["output"], overwrite_output_dir=True, max_steps=1, report_to="none"
    )
    trainer = penchant.compat.trl.DPOTrainer(keys["model"], args=args, train_dataset=rows)
    with pytest.raises((OSError, ValueError), match=r"model\.safetensors"):
        trainer.train()
    assert contents(tmp_path / "run") == files
