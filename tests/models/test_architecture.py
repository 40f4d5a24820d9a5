"""A model is loaded as what it says it is, and only what reads text of it is tuned and saved."""

from __future__ import annotations

import json
from typing import Any

import peft
import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

from penchant.core.errors import ModelError
from penchant.models.architecture import outside_text, text_backbone
from penchant.models.load import load_causal_model
from penchant.models.lora import add_lora
from penchant.models.rough_sizes import measure_model
from penchant.models.save import save_model
from penchant.models.score_model import load_score_model
from penchant.models.scoring import Scorer
from penchant.models.selfcheck import plan_scoring
from penchant.models.whole_modules import train_text

FP32 = torch.float32
IDS = torch.tensor([[1, 5, 6, 7, 20, 21, 22]])
TEXT = {
    **{"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
    **{"max_position_embeddings": 128, "initializer_range": 0.25, "tie_word_embeddings": False},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
VISION = {
    **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "image_size": 16, "patch_size": 8},
}
QWEN_VISION = {
    **{"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 8},
    **{"out_hidden_size": 32, "spatial_merge_size": 2, "temporal_patch_size": 2},
    **{"num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
}
ROTARY = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10_000.0}
QWEN_TOKENS = {
    **{"image_token_id": 90, "video_token_id": 91},
    **{"vision_start_token_id": 92, "vision_end_token_id": 93},
}
DELTA_NET = {
    **{"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_conv_kernel_dim": 3},
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4},
    "layer_types": ["linear_attention", "full_attention"],
}
MARKS = {"boi_token_index": 91, "eoi_token_index": 92}
# Of the names that people know, the type, and what differs.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Mistral Small 3": ("mistral3", {
        "text_config": {**TEXT, "model_type": "mistral"},
        "vision_config": {**VISION, "model_type": "pixtral"}, "image_token_index": 90,
    }),
    "Ministral 3": ("mistral3", {
        "text_config": {**TEXT, "model_type": "ministral3"},
        "vision_config": {**VISION, "model_type": "pixtral"}, "image_token_index": 90,
    }),
    "Qwen2.5-VL": ("qwen2_5_vl", {
        "text_config": {**TEXT, "rope_parameters": ROTARY},
        "vision_config": {**QWEN_VISION, "fullatt_block_indexes": [0]}, **QWEN_TOKENS,
    }),
    "Qwen3-VL": ("qwen3_vl", {
        "text_config": {**TEXT, "rope_parameters": ROTARY}, "vision_config": QWEN_VISION,
        **QWEN_TOKENS,
    }),
    "Qwen3.5": ("qwen3_5", {
        "text_config": {**TEXT, **DELTA_NET}, "vision_config": QWEN_VISION, **QWEN_TOKENS,
    }),
    "Gemma 3": ("gemma3", {
        "text_config": {**TEXT, "sliding_window": 4}, "vision_config": VISION,
        "image_token_index": 90, "mm_tokens_per_image": 4, **MARKS,
    }),
    "Gemma 4": ("gemma4", {
        "text_config": {
            **TEXT, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"],
            "global_head_dim": 8, "vocab_size_per_layer_input": 97,
            "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0,
        },
        "vision_config": {
            **VISION, "head_dim": 8, "num_key_value_heads": 2, "global_head_dim": 8,
            "position_embedding_size": 16,
        },
        "audio_config": None, "image_token_id": 90, "boi_token_id": 91, "eoi_token_id": 92,
    }),
    "Llama 4": ("llama4", {
        "text_config": {
            **TEXT, "intermediate_size_mlp": 48, "num_local_experts": 2,
            "attention_chunk_size": 4,
        },
        "vision_config": {
            **VISION, "vision_output_dim": 16, "projector_input_dim": 16,
            "projector_output_dim": 16,
        },
        "image_token_index": 90, **MARKS,
    }),
}  # fmt: skip


def saved(name: str, folder: Any) -> type:
    """Save a random model of a family; returns its class."""
    kind, settings = FAMILIES[name]
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(kind, **settings))
    model.save_pretrained(folder)
    return type(model)


@torch.no_grad()
def logits(model: Any) -> Any:
    return model.eval()(input_ids=IDS).logits


