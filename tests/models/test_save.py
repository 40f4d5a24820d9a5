"""Saved models: whole, and merged without losing what was learnt."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from penchant.models.load import load_causal_model
from penchant.models.lora import add_lora
from penchant.models.save import save_model
from penchant.models.scoring import Scorer
from penchant.models.sharding import shard

IDS = torch.tensor([[1, 5, 6, 7, 20, 21, 22]])


@pytest.fixture
def tokenizer(tiny_model_dir):
    return AutoTokenizer.from_pretrained(tiny_model_dir)


def adapted(folder, dtype, size):
    """The tiny model with an adapter that changes each weight by a little of `size`."""
    base = load_causal_model(str(folder), dtype=dtype)
    model = add_lora(base, r=2, alpha=4, dropout=0.0, target_modules="all-linear")
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(size * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


@pytest.mark.parametrize("size", [1e-4, 1e-1])
def test_merging_into_a_bf16_base_loses_nothing(tiny_model_dir, tokenizer, tmp_path, size):
    """In bf16 an update of a 500th of a weight rounds to nothing."""
    model = adapted(tiny_model_dir, torch.bfloat16, size)
    save_model(model, tokenizer, tmp_path / "adapter", merged=False)
    save_model(model, tokenizer, tmp_path / "merged", merged=True)

    base = load_causal_model(str(tiny_model_dir), dtype=torch.bfloat16).float()
    plain = logits(base)
    expected = logits(PeftModel.from_pretrained(base, tmp_path / "adapter"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.dtype == torch.float32
    assert (expected - plain).abs().max() > size
    torch.testing.assert_close(logits(merged), expected, rtol=1e-5, atol=1e-6)
    assert not (tmp_path / "merged" / "adapter_config.json").exists()


def test_saving_leaves_the_model_as_it_was(tiny_model_dir, tokenizer, tmp_path):
    model = adapted(tiny_model_dir, torch.bfloat16, 0.1)
    before = {name: p.clone() for name, p in model.named_parameters()}
    for merged in (True, False):
        save_model(model, tokenizer, tmp_path / str(merged), merged=merged)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    for name, parameter in before.items():
        assert after[name].dtype == parameter.dtype
        assert torch.equal(after[name], parameter)


def test_a_folder_is_replaced_as_a_whole(tiny_model_dir, tokenizer, tmp_path):
    folder = tmp_path / "model"
    save_model(adapted(tiny_model_dir, torch.float32, 0.1), tokenizer, folder, merged=False)
    (folder / "stray.bin").write_bytes(b"")
    save_model(adapted(tiny_model_dir, torch.float32, 0.1), tokenizer, folder, merged=True)
    assert not (folder / "adapter_config.json").exists()
    assert not (folder / "stray.bin").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_saving_that_fails_leaves_the_folder_as_it_was(tiny_model_dir, tokenizer, tmp_path):
    model = adapted(tiny_model_dir, torch.float32, 0.1)
    save_model(model, tokenizer, tmp_path / "model", merged=False)
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}

    class Failing:
        def save_pretrained(self, folder):
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        save_model(model, Failing(), tmp_path / "model", merged=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before


@pytest.fixture
def mesh():
    """Return a process that holds every part of the weights."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh

    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,), mesh_dim_names=("shard",))
    distributed.destroy_process_group()


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_are_saved_of_weights_that_processes_divide(
    bias, make_model, tokenizer, tmp_path, mesh
):
    """They are trained in the base itself, whose other weights are saved already."""
    model = add_lora(make_model("phi"), r=2, alpha=4, dropout=0.0, target_modules="q_proj,v_proj",
                     settings={"bias": bias})  # fmt: skip
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1
    expected = logits(model.eval())
    scorer = Scorer(model, 0)
    shard(scorer, mesh)
    save_model(model, tokenizer, tmp_path / "adapter", merged=False)
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert not any(name.endswith("base_layer.weight") for name in saved)
    read = PeftModel.from_pretrained(make_model("phi"), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(read), expected, rtol=1e-4, atol=1e-4)
