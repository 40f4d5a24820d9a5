"""The run directory: whose folder it is, what may change, what survives a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from penchant.core.errors import TrainingError
from penchant.training.folder import RunDirectory, read_summary
from penchant.training.restoring import rewind

CONFIG: dict[str, Any] = {
    "method": "dpo",
    "beta": 0.1,
    "save_steps": 10,
    "versions": {"torch": "1"},
}


def started(path: Path) -> RunDirectory:
    """A run that has logged something."""
    run = RunDirectory(path, CONFIG, resume=False)
    run.append("metrics.jsonl", {"step": 0})
    return run


def begun(path: Path) -> None:
    """A run that has taken a step."""
    started(path).append("metrics.jsonl", {"step": 1})


def test_folder_of_another_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    begun(tmp_path / "run")
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    with pytest.raises(TrainingError, match="already holds a run; --resume goes on with it"):
        RunDirectory(tmp_path / "run", {**CONFIG, "beta": 0.3}, resume=False)
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before


def test_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("three years of work")
    for resume in (False, True):
        with pytest.raises(TrainingError, match="not empty and holds no run"):
            RunDirectory(tmp_path, CONFIG, resume=resume)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_file_as_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(TrainingError, match="is a file; choose a folder"):
        RunDirectory(tmp_path / "run", CONFIG, resume=False)


def test_output_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot be written"):
        RunDirectory(tmp_path / "file" / "run", CONFIG, resume=False)


def test_empty_folder_is_taken(tmp_path: Path) -> None:
    assert not RunDirectory(tmp_path, CONFIG, resume=False).resumed
    assert (tmp_path / "config.yaml").exists()


def test_folder_that_a_kill_left_before_its_config_was_written_is_taken(tmp_path: Path) -> None:
    (tmp_path / ".config.yaml.partial").write_text("meth")
    assert not RunDirectory(tmp_path, CONFIG, resume=True).resumed


def test_removal_that_is_cut_short_leaves_a_folder_that_can_be_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(tmp_path)
    (tmp_path / "data.json").write_text("{}")
    whole, removed = Path.unlink, []

    def cut(path: Path, **given: Any) -> None:
        assert path.name != "data.json", "killed"
        removed.append(path.name)
        whole(path, **given)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", cut)
        with pytest.raises(AssertionError, match="killed"):
            RunDirectory(tmp_path, CONFIG, resume=False, overwrite=True)
    assert "metrics.jsonl" in removed
    assert not RunDirectory(tmp_path, CONFIG, resume=True).resumed


def test_run_that_failed_before_its_first_step_may_start_again_with_other_settings(
    tmp_path: Path,
) -> None:
    RunDirectory(tmp_path / "run", CONFIG, resume=False)
    again = RunDirectory(tmp_path / "run", {**CONFIG, "beta": 0.3}, resume=False)
    assert not again.resumed
    assert "beta: 0.3" in (tmp_path / "run" / "config.yaml").read_text()


def test_resuming_with_another_setting_names_it_with_both_values(tmp_path: Path) -> None:
    begun(tmp_path / "run")
    with pytest.raises(TrainingError) as caught:
        RunDirectory(tmp_path / "run", {**CONFIG, "beta": 0.3}, resume=True)
    assert "beta: 0.1 then, 0.3 now" in str(caught.value)
    assert "save_steps" not in str(caught.value)


def test_resuming_may_change_what_does_not_touch_the_weights(tmp_path: Path) -> None:
    begun(tmp_path / "run")
    changed = {**CONFIG, "save_steps": 5, "versions": {"torch": "2"}}
    assert RunDirectory(tmp_path / "run", changed, resume=True).resumed


def test_key_that_an_older_version_did_not_have_is_as_it_was(tmp_path: Path) -> None:
    begun(tmp_path / "run")
    newer = {**CONFIG, "unpair": False}
    assert RunDirectory(tmp_path / "run", newer, resume=True).resumed
    assert "unpair: false" in (tmp_path / "run" / "config.yaml").read_text()


def test_line_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    with (run.path / "metrics.jsonl").open("ab") as stream:
        # in the middle of a character
        stream.write(b'{"step": 1}\n{"step": 2, "answer": "caf\xc3')
    assert [record["step"] for record in run.read("metrics.jsonl")] == [0, 1]
    rewind(run, 5)
    run.append("metrics.jsonl", {"step": 2})
    assert [record["step"] for record in run.read("metrics.jsonl")] == [0, 1, 2]


def test_answers_with_unusual_line_separators_are_read_back_whole(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    answers = ["one\u2028two", "three\u0085four", "five\n\x0bsix", "seven"]
    for answer in answers:
        run.append("samples.jsonl", {"step": 0, "answer": answer})
    rewind(run, 0)
    assert [record["answer"] for record in run.read("samples.jsonl")] == answers


def test_rewinding_forgets_the_steps_that_are_done_again(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    for step in (1, 2, 3):
        run.append("metrics.jsonl", {"step": step})
    rewind(run, 1)
    assert [record["step"] for record in run.read("metrics.jsonl")] == [0, 1]


def test_complete_run_is_known_by_its_summary(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    assert read_summary(run.path) is None
    run.write_summary({"steps": 3})
    assert read_summary(run.path) == {"steps": 3}


def test_resuming_may_divide_a_step_among_other_processes_but_not_change_its_size(
    tmp_path: Path,
) -> None:
    sizes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    two = {**CONFIG, **sizes, "num_processes": 2, "sharding": "full"}
    run = RunDirectory(tmp_path / "run", two, resume=False)
    run.append("metrics.jsonl", {"step": 1})
    eight = {**two, "num_processes": 8, "gradient_accumulation_steps": 1, "sharding": "off"}
    assert RunDirectory(run.path, eight, resume=True).resumed
    with pytest.raises(TrainingError, match=r"examples of a step .*: 32 then, 128 now"):
        RunDirectory(run.path, {**eight, "gradient_accumulation_steps": 4}, resume=True)


@pytest.mark.parametrize("steps", [8, 12])
def test_complete_run_keeps_its_files_and_keys_until_it_goes_on(tmp_path: Path, steps: int) -> None:
    run = RunDirectory(tmp_path, {**CONFIG, "max_steps": 8}, resume=False)
    run.write_summary({"steps": 8})
    run.write("point.json", {"after": {}})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    again = RunDirectory(tmp_path, {**CONFIG, "max_steps": steps}, resume=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    again.reopen()
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    assert f"max_steps: {steps}" in (tmp_path / "config.yaml").read_text()
