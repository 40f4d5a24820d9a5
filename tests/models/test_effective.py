"""The weights of a policy with its adapter added in are those that PEFT's own merge makes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from peft.tuners.lora import ParamWrapper

from penchant.core.errors import ModelError
from penchant.models.effective import effective_weights, saved_buffers
from penchant.models.lora import add_lora
from penchant.models.scoring import Scorer

EXPERTS = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        **{"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
        **{"head_dim": 8, "decoder_sparse_step": 1},
    },
}
PARAMETERS = "mlp.experts.gate_up_proj,mlp.experts.down_proj"
TIED = {"tie_word_embeddings": True}
ADAPTERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "plain": ("llama", {}, {}),
    "head": ("llama", {}, {"target_modules": "q_proj,lm_head"}),
    "embedding": ("llama", {}, {"target_modules": "q_proj,embed_tokens"}),
    "conv1d": ("gpt2", {}, {}),
    "dora": ("llama", {}, {"settings": {"use_dora": True}}),
    "patterns": (
        "llama",
        {},
        {"settings": {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"v_proj": 3}}},
    ),
    "rslora": ("llama", {}, {"settings": {"use_rslora": True}}),
    "bias": ("phi", {}, {"settings": {"bias": "all"}}),
    "lora-bias": ("phi", {}, {"settings": {"lora_bias": True}}),
    "whole": ("llama", {}, {"settings": {"modules_to_save": ["embed_tokens", "lm_head"]}}),
    "tokens": ("llama", {}, {"settings": {"trainable_token_indices": [5, 9, 96]}}),
    "tied-tokens": ("llama", TIED, {"settings": {"trainable_token_indices": [5, 9, 96]}}),
    "experts": (
        "qwen3_moe",
        EXPERTS["qwen3_moe"],
        {"target_modules": "q_proj", "target_parameters": PARAMETERS},
    ),
    "all-of-qwen3-moe": ("qwen3_moe", EXPERTS["qwen3_moe"], {}),
    "all-of-mixtral": ("mixtral", EXPERTS["mixtral"], {}),
}


def adapted(make_model: Any, name: str) -> Any:
    """The model of an adapter after training has changed all that it may."""
    family, changes, keys = ADAPTERS[name]
    torch.manual_seed(0)
    usual = {"r": 2, "alpha": 8.0, "dropout": 0.0, "target_modules": "all-linear"}
    model = add_lora(make_model(family, **changes), **{**usual, **keys})
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.mark.parametrize("name", ADAPTERS)
def test_weights_are_those_of_the_merged_model(name: str, make_model: Any) -> None:
    model = adapted(make_model, name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = {key: value.clone() for key, value in effective_weights(Scorer(model, 0))}
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    merged = dict(model.merge_and_unload().named_parameters())
    assert found.keys() == merged.keys()
    family, changes, _ = ADAPTERS[name]
    base = dict(make_model(family, **changes).named_parameters())
    assert any(not torch.equal(weight, base[key]) for key, weight in merged.items())
    for key, weight in merged.items():
        assert not found[key].requires_grad
        torch.testing.assert_close(found[key], weight, rtol=1e-5, atol=1e-6)


def test_experts_have_a_layer_of_the_adapter_around_another(make_model: Any) -> None:
    """What the test above relies on."""
    wrappers = [m for m in adapted(make_model, "experts").modules() if isinstance(m, ParamWrapper)]
    assert any(isinstance(one.base_layer, ParamWrapper) for one in wrappers)


def test_what_is_added_to_a_half_precision_base_is_not_rounded(make_model: Any) -> None:
    for settings in ({}, {"use_dora": True}):
        model = add_lora(make_model(dtype="bfloat16"), r=2, alpha=4, dropout=0.0,
                         target_modules="q_proj", settings=settings)  # fmt: skip
        weights = dict(effective_weights(Scorer(model, 0)))
        assert weights["model.layers.0.self_attn.q_proj.weight"].dtype == torch.float32
        assert weights["model.norm.weight"].dtype == torch.bfloat16


def test_other_adapters_than_the_active_one_are_left_out(make_model: Any) -> None:
    model = adapted(make_model, "plain")
    expected = dict(effective_weights(Scorer(model, 0)))
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    found = dict(effective_weights(Scorer(model, 0)))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_buffers_have_the_names_that_the_files_of_the_base_give_them(make_model: Any) -> None:
    model = make_model()
    layer = model.model.layers[0].self_attn.q_proj
    layer.register_buffer("kept", torch.ones(2))
    layer.register_buffer("made_anew", torch.ones(2), persistent=False)
    lora = add_lora(model, r=2, alpha=4, dropout=0.0, target_modules="q_proj")
    (name,) = saved_buffers(Scorer(lora, 0))
    assert name == "model.layers.0.self_attn.q_proj.kept"


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({}, {"lora_bias": True}, r"q_proj \(.*\) has no place in the model's weights; leave"),
        ({}, {"layer_replication": [[0, 2], [1, 2]]}, "drop layer_replication"),
        (TIED, {"modules_to_save": ["lm_head"]}, "share their weights.*out of.*modules_to_save"),
    ],
    ids=["bias", "layers", "head"],
)
def test_what_the_weights_cannot_take_up_is_refused(
    changes: Any, settings: Any, message: str, make_model: Any
) -> None:
    model = add_lora(make_model(**changes), r=2, alpha=4, dropout=0.0, target_modules="q_proj",
                     settings=settings)  # fmt: skip
    with pytest.raises(ModelError, match=message):
        list(effective_weights(Scorer(model, 0)))


def test_an_adapter_beside_the_weights_is_refused(make_model: Any) -> None:
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    model = get_peft_model(make_model(), config)
    with pytest.raises(ModelError, match="PREFIX_TUNING, which cannot be added to the weights"):
        list(effective_weights(Scorer(model, 0)))
