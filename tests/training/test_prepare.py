"""What a run loads, and in which precision."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

import penchant
from penchant.config.keys import load_config
from penchant.core.errors import ConfigError
from penchant.data.batch import Group
from penchant.models import exact
from penchant.models.lora import add_lora
from penchant.models.reference import AdapterReference
from penchant.models.reference_copy import CopyReference, frozen_copy
from penchant.models.scoring import PLAIN, Scorer
from penchant.training import kinds, reference_models
from penchant.training.kind import kind_of
from penchant.training.references import find_difference


@pytest.fixture(scope="module")
def adapter_run(tmp_path_factory: pytest.TempPathFactory, tiny_keys: dict[str, Any]) -> Path:
    output = tmp_path_factory.mktemp("adapter") / "run"
    return penchant.train("dpo", output=output, max_steps=2, **tiny_keys).model


def dtypes(model: Any) -> tuple[set[torch.dtype], set[torch.dtype]]:
    """Of the frozen weights, and of the trained ones."""
    every = list(model.parameters())
    return (
        {p.dtype for p in every if not p.requires_grad},
        {p.dtype for p in every if p.requires_grad},
    )


@pytest.mark.parametrize(
    ("precision", "changes", "frozen", "trained"),
    [
        ("fp32", {}, {torch.float32}, {torch.float32}),
        ("bf16", {}, {torch.bfloat16}, {torch.float32}),
        ("bf16", {"dtype": "fp32"}, {torch.float32}, {torch.float32}),
        ("fp32", {"dtype": "bf16"}, {torch.bfloat16}, {torch.float32}),
        ("bf16", {"lora_r": 0}, set(), {torch.float32}),
    ],
    ids=str,
)
def test_trained_weights_are_fp32_and_a_frozen_base_is_as_precise_as_the_arithmetic(
    tiny_keys: dict[str, Any], precision: str, changes: dict[str, Any], frozen: Any, trained: Any
) -> None:
    config = load_config("dpo", {**tiny_keys, **changes})
    policy = kind_of(config.spec).load(config, precision, config.model)
    assert dtypes(policy) == (frozen, trained)


def test_score_head_is_trained_in_fp32_beside_a_bf16_base(tiny_keys: dict[str, Any]) -> None:
    config = load_config("reward", tiny_keys)
    policy = kind_of(config.spec).load(config, "bf16", config.model)
    assert dtypes(policy) == ({torch.bfloat16}, {torch.float32})
    assert any("score" in name for name, p in policy.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_adapter_that_training_starts_from_is_merged_in_fp32(
    tiny_keys: dict[str, Any], adapter_run: Path, precision: str
) -> None:
    """Rounded to bf16, the base would take back what its adapter had learnt."""
    config = load_config("dpo", {**tiny_keys, "model": str(adapter_run)})
    policy = kind_of(config.spec).load(config, precision, config.model)
    assert dtypes(policy) == ({torch.float32}, {torch.float32})


def moved_adapter(*args: Any, **keys: Any) -> Any:
    model = add_lora(*args, **keys)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.1)
    return model


def moved_copy(policy: Any) -> CopyReference:
    reference = frozen_copy(policy)
    for weight in reference.weights().values():
        weight.data.mul_(1.5)
    return reference


def test_run_whose_policy_is_not_its_reference_is_stopped_before_the_first_step(
    tiny_keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first loss would not be the method's, and nothing else would say so."""

    def train(name: str, **keys: Any) -> Any:
        return penchant.train("dpo", output=tmp_path / name, max_steps=1, **tiny_keys, **keys)

    cached = {"reference": "cache", "cache_dir": str(tmp_path / "kept")}
    train("filled", **cached)
    (file,) = (tmp_path / "kept" / "reference").glob("*.sqlite")
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE logprobs SET sum = sum - 1")
    monkeypatch.setattr(reference_models, "frozen_copy", moved_copy)
    refusals = {"cache": cached, "copy": {"reference": "copy", "lora_r": 0}}
    for name, keys in refusals.items():
        with pytest.raises(ConfigError, match=rf"reference-differs-at-start: .*\({name}\)"):
            train(name, **keys)
        assert not (tmp_path / name).exists()
    monkeypatch.setattr(kinds, "add_lora", moved_adapter)
    with pytest.raises(ConfigError, match=r"reference-differs-at-start: .*\(adapter\)"):
        train("adapter")
    assert train("meant so", silence="reference-differs-at-start").steps == 1


class Faulty(AdapterReference):
    """A reference that is off by 0.03 nats per token."""

    def sums(self, groups: Any, batch: Any, weights: Any = None) -> torch.Tensor:
        return super().sums(groups, batch, weights) + 0.03 * batch.completion_lengths


@pytest.mark.parametrize("has_fp32", [True, False])
def test_fault_that_rounding_could_hide_is_found_in_half_precision(
    tiny_keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch, has_fp32: bool
) -> None:
    config = load_config("dpo", tiny_keys)
    scorer = Scorer(kind_of(config.spec).load(config, "bf16", config.model), 0)
    groups = [Group([5, 6, 7], ([*range(8, 30)], [*range(9, 40)]))]
    if not has_fp32:
        monkeypatch.setattr(exact, "_can_be_exact", lambda scorer: False)
    with torch.autocast("cpu", torch.bfloat16):
        scorer.use(PLAIN)
        assert find_difference(AdapterReference(scorer), scorer, groups) is None
        finding = find_difference(Faulty(scorer), scorer, groups)
    assert finding is not None and finding.evidence["difference"] == pytest.approx(0.03, abs=1e-3)
    assert finding.evidence["limit"] < 0.02


def test_rounding_of_a_cache_is_no_fault_in_half_precision(
    tiny_keys: dict[str, Any], tmp_path: Path
) -> None:
    keys = {**tiny_keys, "precision": "bf16", "silence": "bf16-emulated", "max_steps": 1}
    keys |= {"reference": "cache", "cache_dir": str(tmp_path / "kept")}
    assert penchant.train("dpo", output=tmp_path / "run", **keys).steps == 1
