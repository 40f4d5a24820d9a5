"""Weights that are rounded once: the products of autocast, and afterwards the weights of before."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from penchant.models.casting import cast_once
from penchant.models.lora import add_lora
from penchant.models.scoring import Scorer


@pytest.fixture(params=["lora", "full", "tied"])
def scorer(request: pytest.FixtureRequest, make_model: Any) -> Scorer:
    model = make_model("gemma3_text" if request.param == "tied" else "llama")
    if request.param == "lora":
        model = add_lora(model, r=2, alpha=4, dropout=0.0, target_modules="all-linear")
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
    return Scorer(model, 0).eval()


@torch.no_grad()
def test_passes_are_those_of_autocast_and_weights_are_what_they_were(scorer: Scorer) -> None:
    ids = torch.tensor([[3, 4, 5, 6]])
    before = {n: (p.data_ptr(), p.clone()) for n, p in scorer.named_parameters()}
    with torch.autocast("cpu", torch.bfloat16):
        expected = scorer.causal_model(input_ids=ids).logits
        with cast_once(scorer.causal_model):
            held = {n for n, p in scorer.named_parameters() if p.dtype == torch.bfloat16}
            assert torch.equal(scorer.causal_model(input_ids=ids).logits, expected)
    assert any("q_proj" in name for name in held)
    assert not any("norm" in name or "embed" in name for name in held)
    for name, parameter in scorer.named_parameters():
        address, values = before[name]
        assert parameter.data_ptr() == address and torch.equal(parameter, values)


def test_weights_return_after_an_exception_and_without_autocast_nothing_changes(
    scorer: Scorer,
) -> None:
    own = [p.data_ptr() for p in scorer.parameters()]
    with pytest.raises(RuntimeError), torch.autocast("cpu", torch.bfloat16):  # noqa: SIM117
        with cast_once(scorer.causal_model):
            raise RuntimeError("memory ran out")
    with cast_once(scorer.causal_model):
        assert {p.dtype for p in scorer.parameters()} == {torch.float32}
    assert [p.data_ptr() for p in scorer.parameters()] == own
