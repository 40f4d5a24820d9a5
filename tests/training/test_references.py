"""Which reference a run gets when nobody names one, and what it costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from penchant.config.keys import load_config
from penchant.models.lora import add_lora
from penchant.models.reference import AdapterReference
from penchant.models.reference_copy import CopyReference, frozen_copy
from penchant.models.scoring import Scorer, ScoringPlan
from penchant.training.references import ReferenceMaker, measure_cost

MUCH, NOTHING = 1e12, 0.0


def planned(model: Any) -> Scorer:
    scorer = Scorer(model, 0)
    scorer.use(ScoringPlan(packed=True, fused_head=True, kernel="sdpa"))
    return scorer


@pytest.fixture
def chosen(make_model: Any) -> Any:
    """What `auto` comes to for a method and keys."""
    policy = planned(make_model())

    def choose(method: str, spare_bytes: float = MUCH, **keys: Any) -> str:
        config = load_config(method, {"model": "m", "data": "d", **keys})
        accelerator: Any = None
        return ReferenceMaker(config, policy, accelerator, "fp32", "m").choose(spare_bytes)

    return choose


def test_lora_needs_no_second_model(chosen: Any) -> None:
    assert chosen("dpo", NOTHING) == "adapter"
    assert chosen("kto", NOTHING, num_train_epochs=3) == "adapter"


def test_all_weights_are_compared_with_a_copy_where_each_record_is_met_once(chosen: Any) -> None:
    assert chosen("dpo", lora_r=0) == "copy"
    assert chosen("dpo", lora_r=0, num_train_epochs=2) == "cache"


def test_copy_that_would_not_fit_gives_way_to_a_cache(chosen: Any) -> None:
    assert chosen("dpo", NOTHING, lora_r=0) == "cache"


def test_cache_is_not_chosen_where_it_does_not_hold_what_is_asked_for(chosen: Any) -> None:
    assert chosen("kto", NOTHING, lora_r=0, num_train_epochs=2) == "copy"
    assert chosen("kto", lora_r=0, loss_type="apo_zero_unpaired", num_train_epochs=2) == "cache"
    assert chosen("dpo", NOTHING, lora_r=0, ld_alpha=0.5, num_train_epochs=2) == "copy"
    assert chosen("dpo", NOTHING, lora_r=0, ld_alpha=1.0, num_train_epochs=2) == "cache"


def test_another_model_is_not_the_switched_off_adapter(chosen: Any) -> None:
    assert chosen("dpo", reference_model="other") == "copy"
    assert chosen("dpo", reference_model="other", num_train_epochs=2) == "cache"


def test_reference_that_follows_the_policy_is_a_copy(chosen: Any) -> None:
    assert chosen("dpo", NOTHING, sync_ref_model=True, num_train_epochs=3) == "copy"
    assert chosen("dpo", NOTHING, sync_ref_model=True, lora_r=0) == "copy"


@pytest.mark.parametrize("method", ["orpo", "simpo", "cpo", "reward"])
@pytest.mark.parametrize("lora_r", [0, 8])
def test_method_without_a_reference_gets_none(chosen: Any, method: str, lora_r: int) -> None:
    assert chosen(method, lora_r=lora_r, num_train_epochs=2) == "none"


def test_named_kind_is_taken_as_it_is(chosen: Any) -> None:
    for kind in ("copy", "cache", "copy-8bit"):
        assert chosen("dpo", NOTHING, reference=kind) == kind


def test_switched_off_adapter_costs_nothing_and_a_copy_its_weights(
    make_model: Any, groups: Any
) -> None:
    lora = add_lora(make_model(), r=2, alpha=4, dropout=0.0, target_modules="all-linear")
    policy = planned(lora)
    free = measure_cost(AdapterReference(policy), policy, groups)
    assert (free.num_bytes, free.logprob_error) == (0, None)
    assert free.describe() == ", no further memory"
    copy = measure_cost(frozen_copy(policy), policy, groups)
    assert copy.num_bytes == 4 * make_model().num_parameters()
    assert copy.logprob_error is None


def test_quantised_copy_says_how_far_its_log_probs_are_off(
    make_model: Any, groups: Any, plain_logprobs: Any
) -> None:
    def rounded() -> Any:
        model = make_model()
        model.lm_head.weight.data.mul_(1.01)
        return model

    policy = planned(make_model()).train()
    cost = measure_cost(CopyReference(planned(rounded()), "copy-4bit"), policy, groups)
    with torch.no_grad():
        ours, theirs = plain_logprobs(make_model(), groups), plain_logprobs(rounded(), groups)
    expected = (ours - theirs).abs().mean().item()
    assert expected > 1e-3
    assert cost.logprob_error == pytest.approx(expected, rel=1e-3)
    assert f"log-probs off by {expected:.4f} nats per token" in cost.describe()
    assert policy.training
