"""Every family of attention: a packed row gives what transformers' eager attention gives.

Each completion is run apart behind its own copy of the prompt, by the model's own code.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from penchant.data.batch import Group
from penchant.models.scoring import Scorer, ScoringPlan

WINDOW = 4
"""Shorter than some prompts and longer than others; it ends inside of prompts and completions."""

MIXED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "cohere2": {**MIXED, "head_dim": 8, "tie_word_embeddings": True},
    "deepseek_v3": {
        **EXPERTS,
        **{"q_lora_rank": 16, "kv_lora_rank": 12, "v_head_dim": 6, "num_key_value_heads": 4},
        **{"qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "n_group": 2, "topk_group": 1},
        **{"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1},
    },
    "exaone4": {**MIXED, "head_dim": 8},
    "gemma2": {**MIXED, "head_dim": 8, "attn_logit_softcapping": 2.0},
    "gemma3_text": {**MIXED, "head_dim": 8, "tie_word_embeddings": True},
    "gemma4_text": {
        **{**MIXED, "head_dim": 8, "global_head_dim": 16, "num_global_key_value_heads": 1},
        **{"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 97},
        **{"num_kv_shared_layers": 0, "tie_word_embeddings": True},
    },
    "gpt_oss": {**MIXED, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "llama4_text": {
        **{"head_dim": 8, "attention_chunk_size": WINDOW, "no_rope_layers": [1, 0]},
        **{"intermediate_size_mlp": 48, "num_local_experts": 2, "num_experts_per_tok": 1},
        # Scores of layers without rotary embeddings grow with the position, from here on.
        **{"floor_scale": 3, "attn_scale": 0.5},
    },
    "ministral": {**MIXED, "head_dim": 8},
    "mistral": {"sliding_window": WINDOW},
    "mixtral": {"sliding_window": WINDOW, "num_local_experts": 2},
    "olmo3": MIXED,
    "phi3": {"sliding_window": WINDOW},
    "phimoe": {"sliding_window": WINDOW, "num_local_experts": 2},
    "qwen2": {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {"head_dim": 8},
    "smollm3": {},
    "vaultgemma": {**MIXED, "head_dim": 8},
}
# One, two and four completions; a prompt of one token; windows that end in a prompt (the first),
# in a completion (the second), and where the two meet.
GROUPS = [
    Group([1, *range(5, 13)], (range(13, 20),)),
    Group([1], (range(20, 26), [26, 2])),
    Group([1, 27, 28, 29], ([30], [31, 32], range(33, 39), [39, 40, 41, 2])),
]


def both(make_model: Any, family: str, dtype: str, **changes: Any) -> list[tuple[Any, Any]]:
    """Log-probs, and the gradients of a loss of them by parameter: packed, and run apart."""
    results = []
    for packed in (True, False):
        settings = {**FAMILIES[family], "attn_implementation": "eager", **changes}
        # Grouped products of experts are in single precision.
        settings["experts_implementation"] = "eager"
        model = make_model(family, dtype=dtype, **settings)
        for name, parameter in model.named_parameters():
            if name.endswith("sinks"):
                torch.nn.init.normal_(parameter.data, generator=torch.Generator().manual_seed(1))
        scorer = Scorer(model, 0)
        plan = ScoringPlan(packed=packed, fused_head=True, kernel="sdpa")
        scorer.use(plan)
        if packed:
            logprobs = scorer(scorer.batch(GROUPS))
        else:
            apart = [Group(group.prompt, (c,)) for group in GROUPS for c in group.completions]
            logprobs = torch.cat([scorer(scorer.batch([one])) for one in apart])
        factors = torch.linspace(-1, 1, len(logprobs), dtype=logprobs.dtype)
        trained = dict(model.named_parameters())
        gradients = torch.autograd.grad(
            (factors * logprobs).sum(), list(trained.values()), allow_unused=True
        )
        results.append((logprobs.detach(), dict(zip(trained, gradients, strict=True))))
    return results


def assert_packed_is_plain(make_model: Any, family: str, dtype: str, **changes: Any) -> None:
    (packed, ours), (apart, theirs) = both(make_model, family, dtype, **changes)
    # Experts' products and rotary embeddings may be in fp32 inside of a model in fp64.
    tolerance = {"float64": 1e-5, "float32": 1e-4}[dtype]
    torch.testing.assert_close(packed, apart, rtol=0, atol=tolerance)
    for name, gradient in theirs.items():
        if gradient is None:
            assert ours[name] is None or not ours[name].any(), name
        else:
            size = gradient.abs().max().clamp(min=1)
            torch.testing.assert_close(
                ours[name] / size, gradient / size, rtol=0, atol=10 * tolerance, msg=name
            )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_row_gives_what_the_family_gives_of_each_completion(
    make_model: Any, family: str
) -> None:
    assert_packed_is_plain(make_model, family, "float64")


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "gpt_oss", "deepseek_v3"])
def test_likewise_in_fp32(make_model: Any, family: str) -> None:
    assert_packed_is_plain(make_model, family, "float32")


@pytest.mark.parametrize("window", [1, 2, 3, 5, 9, 16])
def test_windows_of_every_size_against_prompt_and_completion(make_model: Any, window: int) -> None:
    assert_packed_is_plain(make_model, "gemma3_text", "float64", sliding_window=window)


def test_layers_that_share_keys_and_values_are_served(make_model: Any) -> None:
    """Gemma 4 E2B and E4B: late layers attend over an earlier layer's keys."""
    kinds = ["sliding_attention", "full_attention"] * 2
    changes = {"num_hidden_layers": 4, "num_kv_shared_layers": 2, "layer_types": kinds}
    assert_packed_is_plain(make_model, "gemma4_text", "float64", **changes)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_and_merged_weights_open_in_transformers(
    family: str, make_model: Any, assert_saved_opens: Any
) -> None:
    assert_saved_opens(make_model(family, **FAMILIES[family]))
