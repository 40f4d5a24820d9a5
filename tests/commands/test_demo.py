"""The demo on a tiny model: the sample set reads, and the result is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from penchant.data.read import read_pairs


def test_the_sample_set_reads_and_its_planted_faults_are_named() -> None:
    from penchant.commands.demo import sample_set

    found = read_pairs(sample_set())
    assert len(found.records) == 254
    assert sorted({refusal.reason for refusal in found.refused}) == [
        "chosen equals rejected",
        "empty completion",
    ]
    assert len(found.refused) == 8


@pytest.mark.slow
def test_the_demo_shows_answers_and_numbers_before_and_after(
    tiny_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from penchant.commands import demo as module

    monkeypatch.setattr(module, "demo_model", lambda: str(tiny_model_dir))
    result = module.demo(tmp_path / "run")
    shown, logged = capfd.readouterr()
    before = [*logged.splitlines(), *shown.partition("Held-out prompts")[0].splitlines()]
    print(f"{len(before)} lines before the table")
    assert len(before) <= 40
    assert result.after is not None
    assert (result.output / "report.html").is_file()
    held_out = tmp_path / "run-data" / "test.jsonl"
    assert held_out.is_file()
    assert f"penchant evaluate --model {result.output} --data {held_out}" in shown
    assert f"penchant chat {result.output} --prompts {held_out}" in shown
    assert "on purpose" in shown
    for words in (
        "preference accuracy",
        "answer length",
        "tokens/s",
        "peak memory",
        "run directory",
    ):
        assert words in shown


@pytest.mark.slow
def test_eight_steps_of_the_demo_teach_its_real_model(tmp_path: Path) -> None:
    import penchant
    from penchant.commands.demo import KEYS, demo_model, divided
    from penchant.core.errors import ModelError

    try:
        model = demo_model()
    except ModelError as error:
        pytest.skip(str(error))
    training, held_out = divided(tmp_path / "data")
    keys = {**KEYS, "max_steps": 8, "eval_samples": 0, "monitor_prompts": 0}
    output = tmp_path / "run"
    result = penchant.train(
        "dpo", model=model, data=training, eval_data=held_out, eval_on_start=False, output=output,
        **keys,
    )  # fmt: skip
    assert result.after is not None and result.after.accuracy is not None
    assert result.after.accuracy > 0.6  # every pair is a tie before: half
