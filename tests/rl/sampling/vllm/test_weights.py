"""What vLLM is handed: an adapter that it applies as PEFT does, else what both make together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from penchant.core.errors import ModelError
from penchant.models.lora import add_lora
from penchant.models.policy import PolicyScorer
from penchant.rl.sampling.vllm.weights import HandedWeights

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
# Weights that no linear layer holds.
EXPERTS = {
    "target_modules": "q_proj",
    "target_parameters": "mlp.experts.gate_up_proj,mlp.experts.down_proj",
}
OF_EXPERTS = {
    **{"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    **{"head_dim": 8, "decoder_sparse_step": 1},
}


def handed(model: Any, **keys: Any) -> HandedWeights:
    """Of a policy after training has changed all that it may."""
    torch.manual_seed(0)
    usual = {"r": 4, "alpha": 8.0, "dropout": 0.0, "target_modules": "q_proj,v_proj"}
    adapted = add_lora(model, **{**usual, **keys})
    generator = torch.Generator().manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return HandedWeights(PolicyScorer(adapted.eval(), 0), "owner/base")


@pytest.mark.parametrize(
    ("keys", "rank"),
    [
        ({"r": 24}, 32),
        ({"settings": {"use_rslora": True}}, 8),
        # As EVA gives layers ranks of their own at the scale of all.
        ({"settings": {"rank_pattern": {"q_proj": 12}, "alpha_pattern": {"q_proj": 24}}}, 16),
    ],
)
def test_matrices_at_one_scale_are_an_adapter_whose_rank_is_rounded_up(
    keys: Any, rank: int, make_model: Any
) -> None:
    assert handed(make_model(), **keys).rank == rank


@pytest.mark.parametrize(
    ("family", "changes", "keys"),
    [
        ("llama", {}, {"settings": {"use_dora": True}}),
        ("llama", {}, {"settings": {"rank_pattern": {"q_proj": 2}}}),
        ("llama", {}, {"settings": {"alpha_pattern": {"v_proj": 2}}}),
        ("llama", {}, {"settings": {"modules_to_save": ["embed_tokens", "lm_head"]}}),
        ("llama", {}, {"settings": {"trainable_token_indices": [5, 96]}}),
        (
            "llama",
            {"tie_word_embeddings": True},
            {"settings": {"trainable_token_indices": [5, 96]}},
        ),
        ("phi", {}, {"settings": {"bias": "all"}}),
        ("phi", {}, {"settings": {"lora_bias": True}}),
        ("qwen3_moe", OF_EXPERTS, EXPERTS),
        ("qwen3_moe", OF_EXPERTS, {"target_modules": "all-linear"}),
        ("llama", {}, {"r": 600, "alpha": 600.0}),
    ],
    ids=str,
)
def test_what_vllm_has_no_adapter_for_is_merged(
    family: str, changes: Any, keys: Any, make_model: Any
) -> None:
    start = make_model(family, **changes)(IDS).logits
    weights = handed(make_model(family, **changes), **keys)
    assert weights.rank is None
    folder = weights.write()
    assert not (folder / "adapter_config.json").exists()
    merged, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        expected = weights.policy.model(input_ids=IDS).logits
        found = merged.eval()(IDS).logits
    assert (expected - start).abs().max() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_what_cannot_be_merged_is_refused(make_model: Any) -> None:
    weights = handed(make_model(), settings={"layer_replication": [[0, 2], [1, 2]]})
    assert weights.rank is None
    with pytest.raises(ModelError, match="drop layer_replication"):
        weights.write()
