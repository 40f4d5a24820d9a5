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


def test_passes_over_the_data_count_what_all_processes_take(
    tiny_keys: dict[str, Any], tmp_path: Path
) -> None:
    """Twice the 6 steps of a pass are two passes of one process, and four of two."""
    keys = {**tiny_keys, "output": tmp_path / "run", "max_steps": 12, "probe": False}
    for count, expected in ((1, False), (2, True)):
        result = penchant.check("dpo", num_processes=count, **keys)
        assert ("epochs" in {one.id for one in result.findings}) is expected


def test_weights_that_nodes_divide_are_forecast_for_a_node(
    tiny_keys: dict[str, Any], tmp_path: Path
) -> None:
    keys = {**tiny_keys, "output": tmp_path / "run", "lora_r": 0, "probe": False}
    many = {**keys, "sharding": "hybrid", "num_processes": 4}
    for asked, message in (({}, "set node_size"), ({"node_size": 3}, "not a multiple")):
        (finding,) = penchant.check("orpo", **many, **asked).errors
        assert message in f"{finding.what}; {finding.remedy}"
    nodes = penchant.check("orpo", **many, node_size=2).estimate
    two = penchant.check("orpo", **keys, sharding="full", num_processes=2).estimate
    four = penchant.check("orpo", **keys, sharding="full", num_processes=4).estimate
    assert nodes is not None and two is not None and four is not None
    assert nodes.parts["weights"] == two.parts["weights"] > 1.5 * four.parts["weights"]
    assert nodes.phases["update"] == two.phases["update"] > four.phases["update"]


def test_what_several_processes_sample_takes_them_fewer_steps(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    keys = {
        **{"model": str(tiny_model_dir), "data": [{"prompt": f"say {word}"} for word in "abcde"]},
        **{"output": tmp_path / "run", "reward": "length:20", "num_generations": 8},
        **{"batch_size": 8, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1},
        **{"max_completion_length": 6, "max_length": 64, "probe": False},
    }
    steps = []
    for count in (1, 2):
        estimate = penchant.check("grpo", num_processes=count, **keys).estimate
        assert estimate is not None
        steps.append(estimate.num_steps)
    assert steps == [5 * 4, 5 * 2]


def test_a_process_keeps_the_answers_that_it_samples_itself(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Of three prompts with 8 answers each, or of held-out prompts with one."""
    keys = {
        **{"model": str(tiny_model_dir), "data": [{"prompt": f"say {word}"} for word in "abcde"]},
        **{"output": tmp_path / "run", "reward": "length:20", "num_generations": 8},
        **{"batch_size": 24, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1},
        **{"max_completion_length": 6, "max_length": 64, "probe": False},
    }

    def sampling(num_processes: int, **changes: Any) -> float:
        found = penchant.check("grpo", num_processes=num_processes, **{**keys, **changes})
        assert found.estimate is not None
        return found.estimate.phases["sampling"]

    assert sampling(1) > sampling(2) > sampling(3)
    few = [sampling(count, generation_batch_size=4) for count in (1, 3)]
    assert few[0] == few[1] < sampling(3)
    held_out = [{"prompt": f"sing {word}"} for word in "abcdefghijklmnopqrstuvwxyz"]
    many = [sampling(count, eval_data=held_out) for count in (1, 3)]
    assert many[0] > sampling(1)
    assert many[0] > many[1] > sampling(3)
