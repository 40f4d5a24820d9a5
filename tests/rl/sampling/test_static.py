"""Sampling with a cache of a fixed size: the same answers as with one that grows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from penchant.core.errors import ConfigError
from penchant.models.lora import add_lora
from penchant.models.policy import PolicyScorer
from penchant.models.scoring import ScoringPlan
from penchant.rl.sampling.base import Draw, Sampling
from penchant.rl.sampling.sampler import CachedSampler
from penchant.rl.sampling.static import FixedRows, StaticSampler

PROMPTS = [[40, 41, 42, 43, 44], [50, 51], [60], [70, 71, 72, 73, 74, 75, 76, 77]]
ENDS = list(range(2, 24))


def policy_of(model: Any) -> PolicyScorer:
    head = model.get_output_embeddings().weight
    if head is not model.get_input_embeddings().weight:
        with torch.no_grad():  # sharper than random weights give
            head.mul_(12)
    scorer = PolicyScorer(
        add_lora(model, r=2, alpha=4, dropout=0.5, target_modules="all-linear"), 0
    )
    with torch.no_grad():
        for name, parameter in scorer.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    scorer.use(ScoringPlan(packed=True, fused_head=True, kernel="sdpa"))
    return scorer


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_answers_are_those_of_the_growing_cache_token_for_token(
    family: str, make_model: Any
) -> None:
    policy = policy_of(make_model(family))
    draw = Draw(Sampling(16, temperature=1.0, top_k=40), seed=1, n=3)
    grown = CachedSampler(policy, ENDS, 5).sample(PROMPTS, draw)
    fixed = StaticSampler(policy, ENDS, 5).sample(PROMPTS, draw)
    assert len({len(c.ids) for own in grown for c in own}) > 3  # rows left the batch
    for own, other in zip(grown, fixed, strict=True):
        assert [(c.ids, c.ended) for c in own] == [(c.ids, c.ended) for c in other]
        for a, b in zip(own, other, strict=True):
            both = torch.tensor(a.logprobs), torch.tensor(b.logprobs)
            torch.testing.assert_close(*both, rtol=1e-4, atol=1e-4)


def test_tensors_of_a_pass_stay_where_they_are_until_rows_leave(
    make_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph reads and writes at the addresses that it was captured with."""
    policy, seen = policy_of(make_model("llama")), []
    own = FixedRows._pass

    def noted(self: FixedRows) -> None:
        own(self)
        held = [self._tokens, self.mask, self.positions, self._at]
        held += [buffer for layer in self.cache.layers for buffer in layer._buffers]
        seen.append((len(self._tokens), tuple(one.data_ptr() for one in held)))

    monkeypatch.setattr(FixedRows, "_pass", noted)
    StaticSampler(policy, ENDS, 12).sample(PROMPTS, Draw(Sampling(16), seed=1, n=3))
    assert len(seen) == 15
    assert len({rows for rows, _ in seen}) == len(set(seen)) > 1


@pytest.mark.parametrize(
    ("family", "more", "why"),
    [
        ("mistral", {"sliding_window": 4}, "full attention in every layer.*sliding_attention"),
        ("qwen3_5_text", {}, "full attention in every layer"),
    ],
)
def test_models_whose_cache_has_no_fixed_size_are_refused(
    family: str, more: dict[str, Any], why: str, make_model: Any
) -> None:
    scorer = PolicyScorer(make_model(family, **more), 0)
    with pytest.raises(ConfigError, match=f"generation: static needs {why}.*set generation"):
        StaticSampler(scorer, [2]).sample(PROMPTS, Draw(Sampling(4), seed=0))
