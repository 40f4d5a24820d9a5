"""The adapter's own linear layer against PEFT's, whose names and files it keeps."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from penchant.core.errors import ModelError
from penchant.models import lora, merging
from penchant.models.linear import plain_layers
from penchant.models.lora import FusedLoraLinear, add_lora
from penchant.models.merging import merge_adapter
from penchant.models.quantised import require_numbers

IDS = torch.tensor([[1, 5, 6, 7], [8, 9, 10, 11]])


def ours(model, **changes):
    settings = {"r": 3, "alpha": 6.0, "dropout": 0.0, "target_modules": "all-linear"}
    return set_adapter(add_lora(model, **{**settings, **changes}))


def pefts(model, **changes):
    settings = {"r": 3, "lora_alpha": 6.0, "target_modules": "all-linear"}
    config = LoraConfig(**{**settings, **changes}, task_type="CAUSAL_LM")
    return set_adapter(get_peft_model(model, config))


def set_adapter(model):
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(0.2 * noise)
    return model


@pytest.mark.parametrize("family", ["llama", "phi", "gpt2"])
def test_values_and_gradients_equal_pefts(family, make_model):
    found, expected = ours(make_model(family)), pefts(make_model(family))
    logits = found(input_ids=IDS).logits
    torch.testing.assert_close(logits, expected(input_ids=IDS).logits, rtol=1e-4, atol=1e-4)
    factors = torch.linspace(-1, 1, logits.numel()).view_as(logits)
    (logits * factors).sum().backward()
    (expected(input_ids=IDS).logits * factors).sum().backward()
    theirs = dict(expected.named_parameters())
    trained = [name for name, p in found.named_parameters() if p.requires_grad]
    assert trained == [name for name, p in theirs.items() if p.requires_grad]
    for name, parameter in found.named_parameters():
        if parameter.requires_grad:
            error = (parameter.grad - theirs[name].grad).norm() / theirs[name].grad.norm()
            assert error < 1e-4, name


def test_a_fresh_adapter_changes_nothing_and_its_weights_are_fp32(make_model):
    for dtype in ("float32", "bfloat16"):
        expected = make_model(dtype=dtype)(input_ids=IDS).logits
        model = add_lora(
            make_model(dtype=dtype), r=2, alpha=4, dropout=0.0, target_modules="all-linear"
        )
        adapter = [p for p in model.parameters() if p.requires_grad]
        assert {p.dtype for p in adapter} == {torch.float32}
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            found = model(input_ids=IDS).logits
        torch.testing.assert_close(found.float(), expected.float(), rtol=0.02, atol=0.05)


def test_bf16_base_under_autocast_trains_an_fp32_adapter_as_peft_does(make_model):
    grads = []
    for wrap in (ours, pefts):
        model = wrap(make_model(dtype="bfloat16"))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=IDS).logits
        logits.float().logsumexp(-1).sum().backward()
        parts = [p.grad.flatten() for p in model.parameters() if p.requires_grad]
        assert {part.dtype for part in parts} == {torch.float32}
        grads.append(torch.cat(parts))
    # Each rounds to 8 bits in another order.
    assert torch.nn.functional.cosine_similarity(*grads, dim=0) > 0.99


def test_the_switched_off_adapter_is_the_base(make_model):
    model = ours(make_model())
    expected = make_model()(input_ids=IDS).logits
    assert (model(input_ids=IDS).logits - expected).abs().max() > 0.1
    with model.disable_adapter():
        torch.testing.assert_close(model(input_ids=IDS).logits, expected)


def test_merging_folds_the_adapter_into_plain_weights(make_model):
    model = ours(make_model())
    expected = model(input_ids=IDS).logits
    merged = model.merge_and_unload()
    assert not any("lora" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(merged(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_saved_adapter_is_read_by_peft(make_model, tmp_path):
    model = ours(make_model())
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_model(), tmp_path)
    torch.testing.assert_close(
        loaded(input_ids=IDS).logits, model(input_ids=IDS).logits, rtol=1e-4, atol=1e-4
    )


def test_dropout_stands_in_front_of_the_adapter_in_training_alone(make_model):
    model = ours(make_model(), dropout=0.5)
    torch.testing.assert_close(
        model.eval()(input_ids=IDS).logits,
        ours(make_model())(input_ids=IDS).logits,
        rtol=1e-4,
        atol=1e-4,
    )
    model.train()
    assert not torch.equal(model(input_ids=IDS).logits, model(input_ids=IDS).logits)


def test_named_layers_alone_are_adapted_and_spaces_do_not_matter(make_model):
    model = ours(make_model(), target_modules="q_proj, v_proj")
    adapted = {name.split(".")[-4] for name, p in model.named_parameters() if p.requires_grad}
    assert adapted == {"q_proj", "v_proj"}


@pytest.mark.parametrize("family", ["llama4_text", "falcon"])
def test_all_linear_knows_which_of_a_models_own_layers_are_linear(family, make_model):
    """Falcon's only multiply in another order; Llama 4's router is one in name alone."""
    settings = {"num_local_experts": 2} if family == "llama4_text" else {"num_hidden_layers": 1}
    model = ours(make_model(family, **settings))
    assert torch.isfinite(model(input_ids=IDS).logits).all()
    adapted = {name for name, p in model.named_parameters() if p.requires_grad}
    assert adapted and not any("router" in name for name in adapted)


@pytest.mark.parametrize("family", ["falcon_h1", "granitemoehybrid", "mamba", "qwen3_5_text"])
def test_every_adapter_of_all_linear_is_read(family, make_model):
    """Mamba's mixers hand some weights to kernels, past the layers that hold them."""
    model = ours(make_model(family)).train()
    model(input_ids=IDS).logits.square().mean().backward()
    trained = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert any("in_proj" in name for name in trained)
    assert all(gradient is not None and gradient.any() for gradient in trained.values())
    if family != "qwen3_5_text":
        assert not any("mixer.out_proj" in name or "mamba.out_proj" in name for name in trained)
        message = "out_proj of this model's Mamba layers would be adapted for nothing"
        with pytest.raises(ModelError, match=message):
            ours(make_model(family), target_modules="in_proj,out_proj")


