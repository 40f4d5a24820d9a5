"""A run's adapter in its base: by a command, and by resuming a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

import penchant
from penchant.cli.main import main
from penchant.cli.show import print_result
from penchant.commands.merge import merge
from penchant.core.errors import ConfigError, ModelError
from penchant.models.load import load_tokenizer
from penchant.reporting.settings import how_to_load

IDS = torch.arange(3, 40).unsqueeze(0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_keys: dict[str, Any]) -> Path:
    output = tmp_path_factory.mktemp("merge") / "run"
    penchant.train("dpo", **tiny_keys, max_steps=2, output=output)
    return output


def test_a_merged_model_says_what_the_adapter_says(
    run: Path, load_saved: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "whole"
    assert main(["merge", str(run), "--output", str(target)]) == 0
    assert f"model: {target}" in capsys.readouterr().out
    with torch.no_grad():
        whole, adapted = (load_saved(one)(IDS).logits for one in (target, run / "model"))
    torch.testing.assert_close(whole, adapted, atol=1e-5, rtol=1e-5)
    assert not (target / "adapter_config.json").exists()
    with pytest.raises(ConfigError, match="is there already"):
        merge(run, target)
    with pytest.raises(ModelError, match="holds no adapter to merge"):
        merge(target)


def test_a_merged_reward_model_knows_the_token_that_pads(
    tiny_keys: dict[str, Any], unpadded_model: Path, load_saved: Any, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(str(unpadded_model))
    run = penchant.train(
        "reward",
        **{**tiny_keys, "model": str(unpadded_model)},
        max_steps=2,
        output=tmp_path / "run",
    ).output
    whole, adapted = load_saved(merge(run)), load_saved(run / "model")
    assert whole.config.pad_token_id == tokenizer.pad_token_id
    adapted.config.pad_token_id = tokenizer.pad_token_id
    pad = [tokenizer.pad_token_id] * 3
    ids = torch.tensor([[5, 6, 7, 8, 9], [10, 11, *pad]])
    mask = torch.tensor([[1] * 5, [1, 1, 0, 0, 0]])
    with torch.no_grad():
        found, expected = (one(ids, attention_mask=mask).logits for one in (whole, adapted))
        alone = whole(ids[1:, :2]).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1:], alone, atol=1e-5, rtol=1e-5)


def test_resuming_a_finished_run_with_merge_merges(
    run: Path, tiny_keys: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {**tiny_keys, "max_steps": 2, "output": run, "resume": True, "merge": True}
    assert penchant.train("dpo", **keys).steps == 2
    written = (run / "merged" / "model.safetensors").stat().st_mtime_ns
    print_result(penchant.train("dpo", **keys))  # there is nothing more to do
    assert f"merged: {run / 'merged'}\n" in capsys.readouterr().out
    assert (run / "merged" / "model.safetensors").stat().st_mtime_ns == written


def test_the_lines_that_load_an_adapter_load_it(run: Path) -> None:
    lines = how_to_load(run / "model")
    assert list(lines) == ["transformers", "PEFT", "vLLM"]
    names = {**vars(peft), **{n: getattr(transformers, n) for n in ("AutoModelForCausalLM",)}}
    with torch.no_grad():
        plain, adapted = (eval(lines[n], names)(IDS).logits for n in ("transformers", "PEFT"))
    torch.testing.assert_close(plain, adapted)
    assert "--max-lora-rank 16 --lora-modules" in lines["vLLM"]
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    assert '`AutoPeftModelForCausalLM.from_pretrained("owner/name")`' in card


def test_the_end_of_a_run_says_how_its_model_is_loaded(
    tiny_keys: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {**tiny_keys, "lora_r": 0, "max_steps": 1, "output": tmp_path / "run"}
    words = (word for key, value in keys.items() for word in (f"--{key}", str(value)))
    assert main(["train", "dpo", *words]) == 0
    shown = capsys.readouterr().out
    for library, line in how_to_load(tmp_path / "run" / "model").items():
        assert f"{library}:" in shown
        assert line in shown
    assert "PEFT" not in shown
