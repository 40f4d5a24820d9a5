"""The faster product: what torch's own linear layer gives, in both directions, and only there."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from penchant.models import products
from penchant.models.linear import FastLinear, product, use_fast_linear

pytestmark = pytest.mark.skipif(not products.has_onednn(), reason="no oneDNN on this processor")


@pytest.fixture(params=[products.onednn, products.weights_first])
def fast_calls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Products that took another way than torch's, whatever the machine's probe says."""
    calls: list[Any] = []

    def counted(x: torch.Tensor, *others: Any) -> torch.Tensor:
        calls.append(x.shape)
        return request.param(x, *others)

    monkeypatch.setattr(products, "faster_way", lambda rows, *, vocabulary: counted)
    return calls


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("shape", [(7,), (1, 9), (2, 3, 1)])
def test_outputs_and_gradients_are_those_of_torch(
    bias: bool, trained: bool, shape: tuple[int, ...], fast_calls: list[Any]
) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(256, 300, bias=bias).requires_grad_(trained)
    model = nn.Sequential(copy.deepcopy(plain))
    use_fast_linear(model)
    assert isinstance(model[0], FastLinear)
    x = torch.randn(*shape, 256)
    found = []
    for layer in (plain, model[0]):
        own = x.clone().requires_grad_()
        out = layer(own)
        out.square().sum().backward()
        found.append([out, own.grad, *(p.grad for p in layer.parameters() if trained)])
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert len(fast_calls) == 2  # forward, and the gradient of x


def test_a_transposed_view_multiplies_from_the_other_side(fast_calls: list[Any]) -> None:
    weight, grad = torch.randn(300, 256), torch.randn(5, 300)
    torch.testing.assert_close(product(grad, weight.t()), grad @ weight, rtol=1e-4, atol=1e-4)
    strided = torch.randn(300, 5).t()
    torch.testing.assert_close(product(strided, weight.t()), strided @ weight, rtol=1e-4, atol=1e-4)
    assert len(fast_calls) == 2


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (torch.randn(4, 8), torch.randn(6, 8)),
        (torch.randn(4, 256).bfloat16(), torch.randn(300, 256).bfloat16()),
        (torch.randn(4, 256).double(), torch.randn(300, 256).double()),
        (torch.randn(0, 256), torch.randn(300, 256)),
    ],
    ids=["small", "bf16", "fp64", "empty"],
)
def test_what_gains_nothing_takes_the_usual_way(
    x: torch.Tensor, weight: torch.Tensor, fast_calls: list[Any]
) -> None:
    torch.testing.assert_close(product(x, weight), x @ weight.t())
    assert not fast_calls


def test_autocast_decides_the_dtype(fast_calls: list[Any]) -> None:
    model = nn.Sequential(nn.Linear(256, 300))
    use_fast_linear(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(torch.randn(4, 256)).dtype == torch.bfloat16
    assert not fast_calls


def test_only_plain_layers_are_exchanged_and_their_names_stay() -> None:
    class Special(nn.Linear):
        pass

    model = nn.ModuleDict({"plain": nn.Linear(4, 4), "special": Special(4, 4)})
    names = set(model.state_dict())
    use_fast_linear(model)
    assert type(model["plain"]) is FastLinear
    assert type(model["special"]) is Special
    assert set(model.state_dict()) == names
