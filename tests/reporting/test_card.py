"""The card that goes with a saved model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from penchant.reporting import write_card, write_end_of_run
from penchant.reporting.card import cell, fenced

WriteRun = Callable[..., Path]


def _card(run: Path, adapter: bool = True) -> tuple[dict[str, Any], str]:
    (run / "model").mkdir()
    if adapter:
        (run / "model" / "adapter_config.json").write_text("{}")
    _, front, body = write_card(run).read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), body


def test_front_matter_is_what_the_hub_reads(write_run: WriteRun) -> None:
    front, body = _card(write_run())
    assert front == {
        "base_model": "owner/small", "library_name": "peft", "pipeline_tag": "text-generation",
        "tags": ["penchant", "dpo", "lora"],
    }  # fmt: skip
    assert "Held-out accuracy rose from 0.5 to 0.9" in body and "| beta | 0.3 |" in body


def test_hub_accepts_the_card(write_run: WriteRun) -> None:
    hub = pytest.importorskip("huggingface_hub")
    run = write_run()
    _card(run)
    data = hub.ModelCard.load(run / "model" / "README.md").data
    assert data.base_model == "owner/small" and "dpo" in data.tags


def test_folders_of_this_machine_do_not_reach_the_card(write_run: WriteRun) -> None:
    config = {"method": "reward", "model": "/home/me/base", "data": "/home/me/pairs.jsonl"}
    front, body = _card(write_run(config=config), adapter=False)
    assert "base_model" not in front and front["library_name"] == "transformers"
    assert front["pipeline_tag"] == "text-classification"
    assert "/home" not in body and "pairs.jsonl" in body


def test_answers_cannot_leave_their_fence_or_their_cell() -> None:
    assert fenced("a ```` b").startswith("`````text\n")
    assert cell("a|b\n<img>") == r"a\|b \<img\>"


def test_a_failing_report_is_a_warning_with_its_reason(
    write_run: WriteRun, caplog: pytest.LogCaptureFixture
) -> None:
    run = write_run()
    write_end_of_run(run)
    assert (run / "report.html").exists()
    assert "the model's card could not be written" in caplog.text
    assert "no saved model" in caplog.text