@pytest.mark.parametrize("name", FAMILIES)
def test_text_is_tuned_packed_and_saved_for_the_original_class(
    name, tmp_path, groups, tiny_model_dir, caplog
):
    original = saved(name, tmp_path / "base")
    base: Any = load_causal_model(str(tmp_path / "base"), dtype=FP32)
    assert type(base) is original
    assert measure_model(str(tmp_path / "base")).num_layers == 2
    outside = {id(p) for part in outside_text(base) for p in part.parameters()}
    trained = {id(p) for p in train_text(base).parameters() if p.requires_grad}
    assert outside and not outside & trained
    text = [*text_backbone(base).parameters(), *base.get_output_embeddings().parameters()]
    assert trained == {id(p) for p in text}

    model = add_lora(base, r=2, alpha=8, dropout=0.0, target_modules="all-linear")
    adapted = [n for n, p in model.named_parameters() if p.requires_grad]
    assert all("language_model" in n and "lora_" in n and "lm_head" not in n for n in adapted)
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.1)
    scorer = Scorer(model, 0)
    plan = plan_scoring(scorer, groups, attention="auto", max_length=64)
    assert (plan.packed, plan.fused_head, plan.reason) == (True, True, "")

    with scorer.plain_attention():
        expected = logits(model)
        tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
        for merged in (False, True):
            save_model(model, tokenizer, tmp_path / str(merged), merged=merged)
    untouched = original.from_pretrained(tmp_path / "base", dtype=FP32)
    assert (logits(untouched) - expected).abs().max() > 0.1
    reopened = peft.PeftModel.from_pretrained(untouched, tmp_path / "False")
    torch.testing.assert_close(logits(reopened), expected, rtol=1e-4, atol=1e-4)
    whole = original.from_pretrained(tmp_path / "True", dtype=FP32)
    torch.testing.assert_close(logits(whole), expected, rtol=1e-4, atol=1e-4)


def test_names_of_layers_mean_those_that_read_text(tmp_path):
    saved("Gemma 3", tmp_path)
    model = load_causal_model(str(tmp_path), dtype=FP32)
    adapted = add_lora(model, r=2, alpha=8, dropout=0.0, target_modules="q_proj,v_proj")
    names = {n for n, p in adapted.named_parameters() if p.requires_grad and "lora_A" in n}
    assert len(names) == 4 and all("language_model" in n for n in names)
    with pytest.raises(ModelError, match=r"no layer is called qkv; this model has down_proj"):
        add_lora(adapted.unload(), r=2, alpha=8, dropout=0.0, target_modules="q_proj,qkv")


def test_a_reward_model_keeps_to_its_family_or_says_which_could_be_used(tmp_path):
    saved("Gemma 3", tmp_path / "gemma")
    model = load_score_model(str(tmp_path / "gemma"), dtype=FP32)
    assert type(model).__name__ == "Gemma3ForSequenceClassification"
    causal = load_causal_model(str(tmp_path / "gemma"), dtype=FP32)
    for own, theirs in zip(
        text_backbone(model).parameters(), text_backbone(causal).parameters(), strict=True
    ):
        torch.testing.assert_close(own, theirs, rtol=0, atol=0)
    saved("Mistral Small 3", tmp_path / "mistral")
    message = r"no class for models of type mistral3 that scores texts .*ministral3? or mi"
    with pytest.raises(ModelError, match=message):
        load_score_model(str(tmp_path / "mistral"), dtype=FP32)


def test_an_architecture_that_transformers_does_not_know_is_one_line(tmp_path):
    for settings, message in (
        ({"model_type": "kraken", "architectures": ["KrakenForCausalLM"]}, "kraken"),
        ({"model_type": "vit", "architectures": ["ViTModel"]}, "type vit that generates text"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(settings))
        with pytest.raises(ModelError, match=message) as caught:
            load_causal_model(str(tmp_path), dtype=FP32)
        assert str(tmp_path) in str(caught.value)


def test_a_model_without_its_head_is_refused_instead_of_made_up(make_model, tmp_path):
    make_model("llama").model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"lacks 1 of the weights of a LlamaForCausalLM \(lm_h"):
        load_causal_model(str(tmp_path), dtype=FP32)
    make_model("llama", tie_word_embeddings=True).model.save_pretrained(tmp_path)
    assert isinstance(load_causal_model(str(tmp_path), dtype=FP32), transformers.LlamaForCausalLM)
