"""Members of an ensemble: each a run of its own, which goes further as a run does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import penchant


def test_members_go_further_when_their_steps_grow(
    tiny_keys: dict[str, Any], held_out_file: Path, tmp_path: Path
) -> None:
    keys = {**tiny_keys, "eval_data": str(held_out_file), "ensemble": 2, "save_steps": 2}
    keys |= {"lr_scheduler_type": "constant", "warmup_ratio": 0.0, "lora_r": 4}
    penchant.train("reward", output=tmp_path / "grown", max_steps=2, **keys)
    grown = penchant.train("reward", output=tmp_path / "grown", max_steps=4, resume=True, **keys)
    whole = penchant.train("reward", output=tmp_path / "whole", max_steps=4, **keys)
    assert (grown.steps, grown.after) == (whole.steps, whole.after) == (8, whole.after)
    scores, theirs = (
        json.loads((run / "member-2" / "held_out_scores.json").read_text())
        for run in (tmp_path / "grown", tmp_path / "whole")
    )
    assert scores == theirs
