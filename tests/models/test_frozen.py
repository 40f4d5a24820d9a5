"""A frozen model takes half the memory under half precision, and says the same."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from penchant.config.keys import load_config
from penchant.models.frozen import frozen_bytes, hold_frozen
from penchant.models.load import load_causal_model
from penchant.models.memory import unique_bytes
from penchant.models.reference_copy import CopyReference
from penchant.models.rough_sizes import measure_model, sizes_of
from penchant.models.scoring import Scorer, ScoringPlan
from penchant.training.reference_models import ReferenceModels
from penchant.training.references import ReferenceMaker, measure_cost

PACKED = ScoringPlan(packed=True, fused_head=True, kernel="sdpa")
# A tied head, transposed matrices with biases, and a head of its own.
FAMILIES = ["cohere", "gpt2", "llama"]


def scorer_for(model: Any) -> Scorer:
    scorer = Scorer(model, 0)
    scorer.use(PACKED)
    return scorer


def maker(policy: Scorer, **keys: Any) -> ReferenceMaker:
    config = load_config("dpo", {"model": "m", "data": "d", "lora_r": 0, **keys})
    accelerator: Any = None
    return ReferenceMaker(config, policy, accelerator, "bf16", "m")


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_under_autocast_are_those_of_the_fp32_copy(
    make_model: Any, groups: Any, family: str
) -> None:
    exact = CopyReference(scorer_for(make_model(family)))
    held = make_model(family)
    hold_frozen(held, "auto", "bf16")
    assert any(p.dtype == torch.bfloat16 for p in held.parameters())
    rounded = CopyReference(scorer_for(held))
    batch = scorer_for(make_model(family)).batch(groups)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = exact.sums(groups, batch), rounded.sums(groups, batch)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("keys", [{}, {"frozen_dtype": "fp32"}, {"sync_ref_model": True}], ids=str)
def test_bytes_that_a_copy_holds_are_those_that_memory_forecasts(
    tiny_model_dir: Path, groups: Any, keys: dict[str, Any]
) -> None:
    policy = scorer_for(load_causal_model(str(tiny_model_dir), dtype=torch.float32))
    making = maker(policy, **keys)
    reference = ReferenceModels(making).make("copy", groups)
    with torch.autocast("cpu", torch.bfloat16):
        held = measure_cost(reference, policy, groups).num_bytes
    size = measure_model(str(tiny_model_dir))
    formula = sizes_of(
        size, lora_r=0, half_base=False, reference=True, precision="bf16", device="cpu",
        frozen_dtype="fp32" if keys else "auto",
    )  # fmt: skip
    assert held == formula.reference == making.copy_bytes()
    assert held == 4 * size.num_parameters - (0 if keys else 2 * size.num_layer_parameters)
    assert all(p.dtype == torch.float32 for p in policy.parameters())


def test_fp32_is_had_of_half_precision_weights_too(make_model: Any) -> None:
    model = make_model(dtype="bfloat16")
    expected = frozen_bytes(model, "fp32", "bf16")
    hold_frozen(model, "fp32", "bf16")
    assert expected == unique_bytes(model.parameters()) == 4 * model.num_parameters()


@pytest.mark.parametrize("frozen_dtype", ["auto", "fp32"])
def test_of_weights_that_processes_divide_the_part_that_is_here_is_counted(
    make_model: Any, frozen_dtype: str
) -> None:
    model = make_model()
    whole = frozen_bytes(model, frozen_dtype, "bf16")
    for weight in model.parameters():  # as torch tells it of weights that are divided
        weight.to_local = partial(weight.narrow, 0, 0, len(weight) // 2)
    part = frozen_bytes(model, frozen_dtype, "bf16")
    assert part == pytest.approx(whole / 2, rel=0.05)


def test_score_of_a_reward_model_is_not_rounded(make_score_model: Any) -> None:
    model = make_score_model()
    hold_frozen(model, "auto", "bf16")
    kinds = {name: p.dtype for name, p in model.named_parameters()}
    assert kinds["score.weight"] == torch.float32
    assert kinds["model.layers.0.mlp.up_proj.weight"] == torch.bfloat16
