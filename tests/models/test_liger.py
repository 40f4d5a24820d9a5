"""liger-kernel's head: when it is asked, and when what it gives is taken.

Its kernel needs a Hopper GPU; where the package is installed its torch fallback is run here.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from penchant.models import liger
from penchant.models.liger import PROBED, Tried, chosen, disagreement, liger_logprobs, serves
from penchant.models.logprobs import completion_logprobs
from penchant.models.vocabulary import LogitTransform

AS_IS = LogitTransform()


def made() -> tuple[Any, Any, Any]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(12, 16, generator=generator).requires_grad_()
    weight = torch.randn(1100, 16, generator=generator).requires_grad_()
    return hidden, weight, torch.randint(1100, (12,), generator=generator)


def test_a_head_on_the_cpu_is_never_offered() -> None:
    hidden, weight, _ = made()
    assert not serves(hidden, weight, None, AS_IS)


def tried(seconds: float = 1.0, **change: float) -> Tried:
    found = torch.full((2, 5), -1.0)
    found[0] += change.get("logprobs", 0.0)
    found[1] += change.get("entropies", 0.0)
    gradients = torch.ones(3, 3), torch.ones(4, 3) * (1 + change.get("weight", 0.0))
    return Tried(found, gradients, seconds)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"logprobs": 0.01}, "log-probs differ by 0.01 nats"),
        ({"logprobs": float("nan")}, "log-probs differ by nan"),
        ({"entropies": 0.1}, "entropies differ by 0.1 nats"),
        ({"weight": 0.05}, "gradient of the weight differs by 0.05"),
        ({"logprobs": 1e-3, "entropies": 1e-2, "weight": 1e-2}, ""),
    ],
)
def test_what_differs_by_more_than_rounding_is_not_taken(
    change: dict[str, float], why: str
) -> None:
    refusal = disagreement(tried(), tried(**change))
    assert (why in refusal) if why else not refusal


def test_of_two_ways_that_agree_the_quicker_is_taken_and_measured_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hidden, weight, targets = made()
    calls: list[int] = []

    def own(hidden: Any, weight: Any, targets: Any) -> Any:
        return completion_logprobs(hidden, weight, targets)

    def wrong(hidden: Any, weight: Any, targets: Any) -> Any:
        calls.append(len(hidden))
        return own(hidden, weight, targets) + 1.0

    liger._known.cache_clear()
    plain = partial(chosen, asked=(AS_IS, None))
    assert not plain(own, wrong, hidden, weight, targets)
    assert not plain(own, wrong, hidden, weight, targets)
    assert calls == [PROBED] * 2  # once to compile, once on the clock
    clock = iter([2.0, 1.0])
    monkeypatch.setattr(liger, "seconds_of", lambda call, device: (next(clock), call()))
    assert plain(own, own, hidden, weight[:1000], targets % 1000)
    clock = iter([1.0, 2.0])
    assert not plain(own, own, hidden, weight[:900], targets % 900)
    liger._known.cache_clear()


def test_what_agrees_on_log_probs_is_compared_again_before_it_gives_entropies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hidden, weight, targets = made()

    def own(hidden: Any, weight: Any, targets: Any, also: Any = None) -> Any:
        return completion_logprobs(hidden, weight, targets, also=also)

    def off(hidden: Any, weight: Any, targets: Any) -> Any:
        return own(hidden, weight, targets, also="entropy") + torch.tensor([[0.0], [1.0]])

    liger._known.cache_clear()
    clock = iter([2.0, 1.0] * 2)
    monkeypatch.setattr(liger, "seconds_of", lambda call, device: (next(clock), call()))
    inputs = hidden, weight, targets
    assert chosen(own, own, *inputs, asked=(AS_IS, None))
    both = partial(own, also="entropy")
    assert not chosen(both, off, *inputs, asked=(AS_IS, "entropy"))
    liger._known.cache_clear()


@pytest.mark.parametrize("also", [None, "entropy"])
@pytest.mark.parametrize(
    "transform", [AS_IS, LogitTransform(scale=0.5), LogitTransform(temperature=0.7)]
)
def test_its_values_and_gradients_are_those_of_the_walk(also: Any, transform: Any) -> None:
    pytest.importorskip("liger_kernel")
    hidden, weight, targets = made()
    ways = (
        partial(completion_logprobs, transform=transform, also=also),
        partial(liger_logprobs, transform=transform, also=also, dtype=torch.float32),
    )
    found = [way(hidden, weight, targets) for way in ways]
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
    sums = [one[0].sum() if also else one.sum() for one in found]
    for a, b in zip(*(torch.autograd.grad(s, (hidden, weight)) for s in sums), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
