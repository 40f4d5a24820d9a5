"""A run's summary tells whether its prompts went through the chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import penchant


@pytest.mark.parametrize("chat", [True, False])
def test_summary_tells_whether_a_template_was_used(
    chat: bool, tiny_keys: dict[str, Any], training_file: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in training_file.read_text().splitlines()]
    if chat:
        rows = [
            {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                **{
                    side: [{"role": "assistant", "content": row[side]}]
                    for side in ("chosen", "rejected")
                },
            }
            for row in rows
        ]
    keys = {**tiny_keys, "data": rows, "max_steps": 1}
    penchant.train("dpo", output=tmp_path / "run", **keys)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["chat"] is chat
