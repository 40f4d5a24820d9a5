"""What is refused before a weight is loaded, and named for what it is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import penchant
from penchant.compat.trl.online import GRPOConfig
from penchant.config.keys import load_config
from penchant.core.errors import ModelError
from penchant.models.load import load_tokenizer
from penchant.training.inputs import read_run_data


def test_token_without_an_embedding_is_named(
    tiny_keys: dict[str, Any], tiny_model_dir: Path, tmp_path: Path
) -> None:
    """A lookup outside the table says nothing of the tokenizer that is to blame."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    tokenizer = load_tokenizer(str(folder))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|bot|>", "<|unused|>"]})
    tokenizer.save_pretrained(folder)
    keys = {**tiny_keys, "model": str(folder), "output": tmp_path / "run", "max_steps": 1}
    assert penchant.train("dpo", **keys).steps == 1  # what is not used does no harm
    rows = [{"prompt": f"<|bot|>{i}", "chosen": "a", "rejected": "b"} for i in range(4)]
    with pytest.raises(ModelError, match=r"no embedding for: <\|bot\|>, .*resize_token_embeddings"):
        penchant.train("dpo", **{**keys, "data": rows, "overwrite": True})


def test_encoder_decoder_model_is_refused_by_name(
    tiny_keys: dict[str, Any], tiny_model_dir: Path, tmp_path: Path
) -> None:
    from transformers import T5Config

    load_tokenizer(str(tiny_model_dir)).save_pretrained(tmp_path / "t5")
    T5Config().save_pretrained(tmp_path / "t5")
    keys = {**tiny_keys, "model": str(tmp_path / "t5"), "output": tmp_path / "run"}
    with pytest.raises(ModelError, match=r"encoder-decoder model \(t5\).*decoder-only"):
        penchant.train("dpo", **keys)


def test_adapter_without_a_tokenizer_takes_that_of_its_base(
    tiny_keys: dict[str, Any], tiny_model_dir: Path, tmp_path: Path
) -> None:
    """PEFT saves none beside it."""
    first = penchant.train("dpo", output=tmp_path / "first", max_steps=1, **tiny_keys).model
    for file in first.glob("*"):
        if not file.name.startswith("adapter"):
            file.unlink()
    assert load_tokenizer(str(first)).get_vocab() == load_tokenizer(str(tiny_model_dir)).get_vocab()


def test_options_of_the_template_reach_every_chat_of_a_run_and_the_fingerprint_is_the_datas() -> (
    None
):
    user, answers = {"role": "user", "content": "Hi"}, ("yes", "no", "so", "as")
    rows = [{"prompt": [{**user, "content": a}], "chosen": a, "rejected": f"{a}?"} for a in answers]
    rows[0]["chat_template_kwargs"] = {"enable_thinking": True}
    keys = {"model": "m", "data": "rows", "train_fraction": 0.5}
    plain = read_run_data(load_config("dpo", keys), rows, None)
    script = GRPOConfig(output_dir="x", chat_template_kwargs={"enable_thinking": False})
    kwargs = script.run_config({"model": "m", "data": "rows"}).chat_template_kwargs
    told = read_run_data(load_config("dpo", {**keys, "chat_template_kwargs": kwargs}), rows, None)
    options = [
        record.prompt[0]["chat_template_kwargs"]["enable_thinking"]  # type: ignore[index]
        for record in (*told.train, *told.evaluation)
    ]
    assert sorted(options) == [False, False, False, True]
    assert told.sources[0].fingerprint == plain.sources[0].fingerprint


@pytest.mark.parametrize(
    ("method", "names", "message"),
    [
        ("dpo", {"lora_target_modules": "q_proj,v_prj"}, "no layer is called v_prj; this model"),
        ("reward", {"lora_target_modules": "score,v_prj"}, "no layer is called v_prj; this model"),
        (
            "dpo",
            {"lora_target_parameters": "mlp.experts.gate_proj"},
            r"called mlp\.experts\.gate_proj; nearest are .*mlp\.experts\.gate_up_proj",
        ),
    ],
)
def test_names_that_lora_finds_nowhere_are_refused_without_weights(
    method: str,
    names: dict[str, str],
    message: str,
    make_model: Any,
    tiny_keys: dict[str, Any],
    tiny_model_dir: Path,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "model"
    model = make_model("mixtral", vocab_size=259, num_local_experts=2)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    load_tokenizer(str(tiny_model_dir)).save_pretrained(folder)
    with pytest.raises(ModelError, match=message):
        penchant.train(
            method, output=tmp_path / "run", **{**tiny_keys, "model": str(folder)}, **names
        )
