"""What a sweep recommends, and what it says of points that chance may have ordered."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import penchant
from penchant.commands import sweep as module
from penchant.commands.point_start import heavy_keys, require_starts
from penchant.commands.points import DATA_KEYS
from penchant.commands.sweep import Point, SweepResult, comparable_margins, recommend
from penchant.config.keys import load_config
from penchant.core.errors import ConfigError, ModelError
from penchant.core.evaluation import Evaluation


def point(beta: float, accuracy: float, kl: float, **values: Any) -> Point:
    evaluation = Evaluation(num_examples=100, accuracy=accuracy, margin=beta, kl=kl)
    return Point({"beta": beta, **values}, Path(str(beta)), evaluation)


def test_points_within_chance_cannot_be_told_apart_and_the_nearest_is_taken() -> None:
    chosen, reason = recommend([point(0.05, 0.71, 0.3), point(0.1, 0.70, 0.1), point(1, 0.69, 0.2)])
    assert chosen == 1
    assert "0.700 ± 0.046" in reason and "the 3 points cannot be told apart" in reason


def test_a_point_beyond_chance_is_taken_whatever_its_distance() -> None:
    chosen, reason = recommend([point(0.05, 0.9, 2.0), point(0.1, 0.7, 0.1)])
    assert chosen == 0
    assert "1 of 2 points are within its standard error" in reason


def test_margins_are_not_compared_across_settings_that_scale_them() -> None:
    points = [point(0.05, 0.7, 0.1), point(0.1, 0.7, 0.1)]
    assert not comparable_margins(SweepResult(Path("sweep"), points, 0, ""))
    rates = [Point({"learning_rate": rate}, Path("run"), None) for rate in (1e-5, 1e-4)]
    assert comparable_margins(SweepResult(Path("sweep"), rates, None, ""))


@pytest.fixture
def keys(tiny_keys: dict[str, Any], held_out_file: Path, tmp_path: Path) -> dict[str, Any]:
    """Return a sweep whose points take a fraction of a second."""
    output = {"eval_data": str(held_out_file), "output": str(tmp_path / "sweep")}
    return {**tiny_keys, **output, "max_steps": 2, "lora_r": 4}


def test_of_workers_side_by_side_the_last_that_ends_compares_all_points(
    keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As tasks of a SLURM array: one begins and ends while another trains its last point."""
    vary = {"beta": [0.05, 0.1, 0.3]}
    train, beside = module.train_point, []

    def train_last(config: Any, *given: Any) -> Point:
        if config.output.name == "beta=0.3":
            beside.append(penchant.sweep("dpo", vary, worker="2/2", **keys))
        return train(config, *given)

    monkeypatch.setattr(module, "train_point", train_last)
    last = penchant.sweep("dpo", vary, worker="1/2", **keys)
    (other,) = beside
    assert [point.error for point in other.points] == [None, None, "not trained yet"]
    assert other.recommended is None
    monkeypatch.setattr(module, "train_point", train)
    whole = penchant.sweep("dpo", vary, **{**keys, "output": str(tmp_path / "whole")})
    assert [point.after for point in last.points] == [point.after for point in whole.points]
    assert last.recommended == whole.recommended is not None
    assert json.loads((tmp_path / "sweep" / "sweep.json").read_text())["reason"] == whole.reason


def test_points_that_a_kill_left_without_their_evaluation_are_gone_on_with(
    keys: dict[str, Any], tmp_path: Path
) -> None:
    """A run is complete with its summary, and its point a moment later."""
    vary = {"beta": [0.05, 0.1]}
    whole = penchant.sweep("dpo", vary, **keys)
    (tmp_path / "sweep" / "beta=0.05" / "point.json").unlink()
    (tmp_path / "sweep" / "beta=0.1" / "point.json").write_text('{"error": "of an earlier try"}')
    for name in ("sweep.json", "sweep.png"):
        (tmp_path / "sweep" / name).unlink()
    again = penchant.sweep("dpo", vary, **keys, resume=True)
    assert [point.after for point in again.points] == [point.after for point in whole.points]
    assert again.recommended == whole.recommended
    assert (tmp_path / "sweep" / "sweep.json").exists()


