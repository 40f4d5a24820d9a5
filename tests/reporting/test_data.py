"""What a report tells of the data: counts of the audit, faults only where there are any."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import penchant
from penchant.reporting import read_run, report
from penchant.reporting.data import audit

WriteRun = Callable[..., Path]
COUNTED = {
    "num_train": 1200, "num_held_out": 80, "num_chat": 1200, "num_prompts": 900, "num_ties": 7,
    "faults": {"leaks": {"num": 0, "total": 1200}, "cycles": {"num": 3, "total": 1200}},
    "length": {"longer_chosen": 30, "shorter_chosen": 10, "equal": 60},
    "noise": {"num_rated": 50, "num_split": 10, "flip_probability": 0.081},
}  # fmt: skip


def test_counts_stand_in_the_page_and_faults_only_where_there_are_any(write_run: WriteRun) -> None:
    run = write_run()
    (run / "data.json").write_text(json.dumps({"data": COUNTED, "tokens": {}}))
    assert audit(read_run(run)) == [
        ("Records", "1,200 for training, as messages; 80 held out"),
        ("Distinct prompts", "900"),
        ("Ties, left out", "7"),
        ("Cycles", "3"),
        ("Longer answer chosen", "in 75% of pairs of unequal length"),
        ("Votes", "50 pairs have them, 20% not unanimous; about 8% of the labels are wrong, "
         "as they tell"),
    ]  # fmt: skip
    assert "1,200 for training, as messages" in report(run).read_text(encoding="utf-8")


def test_a_run_of_an_older_version_has_none(write_run: WriteRun) -> None:
    assert audit(read_run(write_run())) == []


def test_a_run_saves_what_its_checks_counted(tmp_path: Path, tiny_keys: dict[str, Any]) -> None:
    result = penchant.train("dpo", output=tmp_path / "run", train_fraction=0.75, **tiny_keys)
    told = dict(audit(read_run(result.output)))
    assert told["Records"] == "18 for training; 6 held out"
    card = (result.model / "README.md").read_text(encoding="utf-8")
    assert "18 for training; 6 held out" in card
