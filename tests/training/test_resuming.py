"""A run is the same however it is interrupted, and nothing behind its last step is lost."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pydoc
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.filesystem import FileSystem

import penchant
from penchant.cli.main import main
from penchant.core.errors import RunInterrupted, TrainingError
from penchant.data.records import DataError
from penchant.training.checkpoint_files import checkpoint_steps
from penchant.training.checkpoint_reading import read_part
from penchant.training.result import TrainResult
from penchant.training.step import Step


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def training_steps(run: Path) -> list[int]:
    return [record["step"] for record in metrics(run) if "loss" in record]


def evaluated_steps(run: Path) -> list[int]:
    return [record["step"] for record in metrics(run) if "eval/loss" in record]


def final_weights(run: Path) -> bytes:
    return (run / "model" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def long_keys(tiny_keys: dict[str, Any], held_out_file: Path) -> dict[str, Any]:
    """24 steps with dropout, evaluations, and a checkpoint every 3 steps."""
    return {
        **tiny_keys,
        "eval_data": str(held_out_file),
        "num_train_epochs": 4,
        "lora_dropout": 0.1,
        "eval_steps": 8,
        "save_steps": 3,
        "eval_samples": 1,
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, long_keys: dict[str, Any]) -> Path:
    output = tmp_path_factory.mktemp("uninterrupted") / "run"
    penchant.train("dpo", output=output, **long_keys)
    assert len(training_steps(output)) == 24
    return output


def assert_same_run(found: Path, expected: Path) -> None:
    assert final_weights(found) == final_weights(expected)
    assert training_steps(found) == training_steps(expected)
    assert evaluated_steps(found) == evaluated_steps(expected)
    for a, b in zip(metrics(found), metrics(expected), strict=True):
        for name in set(a) - {"tokens_per_second", "memory_peak_bytes"}:
            assert a[name] == b[name], (a["step"], name)
    samples = [run / "samples.jsonl" for run in (found, expected) if evaluated_steps(run)]
    assert len({file.read_text() for file in samples}) <= 1


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., Any]]:
    """Start `penchant.train` in a process of its own, without importing torch for each."""
    context = multiprocessing.get_context("fork")
    begun = []

    def run(keys: dict[str, Any]) -> None:
        torch.set_num_threads(1)  # the threads of the process that was forked are not there
        penchant.train("dpo", **keys)

    def begin(**keys: Any) -> Any:
        process = context.Process(target=run, args=(keys,))
        process.start()
        begun.append(process)
        return process

    yield begin
    for process in begun:
        process.kill()
        process.join()


def logged_steps(run: Path) -> int:
    file = run / "metrics.jsonl"
    return file.read_text().count("grad_norm") if file.exists() else 0


def kill_when(process: Any, happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        assert process.is_alive()
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -9


def test_killed_run_goes_on_to_the_same_weights_bit_for_bit(
    tmp_path: Path, long_keys: dict[str, Any], uninterrupted: Path, start: Callable[..., Any]
) -> None:
    run = tmp_path / "run"

    # after step 4 there is the checkpoint of step 3; then once more, from there to after step 10
    kill_when(start(output=run, **long_keys), lambda: logged_steps(run) >= 4)
    assert not (run / "summary.json").exists()
    assert checkpoint_steps(run / "checkpoints")
    kill_when(start(output=run, resume=True, **long_keys), lambda: logged_steps(run) >= 10)
    penchant.train("dpo", output=run, resume=True, **long_keys)
    assert_same_run(run, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_run_killed_at_any_moments_goes_on_to_the_same_weights(
    tmp_path: Path,
    long_keys: dict[str, Any],
    uninterrupted: Path,
    start: Callable[..., Any],
    seed: int,
) -> None:
    draw = random.Random(seed)
    run = tmp_path / "run"
    killed = 0
    for _ in range(8):
        process = start(output=run, resume=True, **{**long_keys, "save_steps": draw.randint(1, 4)})
        if draw.random() < 0.7:  # at some step, else while it starts
            target = logged_steps(run) + draw.randint(0, 8)
            while process.is_alive() and logged_steps(run) < target:
                time.sleep(0.002)
            process.join(draw.uniform(0, 0.06))
        else:
            process.join(draw.uniform(0, 0.6))
        if process.is_alive():
            process.kill()
            killed += 1
        process.join()
        assert process.exitcode in (0, -9)  # no kill leaves what stops the next start
    assert killed >= 3
    penchant.train("dpo", output=run, resume=True, **long_keys)
    assert_same_run(run, uninterrupted)


def test_run_killed_before_its_first_checkpoint_starts_over_and_logs_nothing_twice(
    tmp_path: Path, as_killed: Callable[..., Path], long_keys: dict[str, Any], uninterrupted: Path
) -> None:
    run = as_killed(uninterrupted, tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    penchant.train("dpo", output=run, resume=True, **long_keys)
    assert_same_run(run, uninterrupted)


def unwrapped(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("damage", ["truncated", "no manifest", "both"])
def test_corrupt_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path,
    as_killed: Callable[..., Path],
    long_keys: dict[str, Any],
    uninterrupted: Path,
    capsys: pytest.CaptureFixture[str],
    damage: str,
) -> None:
    run = as_killed(uninterrupted, tmp_path / "run")
    *_, before, newest = checkpoint_steps(run / "checkpoints")
    if damage != "no manifest":
        (weights,) = (run / "checkpoints" / f"step-{newest}").glob("*.safetensors")
        os.truncate(weights, weights.stat().st_size // 2)
    if damage != "truncated":
        (run / "checkpoints" / f"step-{newest}" / "manifest.json").unlink()
    half = run / "checkpoints" / f".step-{newest + 3}.partial"
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"half")
    penchant.train("dpo", output=run, resume=True, **long_keys)
    told = unwrapped(capsys)
    assert "trying the one before it" in told
    assert f"resumed from step {before} " in told
    assert_same_run(run, uninterrupted)


def test_unsound_checkpoint_does_not_push_out_sound_ones(
    tmp_path: Path, as_killed: Callable[..., Path], long_keys: dict[str, Any], uninterrupted: Path
) -> None:
    run = as_killed(uninterrupted, tmp_path / "run")
    *_, newest = checkpoint_steps(run / "checkpoints")
    (run / "checkpoints" / f"step-{newest}" / "manifest.json").unlink()
    keys = {**long_keys, "resume": True, "save_steps": 1, "save_total_limit": 1}
    # It stops again before it reaches the step of the unsound checkpoint.
    with pytest.MonkeyPatch.context() as patch:
        fail_to_save(patch, at=newest - 1)
        with pytest.raises(TrainingError, match="the disk is full"):
            penchant.train("dpo", output=run, **keys)
    assert newest - 2 in checkpoint_steps(run / "checkpoints")
    penchant.train("dpo", output=run, **keys)
    assert_same_run(run, uninterrupted)


@pytest.mark.parametrize("reference", ["copy", "cache"])
def test_training_of_all_weights_goes_on_bit_for_bit_with_the_reference_it_began_with(
    tmp_path: Path, as_killed: Callable[..., Path], tiny_keys: dict[str, Any], reference: str
) -> None:
    keys = {**tiny_keys, "lora_r": 0, "reference": reference, "save_steps": 2}
    whole = penchant.train("dpo", output=tmp_path / "whole", **keys)
    run = as_killed(tmp_path / "whole", tmp_path / "run", after=4)
    again = penchant.train("dpo", output=run, resume=True, **keys)
    saved = [(one.model / "model.safetensors").read_bytes() for one in (whole, again)]
    assert saved[0] == saved[1]


@pytest.mark.parametrize("lora_r", [8, 0])
def test_reference_that_follows_the_policy_goes_on_from_where_it_was(
    tmp_path: Path, as_killed: Callable[..., Path], tiny_keys: dict[str, Any], lora_r: int
) -> None:
    """Synchronised behind steps 2, 4, 6 and 8; the run goes on from step 6 of 9."""
    keys = {**tiny_keys, "lora_r": lora_r, "num_train_epochs": 1.5, "save_steps": 3}
    keys |= {"sync_ref_model": True, "ref_model_sync_steps": 2, "learning_rate": 3e-3}
    whole = penchant.train("dpo", output=tmp_path / "whole", **keys)
    fixed = penchant.train(
        "dpo", output=tmp_path / "fixed", **{**keys, "sync_ref_model": False, "reference": "copy"}
    )
    margins = [[m["reward/margin"] for m in metrics(run.output)] for run in (whole, fixed)]
    assert margins[0][:2] == margins[1][:2]
    # What the reference has learnt is no longer the policy's merit.
    assert all(ours < theirs for ours, theirs in zip(margins[0][2:], margins[1][2:], strict=True))

    run = as_killed(tmp_path / "whole", tmp_path / "run", after=6)
    saved = read_part(run / "checkpoints", 6, "weights")
    assert any(name.startswith("reference/") for name in saved)
    penchant.train("dpo", output=run, resume=True, **keys)
    name = "adapter_model.safetensors" if lora_r else "model.safetensors"
    assert (run / "model" / name).read_bytes() == (whole.model / name).read_bytes()
    assert [m["loss"] for m in metrics(run)] == [m["loss"] for m in metrics(whole.output)]


def test_resuming_with_another_beta_is_refused_by_name(
    long_keys: dict[str, Any], uninterrupted: Path
) -> None:
    before = final_weights(uninterrupted)
    with pytest.raises(TrainingError, match=r"beta: 0\.1 then, 0\.2 now"):
        penchant.train("dpo", output=uninterrupted, resume=True, beta=0.2, **long_keys)
    assert final_weights(uninterrupted) == before


def test_resuming_with_other_data_is_refused(
    tmp_path: Path, as_killed: Callable[..., Path], long_keys: dict[str, Any], uninterrupted: Path
) -> None:
    run = as_killed(uninterrupted, tmp_path / "run")
    data = Path(long_keys["data"])
    content = data.read_text()
    try:
        data.write_text(content.replace("Is 7", "Is 77"))  # the same path, another content
        with pytest.raises(TrainingError, match="data_fingerprints"):
            penchant.train("dpo", output=run, resume=True, **long_keys)
    finally:
        data.write_text(content)


def test_resuming_a_complete_run_says_so_and_changes_nothing(
    long_keys: dict[str, Any], uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    result = penchant.train("dpo", output=uninterrupted, resume=True, **long_keys)
    assert "is complete; nothing to resume" in unwrapped(capsys)
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before
    assert (result.steps, result.best_step) == (24, 24)
    assert result.after is not None
    assert result.after.accuracy == 1


def test_resuming_a_run_that_never_began_begins_it(
    tmp_path: Path, long_keys: dict[str, Any], uninterrupted: Path
) -> None:
    penchant.train("dpo", output=tmp_path / "run", resume=True, **long_keys)
    assert_same_run(tmp_path / "run", uninterrupted)


# Checkpoints of a run


@pytest.fixture(scope="module")
def contrary_keys(
    tmp_path_factory: pytest.TempPathFactory, tiny_keys: dict[str, Any], held_out_file: Path
) -> dict[str, Any]:
    """A run whose held-out preferences are the opposite: its first evaluation is its best."""
    rows = [json.loads(line) for line in held_out_file.read_text().splitlines()]
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    file = tmp_path_factory.mktemp("contrary") / "held-out.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in swapped))
    return {
        **tiny_keys,
        "eval_data": str(file),
        "num_train_epochs": 2,
        "eval_steps": 2,
        "save_steps": 1,
        "eval_samples": 0,
    }


@pytest.mark.parametrize(("kept", "expected"), [(1, [2, 12]), (3, [2, 10, 11, 12])])
def test_newest_checkpoints_and_the_best_are_kept(
    tmp_path: Path, contrary_keys: dict[str, Any], kept: int, expected: list[int]
) -> None:
    run = tmp_path / "run"
    result = penchant.train("dpo", output=run, save_total_limit=kept, **contrary_keys)
    assert checkpoint_steps(run / "checkpoints") == expected
    assert result.best_step == 2


def test_best_evaluation_is_what_is_saved_where_that_is_asked_for(
    tmp_path: Path, contrary_keys: dict[str, Any]
) -> None:
    results = {}
    for wanted in (True, False):
        results[wanted] = penchant.train(
            "dpo", output=tmp_path / str(wanted), load_best_model_at_end=wanted, **contrary_keys
        )
    best = results[True]
    (evaluation,) = (
        record
        for record in metrics(best.output)
        if record["step"] == 2 and "eval/reward/margin" in record
    )
    assert best.after is not None
    assert best.after.margin == pytest.approx(evaluation["eval/reward/margin"], abs=1e-6)
    last = results[False].after
    assert last is not None
    assert best.after.margin > last.margin + 0.05
    found = penchant.evaluate(model=best.output, data=contrary_keys["eval_data"])
    assert found.margin == pytest.approx(best.after.margin, abs=1e-5)
    saved = load_file(best.model / "adapter_model.safetensors")
    checkpoint = read_part(best.output / "checkpoints", 2, "weights")
    for name, weight in checkpoint.items():
        assert torch.equal(saved[name.removeprefix("model.").replace(".default", "")], weight)


def fail_to_save(patch: pytest.MonkeyPatch, at: int) -> None:
    """Let the disk be full when step `at` is saved."""
    real = FileSystem.create_stream

    def create(disk: FileSystem, path: Any, mode: str) -> Any:
        if Path(path).parent.name == f".step-{at}.partial" and mode == "wb":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(disk, path, mode)

    patch.setattr(FileSystem, "create_stream", create)


def test_full_disk_stops_the_run_with_its_earlier_checkpoints_intact(
    tmp_path: Path, long_keys: dict[str, Any], uninterrupted: Path
) -> None:
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        fail_to_save(patch, at=9)
        with pytest.raises(TrainingError) as caught:
            penchant.train("dpo", output=run, **long_keys)
    told = str(caught.value)
    assert "the disk is full: checkpoint step-9 could not be written" in told
    assert "step-6" in told
    assert "--resume" in told
    assert not (run / "checkpoints" / "step-9").exists()
    penchant.train("dpo", output=run, resume=True, **long_keys)
    assert_same_run(run, uninterrupted)


def test_full_disk_while_the_model_is_saved_says_so_and_can_be_resumed(
    tmp_path: Path, long_keys: dict[str, Any], uninterrupted: Path
) -> None:
    from peft import PeftModel

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PeftModel, "save_pretrained", fail)
        with pytest.raises(TrainingError, match="the disk is full") as caught:
            penchant.train("dpo", output=run, **long_keys)
    assert "--resume" in str(caught.value)
    assert not (run / "summary.json").exists()
    assert not (run / "model").exists()
    penchant.train("dpo", output=run, resume=True, **long_keys)
    assert_same_run(run, uninterrupted)


# The end of a run


@pytest.fixture(scope="module")
def ending_keys(tiny_keys: dict[str, Any], held_out_file: Path) -> dict[str, Any]:
    """6 steps; no checkpoint is asked for on the way."""
    return {**tiny_keys, "eval_data": str(held_out_file), "eval_steps": 4, "eval_samples": 2}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, ending_keys: dict[str, Any]) -> Path:
    output = tmp_path_factory.mktemp("ended") / "run"
    penchant.train("dpo", output=output, **ending_keys)
    return output


def fail_at_the_end(patch: pytest.MonkeyPatch, stage: str) -> None:
    """Let the final evaluation, the final samples, or saving the model fail."""
    owner, name, good_calls = {
        "evaluation": (
            "penchant.training.engine.Engine",
            "evaluate_now",
            2,
        ),  # before, and at step 4
        "samples": ("penchant.commands.held_out_answers", "answer_prompts", 1),
        "saving": ("penchant.commands.run", "save_model", 0),
        "summary": ("penchant.training.folder.RunDirectory", "write_summary", 0),
    }[stage]
    target: Any = pydoc.locate(owner)
    real, calls = getattr(target, name), []

    def fail(*given: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) > good_calls:
            raise RuntimeError(f"no {stage}")
        return real(*given, **named)

    patch.setattr(target, name, fail)


@pytest.mark.parametrize("stage", ["evaluation", "samples", "saving", "summary"])
def test_failure_behind_the_last_step_loses_nothing(
    tmp_path: Path, ending_keys: dict[str, Any], ended: Path, stage: str
) -> None:
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        fail_at_the_end(patch, stage)
        with pytest.raises(RuntimeError, match=f"no {stage}"):
            penchant.train("dpo", output=run, **ending_keys)
    assert 6 in checkpoint_steps(run / "checkpoints")
    assert not (run / "summary.json").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "take", lambda *_: pytest.fail("a step was taken again"))
        result = penchant.train("dpo", output=run, resume=True, **ending_keys)
    assert_same_run(run, ended)
    expected = TrainResult.from_summary(json.loads((ended / "summary.json").read_text()))
    assert (result.steps, result.best_step) == (6, expected.best_step)
    assert result.after == expected.after
    assert 6 not in checkpoint_steps(run / "checkpoints")


def test_best_evaluation_is_the_same_one_where_the_run_was_resumed_behind_its_last(
    tmp_path: Path, ending_keys: dict[str, Any]
) -> None:
    """The last evaluation was logged, but no checkpoint knows that it was the best."""
    keys = {**ending_keys, "load_best_model_at_end": True}
    whole = penchant.train("dpo", output=tmp_path / "whole", **keys)
    assert whole.best_step == 6
    with pytest.MonkeyPatch.context() as patch:
        fail_at_the_end(patch, "saving")
        with pytest.raises(RuntimeError, match="no saving"):
            penchant.train("dpo", output=tmp_path / "run", **keys)
    resumed = penchant.train("dpo", output=tmp_path / "run", resume=True, **keys)
    assert resumed.best_step == 6
    assert resumed.after == whole.after
    assert final_weights(resumed.output) == final_weights(whole.output)


@pytest.mark.parametrize(("save_steps", "kept"), [(500, []), (4, [4]), (3, [3, 6]), (6, [6])])
def test_complete_run_keeps_the_checkpoints_that_were_asked_for_and_no_other(
    tmp_path: Path, tiny_keys: dict[str, Any], save_steps: int, kept: list[int]
) -> None:
    penchant.train("dpo", output=tmp_path, save_steps=save_steps, **tiny_keys)
    assert checkpoint_steps(tmp_path / "checkpoints") == kept
    assert (tmp_path / "checkpoints").exists() == bool(kept)


def test_folder_beside_the_checkpoints_is_none_of_them(
    tmp_path: Path, as_killed: Callable[..., Path], long_keys: dict[str, Any], uninterrupted: Path
) -> None:
    run = as_killed(uninterrupted, tmp_path / "run")
    *_, before, newest = checkpoint_steps(run / "checkpoints")
    backup = run / "checkpoints" / "step-12.bak"
    (run / "checkpoints" / f"step-{newest}").rename(backup)
    assert checkpoint_steps(run / "checkpoints")[-1] == before
    penchant.train("dpo", output=run, resume=True, **long_keys)
    assert_same_run(run, uninterrupted)
    assert backup.is_dir()


def test_corrupt_best_checkpoint_leaves_the_last_weights_and_says_so(
    tmp_path: Path,
    as_killed: Callable[..., Path],
    contrary_keys: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    keys = {**contrary_keys, "load_best_model_at_end": True, "max_steps": 4}
    whole = penchant.train("dpo", output=tmp_path / "whole", **keys)
    assert whole.best_step == 2
    run = as_killed(tmp_path / "whole", tmp_path / "run")
    last = read_part(run / "checkpoints", 4, "weights")
    (weights,) = (run / "checkpoints" / "step-2").glob("*.safetensors")
    os.truncate(weights, weights.stat().st_size // 2)
    result = penchant.train("dpo", output=run, resume=True, **keys)
    told = unwrapped(capsys)
    assert f"step-2 is corrupt: {weights.name} has changed" in told
    assert "the weights of the last step are kept instead" in told
    saved = load_file(result.model / "adapter_model.safetensors")
    for name, weight in last.items():
        assert torch.equal(saved[name.removeprefix("model.").replace(".default", "")], weight)
    logged = [m["eval/reward/margin"] for m in metrics(run) if m["step"] == 4 and "eval/loss" in m]
    assert result.after is not None
    assert [result.after.margin] == logged


def test_resuming_with_steps_of_another_size_is_refused(
    tmp_path: Path, as_killed: Callable[..., Path], long_keys: dict[str, Any], uninterrupted: Path
) -> None:
    run = as_killed(uninterrupted, tmp_path / "run")
    text = (run / "config.yaml").read_text()
    assert "num_processes: 1\n" in text
    (run / "config.yaml").write_text(text.replace("num_processes: 1\n", "num_processes: 2\n"))
    with pytest.raises(TrainingError, match=r"examples of a step .*: \d+ then, \d+ now"):
        penchant.train("dpo", output=run, resume=True, **long_keys)


def test_run_of_an_older_version_without_some_key_is_resumed(
    tmp_path: Path, as_killed: Callable[..., Path], long_keys: dict[str, Any], uninterrupted: Path
) -> None:
    run = as_killed(uninterrupted, tmp_path / "run")
    lines = (run / "config.yaml").read_text().splitlines()
    older = [line for line in lines if not line.startswith(("unpair:", "num_processes:"))]
    assert len(older) == len(lines) - 2
    (run / "config.yaml").write_text("\n".join(older) + "\n")
    penchant.train("dpo", output=run, resume=True, **long_keys)
    assert_same_run(run, uninterrupted)


# Interrupting, overwriting, going further


def interrupted_after(step: int, output: Path, **keys: Any) -> str:
    """What a run says that gets a SIGTERM while it takes a step."""
    take = Step.take

    def taking(taker: Step, batch: Any, *rest: Any) -> Any:
        metrics = take(taker, batch, *rest)
        if batch.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return metrics

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "take", taking)
        with pytest.raises(RunInterrupted) as caught:
            penchant.train("dpo", output=output, **keys)
    return str(caught.value)


def test_interrupted_run_saves_its_step_and_ends_in_the_same_weights(
    tmp_path: Path, tiny_keys: dict[str, Any]
) -> None:
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    penchant.train("dpo", output=whole, save_steps=500, **tiny_keys)
    message = interrupted_after(2, halved, save_steps=500, **tiny_keys)
    assert checkpoint_steps(halved / "checkpoints") == [2]
    assert message.endswith(f"penchant train dpo --config {halved / 'config.yaml'} --resume")
    assert main(message.partition("penchant ")[2].split()) == 0
    assert_same_run(halved, whole)


def test_run_that_took_no_step_leaves_its_folder_usable(
    tmp_path: Path, tiny_keys: dict[str, Any]
) -> None:
    output = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "take", lambda *_: pytest.fail("before the first step"))
        with pytest.raises(pytest.fail.Exception):
            penchant.train("dpo", output=output, eval_data=tiny_keys["data"], **tiny_keys)
    assert (output / "metrics.jsonl").exists()  # the evaluation before the first step
    result = penchant.train("dpo", output=output, **tiny_keys)
    steps = [record["step"] for record in metrics(output)]
    assert steps == list(range(1, result.steps + 1))


def test_overwrite_removes_an_earlier_run_once_the_new_one_can_start(
    tmp_path: Path, tiny_keys: dict[str, Any]
) -> None:
    output = tmp_path / "run"
    penchant.train("dpo", output=output, max_steps=2, **tiny_keys)
    (output / "notes.txt").write_text("mine")
    with pytest.raises(TrainingError, match="--resume goes on with it, --overwrite removes it"):
        penchant.train("dpo", output=output, beta=0.3, max_steps=1, **tiny_keys)
    with pytest.raises(DataError):
        penchant.train("dpo", output=output, overwrite=True, **{**tiny_keys, "data": "none.jsonl"})
    assert (output / "summary.json").exists()
    penchant.train("dpo", output=output, beta=0.3, max_steps=1, overwrite=True, **tiny_keys)
    assert [record["step"] for record in metrics(output)] == [1]
    assert (output / "notes.txt").read_text() == "mine"


def test_complete_run_goes_further_when_its_steps_grow(
    tmp_path: Path, tiny_keys: dict[str, Any]
) -> None:
    keys = {**tiny_keys, "lr_scheduler_type": "constant", "save_steps": 2, "warmup_ratio": 0}
    penchant.train("dpo", output=tmp_path / "whole", max_steps=4, **keys)
    penchant.train("dpo", output=tmp_path / "grown", max_steps=2, **keys)
    grown = penchant.train("dpo", output=tmp_path / "grown", max_steps=4, resume=True, **keys)
    assert grown.steps == 4
    assert_same_run(tmp_path / "grown", tmp_path / "whole")


def rates(run: Path) -> list[float]:
    return [record["learning_rate"] for record in metrics(run) if "learning_rate" in record]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_run_that_goes_further_takes_the_rates_of_its_new_length(
    tmp_path: Path, tiny_keys: dict[str, Any], schedule: str
) -> None:
    keys = {**tiny_keys, "lr_scheduler_type": schedule, "save_steps": 3}
    penchant.train("dpo", output=tmp_path / "whole", max_steps=8, **keys)
    penchant.train("dpo", output=tmp_path / "grown", max_steps=3, **keys)
    penchant.train("dpo", output=tmp_path / "grown", max_steps=8, resume=True, **keys)
    assert rates(tmp_path / "grown")[3:] == rates(tmp_path / "whole")[3:]
    assert min(rates(tmp_path / "grown")[3:]) > 0


def test_run_that_goes_further_knows_how_good_it_was_when_it_ended(
    tmp_path: Path, contrary_keys: dict[str, Any]
) -> None:
    keys = {**contrary_keys, "output": tmp_path / "run", "eval_steps": 4}
    keys |= {"load_best_model_at_end": True, "save_total_limit": 1}
    first = penchant.train("dpo", max_steps=2, **keys)
    assert first.best_step == 2
    again = penchant.train("dpo", max_steps=8, resume=True, **keys)
    assert (again.steps, again.best_step) == (8, 2)
    assert checkpoint_steps(tmp_path / "run" / "checkpoints") == [2, 8]
    assert first.after is not None and again.after is not None
    assert again.after.margin == first.after.margin
    found = penchant.evaluate(model=again.output, data=contrary_keys["eval_data"])
    assert found.margin == pytest.approx(first.after.margin, abs=1e-5)


def test_checkpoint_is_saved_when_the_last_is_old(
    tmp_path: Path, tiny_keys: dict[str, Any]
) -> None:
    keys = {"save_steps": 500, "save_minutes": 1e-9, "save_total_limit": 9, "max_steps": 3}
    penchant.train("dpo", output=tmp_path / "run", **keys, **tiny_keys)
    assert checkpoint_steps(tmp_path / "run" / "checkpoints") == [1, 2]


@pytest.mark.slow
def test_an_adapter_on_another_base_than_it_was_trained_on_is_not_resumed(
    tiny_keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {**tiny_keys, "peft": {"init_lora_weights": "lora_ga"}, "reference": "copy"}
    keys |= {"output": tmp_path / "run", "save_steps": 1, "lora_r": 4}
    penchant.train("dpo", max_steps=2, **keys)
    own = torch.svd_lowrank

    def flipped(*given: Any, **named: Any) -> Any:
        left, values, right = own(*given, **named)  # as right with another sign of one vector
        left[:, 0], right[:, 0] = -left[:, 0], -right[:, 0]
        return left, values, right

    penchant.train("dpo", max_steps=3, resume=True, **keys)
    monkeypatch.setattr(torch, "svd_lowrank", flipped)
    with pytest.raises(TrainingError, match="takes out of the base comes out otherwise"):
        penchant.train("dpo", max_steps=4, resume=True, **keys)