def test_all_linear_leaves_the_head_alone(make_model):
    model = ours(make_model())
    assert not any("lm_head" in name for name, p in model.named_parameters() if p.requires_grad)


def test_a_layer_name_that_does_not_exist_is_the_users_mistake(make_model):
    for names in ("nonsense", "q_proj, nonsense"):
        with pytest.raises(ModelError, match=r"lora_target_modules.*nonsense"):
            ours(make_model(), target_modules=names)


def test_a_head_that_is_trained_whole_is_fp32_beside_a_half_precision_base(make_score_model):
    """Its updates are too small for bf16, and the model must still run as transformers runs it."""
    settings = {"r": 2, "alpha": 4, "dropout": 0.0, "target_modules": "q_proj"}
    model = add_lora(make_score_model(dtype="bfloat16"), task_type="SEQ_CLS", **settings)
    trained = {p.dtype for p in model.parameters() if p.requires_grad}
    frozen = {p.dtype for p in model.parameters() if not p.requires_grad}
    assert (trained, frozen) == ({torch.float32}, {torch.bfloat16})
    expected = make_score_model(dtype="bfloat16")(input_ids=IDS).logits
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            found = model(input_ids=IDS).logits
        torch.testing.assert_close(found.float(), expected.float(), rtol=0, atol=0.05)


class CodedLinear(nn.Linear):
    """A quantised layer as libraries write them: a subclass whose weight holds codes."""

    def __init__(self, plain):
        super().__init__(plain.in_features, plain.out_features, bias=False)
        self.step = plain.weight.detach().abs().max() / 127
        codes = (plain.weight.detach() / self.step).round().to(torch.int8)
        self.weight = nn.Parameter(codes, requires_grad=False)

    def forward(self, x):
        return nn.functional.linear(x, self.weight * self.step)


def test_a_fresh_adapter_on_quantised_layers_lets_them_multiply(make_model):
    model = make_model("llama")
    for layer in model.model.layers:
        layer.self_attn.q_proj = CodedLinear(layer.self_attn.q_proj)
    expected = model(input_ids=IDS).logits.detach()
    adapted = add_lora(model, r=2, alpha=4, dropout=0.0, target_modules="q_proj,v_proj")
    assert not isinstance(
        adapted.base_model.model.model.layers[0].self_attn.q_proj, FusedLoraLinear
    )
    assert isinstance(adapted.base_model.model.model.layers[0].self_attn.v_proj, FusedLoraLinear)
    torch.testing.assert_close(adapted(input_ids=IDS).logits.detach(), expected)


def test_plain_layers_compute_as_peft_wrote_them(make_model, monkeypatch):
    model = ours(make_model("llama"))
    monkeypatch.setattr(lora, "_LoraProduct", None)
    with plain_layers():
        expected = pefts(make_model("llama"))(input_ids=IDS).logits
        torch.testing.assert_close(model(input_ids=IDS).logits, expected)
    with pytest.raises(AttributeError):
        model(input_ids=IDS)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "q_proj,lm_head"])
def test_merging_a_change_of_one_tied_layer_leaves_the_other(target, make_model, tmp_path):
    model = ours(make_model("llama", tie_word_embeddings=True), target_modules=target).eval()
    if "embed" in target:
        names = model.base_model.model.model.embed_tokens
        for number, values in enumerate((names.lora_embedding_A, names.lora_embedding_B)):
            values["default"].data.normal_(generator=torch.Generator().manual_seed(number))
    expected = model(input_ids=IDS).logits.detach()
    merge_adapter(model).save_pretrained(tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(saved(input_ids=IDS).logits.detach(), expected)


def test_a_merge_that_says_something_else_is_refused(make_model, monkeypatch):
    monkeypatch.setattr(merging, "untie", lambda model: None)
    model = ours(make_model("llama", tie_word_embeddings=True), target_modules="lm_head")
    with pytest.raises(ModelError, match="differ from the adapter's"):
        merge_adapter(model)


def test_a_merge_is_compared_on_the_records_of_the_run(make_model, monkeypatch):
    """Tokens from the whole vocabulary may not be the ones on which a merge goes wrong."""
    model = ours(make_model("llama", dtype="float32")).eval()
    unload = type(model.base_model).merge_and_unload

    def wrong_for_one_token(self):
        merged = unload(self)
        merged.get_input_embeddings().weight.data[IDS[0, 0]] += 5
        return merged

    token = IDS[0, 0].item()
    spread = {number * 97 // merging.NUM_COMPARED for number in range(merging.NUM_COMPARED)}
    assert token not in spread
    monkeypatch.setattr(type(model.base_model), "merge_and_unload", wrong_for_one_token)
    with pytest.raises(ModelError, match="differ from the adapter's"):
        merge_adapter(model, IDS.tolist())


def test_quantised_weights_are_not_trained_themselves(make_model):
    model = make_model("llama")
    require_numbers(model, "lora_r is 0")
    model.quantization_method = "fp8"
    with pytest.raises(ModelError, match=r"quantised \(fp8\), and lora_r is 0: train with lora_r"):
        require_numbers(model, "lora_r is 0")