def test_a_point_that_was_killed_before_it_was_recorded_takes_no_step_again(
    keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("penchant.commands.points._with_kl", killed)
        with pytest.raises(KeyboardInterrupt):
            penchant.sweep("dpo", {"beta": [0.1]}, **keys)
    step = "penchant.training.step.Step.take"
    monkeypatch.setattr(step, lambda *_: pytest.fail("a step was taken again"))
    (point,) = penchant.sweep("dpo", {"beta": [0.1]}, **keys, resume=True).points
    assert point.error is None and point.after is not None
    assert not (tmp_path / "sweep" / "beta=0.1" / "checkpoints").exists()


@pytest.mark.parametrize("key", DATA_KEYS)
def test_keys_that_read_or_divide_the_data_cannot_vary(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} cannot differ between points, which share data"):
        penchant.sweep("dpo", {key: [1, 2]}, model="m", data="d", output="s")


def test_points_of_two_seeds_are_the_runs_of_these_seeds_with_held_out_records_of_their_own(
    keys: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys |= {"eval_data": None, "train_fraction": 0.75}
    vary = {"beta": [0.1], "seed": [0, 7]}
    found = penchant.sweep("dpo", vary, **keys)
    assert capsys.readouterr().err.count("24 pairs") == 1  # read once, divided for each seed
    for point in found.points:
        seed, output = point.values["seed"], tmp_path / f"seed-{point.values['seed']}"
        run = penchant.train("dpo", **{**keys, "seed": seed, "output": output, "eval_samples": 0})
        assert point.after is not None and run.after is not None
        assert point.after.margin == pytest.approx(run.after.margin, abs=1e-5)
        weights = "model/adapter_model.safetensors"
        assert (point.output / weights).read_bytes() == (output / weights).read_bytes()
        audits = [json.loads((one / "data.json").read_text()) for one in (point.output, output)]
        assert audits[0] == audits[1]
    assert "each seed has held-out records of its own" in found.reason


def test_points_of_two_seeds_that_share_held_out_records_are_said_to_differ_by_nothing_else(
    keys: dict[str, Any],
) -> None:
    assert "records of its own" not in penchant.sweep("dpo", {"seed": [0, 7]}, **keys).reason


def test_points_go_further_when_their_steps_grow(keys: dict[str, Any], tmp_path: Path) -> None:
    """As a run does: to where it would have come at once."""
    keys |= {"lr_scheduler_type": "constant", "warmup_ratio": 0.0, "save_steps": 2}
    vary = {"beta": [0.05, 0.1]}
    penchant.sweep("dpo", vary, **keys)
    grown = penchant.sweep("dpo", vary, **{**keys, "max_steps": 4}, resume=True)
    output = str(tmp_path / "whole")
    whole = penchant.sweep("dpo", vary, **{**keys, "max_steps": 4, "output": output})
    assert [point.after for point in grown.points] == [point.after for point in whole.points]
    for point in grown.points:
        assert json.loads((point.output / "summary.json").read_text())["steps"] == 4
    before = (grown.points[0].output / "summary.json").stat().st_mtime_ns
    penchant.sweep("dpo", vary, **{**keys, "max_steps": 4}, resume=True)
    assert (grown.points[0].output / "summary.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("lora_r", [4, 0])
def test_every_point_starts_beside_the_same_reference_that_follows(
    keys: dict[str, Any], tmp_path: Path, lora_r: int
) -> None:
    keys |= {"sync_ref_model": True, "ref_model_sync_steps": 1, "lora_r": lora_r, "max_steps": 3}
    both = penchant.sweep("dpo", {"beta": [0.05, 0.3]}, **keys)
    alone = penchant.sweep("dpo", {"beta": [0.3]}, **{**keys, "output": str(tmp_path / "alone")})
    assert both.points[1].after == alone.points[0].after
    name = "adapter_model.safetensors" if lora_r else "model.safetensors"
    second, only = (one.output / "model" / name for one in (both.points[1], alone.points[0]))
    assert second.read_bytes() == only.read_bytes()


def test_points_tell_no_distance_from_a_base_that_something_was_taken_out_of(
    keys: dict[str, Any],
) -> None:
    taken = penchant.sweep("simpo", {"beta": [2.0]}, peft={"init_lora_weights": "pissa"}, **keys)
    plain = {**keys, "output": f"{keys['output']}-plain"}
    usual = penchant.sweep("simpo", {"beta": [2.0]}, **plain)
    found = [result.points[0].after for result in (taken, usual)]
    assert [one is not None and one.kl is not None for one in found] == [False, True]


def test_points_share_a_start_unless_another_reward_judges_their_monitored_answers(
    tiny_model_dir: Path,
) -> None:
    def shared(**keys: Any) -> dict[str, Any]:
        given = {"model": str(tiny_model_dir), "data": "<data>", **keys}
        return heavy_keys(load_config("dpo", given))

    assert shared() == shared(monitor_length=8)
    assert shared(monitor_reward="length:3") != shared(monitor_reward="length:9")


@pytest.mark.parametrize("command", ["sweep", "compare"])
def test_what_a_later_point_cannot_start_from_is_refused_before_the_first_is_trained(
    command: str, keys: dict[str, Any], model_without_weights: Path, tmp_path: Path
) -> None:
    """Without weights no point could begin; it is the last one that is named, and none does."""
    run = {
        "sweep": partial(penchant.sweep, "dpo", {"lora_target_modules": ["all-linear", "v_prj"]}),
        "compare": partial(
            penchant.compare, ["orpo", "dpo"], {"dpo.lora_target_modules": ["v_prj"]}
        ),
    }[command]
    with pytest.raises(ModelError, match="no layer is called v_prj"):
        run(**{**keys, "model": str(model_without_weights)})
    assert not (tmp_path / "sweep").exists()


def test_only_what_a_point_alone_starts_from_is_read_before(
    keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    monkeypatch.setattr(
        "penchant.commands.point_start._read", lambda config, *_: read.append(config.lora_r)
    )
    varied = [{"lora_r": r, "beta": beta} for r in (4, 8) for beta in (0.1, 0.3)]
    configs = [load_config("dpo", {**keys, **one}) for one in varied]
    require_starts((one, None) for one in configs)  # type: ignore[misc]
    assert read == [8], "the first start is loaded next, and of each one point is enough"
