"""What is told of a model by its configuration is what a run then does."""

from __future__ import annotations

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from penchant.models.path import describe_path
from penchant.models.scoring import Scorer
from penchant.models.selfcheck import plan_scoring

MIXED = {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
# Layers that attend to the keys that an index of their own picks.
INDEXED = {
    **{"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 12, "v_head_dim": 8},
    **{"qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "head_dim": 4, "first_k_dense_replace": 2},
    **{"index_n_heads": 2, "index_head_dim": 8, "index_topk": 4, "n_routed_experts": 4},
}
JAMBA = {
    **{"num_hidden_layers": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1},
    **{"mamba_d_state": 8, "mamba_d_conv": 3},
}
# Families that are padded, or run with repeated prompts, by what their layers are.
UNSHARED = {
    "jamba": JAMBA,
    "minimax": {
        **{"layer_types": ["linear_attention", "full_attention"], "num_local_experts": 2},
        **{"head_dim": 8, "block_size": 8},
    },
    "recurrent_gemma": {"num_hidden_layers": 3, "attention_window_size": 4, "lru_width": 32},
    "deepseek_v32": INDEXED,
    **{kind: {} for kind in ("stablelm", "doge", "xlstm")},
}
CASES = [
    ("gemma3_text", {**MIXED, "head_dim": 8}, "1 sliding_attention (window 3), 1 full_attention"),
    ("gpt_oss", {**MIXED, **EXPERTS, "head_dim": 8}, "sinks"),
    ("gemma2", {"attn_logit_softcapping": 2.0}, "capped at 2"),
    ("llama", {"attention_dropout": 0.1}, "set attention_dropout to 0"),
    ("gpt2", {"attn_pdrop": 0.1}, "set attn_pdrop to 0"),
    ("lfm2", {}, "1 Lfm2ShortConv: a row for each completion"),
    ("mamba", {}, "does not tell its mixers where the segments"),
    ("jamba", UNSHARED["jamba"], "does not tell its mixers where the segments"),
    ("minimax", UNSHARED["minimax"], "hook cannot serve: linear_attention"),
    ("recurrent_gemma", UNSHARED["recurrent_gemma"], "masks and positions of whole rows"),
    ("deepseek_v32", UNSHARED["deepseek_v32"], "hook cannot serve: indexed_attention"),
    ("stablelm", {}, "does not tell its attention where the segments"),
    ("doge", {}, "makes a mask of its own"),
    ("xlstm", {}, "a state in a way that is not known here"),
]


@pytest.mark.parametrize(("family", "changes", "words"), CASES)
def test_the_layout_that_is_told_is_the_one_that_is_chosen(
    family, changes, words, make_model, groups, tmp_path
):
    model = make_model(family, **changes)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(tmp_path)  # no weights
    lines = dict(describe_path(str(tmp_path)))
    assert any(words in line for line in lines.values()), lines
    assert lines["model"] == type(model).__name__
    plan = plan_scoring(Scorer(model, 0), groups, attention="auto", max_length=64)
    assert lines["layout"].startswith("packed") == plan.packed
    assert not lines["layout"].startswith("padded") or plan.layout == "padded"


def test_a_model_with_attention_of_its_own_is_told_apart(tmp_path):
    config = AutoConfig.for_model(
        "falcon", vocab_size=97, hidden_size=32, num_hidden_layers=1, num_attention_heads=4
    )
    config.architectures = [type(AutoModelForCausalLM.from_config(config)).__name__]
    config.save_pretrained(tmp_path)
    assert "attention interface" in dict(describe_path(str(tmp_path)))["layout"]
