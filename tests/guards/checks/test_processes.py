"""What several processes cannot train is found by one, before they are launched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import penchant


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim": "muon"}, "set optim to adamw or sgd"),
        ({"sync_ref_model": True, "lora_r": 8, "offload": True}, "set offload to false"),
        ({"quantization": "4bit", "lora_r": 8}, "codes of weights are not sharded"),
    ],
    ids=str,
)
def test_what_sharded_weights_cannot_serve_is_an_error(
    tiny_keys: dict[str, Any], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    keys = {**tiny_keys, "output": tmp_path / "run", "lora_r": 0, "sharding": "full", **changes}
    (finding,) = penchant.check("dpo", probe=False, num_processes=2, **keys).errors
    assert message in f"{finding.what}; {finding.remedy}"


def test_a_run_of_several_processes_is_measured_by_one(
    tiny_keys: dict[str, Any], tmp_path: Path
) -> None:
    keys = {**tiny_keys, "output": tmp_path / "run", "lora_r": 0, "sharding": "full"}
    found = penchant.check("orpo", num_processes=2, offload=True, **keys)
    assert not found.errors
    assert found.estimate is not None
    alone = penchant.check("orpo", **keys)
    assert alone.estimate is not None
    assert 0 < found.estimate.parts["optimizer"] < 0.6 * alone.estimate.parts["optimizer"]
