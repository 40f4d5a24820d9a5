"""The divergence from a teacher, by blocks of rows, is that of whole distributions."""

from __future__ import annotations

import math

import pytest
import torch

from penchant.models import divergence
from penchant.models.distribution import transformed
from penchant.models.divergence import Said, divergence_of_heads, divergence_of_logits
from penchant.models.vocabulary import AS_IS, LogitTransform

N, H, V = 11, 6, 40
BETAS = (0.0, 0.3, 0.5, 1.0)
CAPPED = LogitTransform(scale=0.7, softcap=3.0, temperature=1.3)


def plain(log_p, log_q, beta):
    """Eq. 1 of Agarwal et al. 2023 on log-probs `[N, V]`."""
    p, q = log_p.exp(), log_q.exp()
    if beta == 0:
        return (q * (log_q - log_p)).sum(1)
    if beta == 1:
        return (p * (log_p - log_q)).sum(1)
    log_m = ((1 - beta) * p + beta * q).log()
    return beta * (q * (log_q - log_m)).sum(1) + (1 - beta) * (p * (log_p - log_m)).sum(1)


def make(seed, size=V, width=H, transform=AS_IS, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    return Said(draw(N, width), 2 * draw(size, width), draw(size), transform)


@pytest.mark.parametrize("trained", ["hidden", "head"])
@pytest.mark.parametrize("transform", [AS_IS, CAPPED], ids=["as-is", "capped"])
@pytest.mark.parametrize("beta", BETAS)
def test_values_and_gradients_are_those_of_whole_distributions(
    beta, transform, trained, monkeypatch
):
    monkeypatch.setattr(divergence, "ELEMENTS_AT_ONCE", {"cpu": 4 * V})
    monkeypatch.setattr(divergence, "LEAST_ROWS", 1)  # blocks of four rows, the last of three
    policy, teacher = make(0, transform=transform), make(1, width=9)
    leaves = [policy.hidden] + ([policy.weight, policy.bias] if trained == "head" else [])
    for leaf in leaves:
        leaf.requires_grad_()
    targets = torch.arange(N) * 3
    found = divergence_of_heads(policy, teacher, targets, beta)

    def logprobs(said):
        logits = said.hidden @ said.weight.t() + said.bias
        return transformed(logits, said.transform).log_softmax(1)

    log_p, log_q = logprobs(policy), logprobs(teacher)
    expected = plain(log_p, log_q, beta)
    torch.testing.assert_close(found.divergence, expected)
    torch.testing.assert_close(found.kl, plain(log_p, log_q, 1.0).detach())
    torch.testing.assert_close(found.logprobs, log_p[torch.arange(N), targets].detach())
    torch.testing.assert_close(found.entropy, -(log_p.exp() * log_p).sum(1).detach())
    assert not any(one.requires_grad for one in (found.kl, found.logprobs, found.entropy))
    weights = torch.linspace(-1, 2, N, dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad((weights * found.divergence).sum(), leaves, retain_graph=True),
        torch.autograd.grad((weights * expected).sum(), leaves),
    )
    from_logits = divergence_of_logits(log_p.detach(), log_q, targets, beta)
    torch.testing.assert_close(from_logits, tuple(one.detach() for one in found))


def test_tokens_that_one_vocabulary_is_padded_with_are_left_out():
    policy, teacher = make(0), make(1)
    padded = teacher._replace(
        weight=torch.cat([teacher.weight, torch.full((7, H), 3.0).double()]),
        bias=torch.cat([teacher.bias, torch.zeros(7).double()]),
    )
    targets = torch.zeros(N, dtype=torch.long)
    for one, other in ((policy, padded), (padded, policy)):
        found = divergence_of_heads(one, other, targets, 0.5).divergence
        without = [teacher if said is padded else said for said in (one, other)]
        expected = divergence_of_heads(*without, targets, 0.5).divergence
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("beta", BETAS)
def test_a_teacher_that_is_the_policy_is_at_no_distance(beta):
    policy = make(0, dtype=torch.float32)
    policy.hidden.requires_grad_()
    found = divergence_of_heads(policy, make(0, dtype=torch.float32), torch.arange(N), beta)
    found.divergence.sum().backward()
    assert found.divergence.abs().max() < 1e-5
    assert policy.hidden.grad.abs().max() < 1e-5


def test_distributions_far_apart_stay_finite():
    """The mixture bounds the divergence: by log 2 for beta 0.5."""
    policy, teacher = make(0, dtype=torch.float32), make(1, dtype=torch.float32)
    far = policy._replace(hidden=100 * policy.hidden.clone()).hidden.requires_grad_()
    for beta in BETAS:
        found = divergence_of_heads(
            policy._replace(hidden=far), teacher, torch.arange(N), beta
        ).divergence
        (gradient,) = torch.autograd.grad(found.sum(), far)
        assert found.isfinite().all() and gradient.isfinite().all()
        if beta == 0.5:
            assert found.max() <= math.log(2) + 1e-5
