"""A GGUF file says what the run says; without llama.cpp, one line tells what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from penchant.cli.main import main
from penchant.commands.export import export_gguf, find_converter
from penchant.core.errors import ConfigError, ModelError
from penchant.models.gguf import converted


@pytest.fixture
def no_converter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Take llama.cpp away, if it is here."""
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("no_converter")
def test_without_a_converter_it_is_said_what_to_install(
    adapter_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(adapter_run), "--gguf"]) == 1
    assert "git clone https://github.com/ggml-org/llama.cpp" in capsys.readouterr().err
    assert list(adapter_run.glob(".*")) == list(adapter_run.glob("*.gguf")) == []


def test_what_is_wrong_is_said_before_anything_is_merged(
    adapter_run: Path, classifier: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match=r"LLAMA_CPP is .* where there is no convert_hf_to_gguf"):
        export_gguf(adapter_run)
    with pytest.raises(ConfigError, match="outtype must be one of auto, f32"):
        export_gguf(adapter_run, outtype="q4_k_m")
    with pytest.raises(ModelError, match="is a reward model"):
        export_gguf(classifier(1))
    (tmp_path / "there.gguf").touch()
    with pytest.raises(ConfigError, match="is there already"):
        export_gguf(adapter_run, tmp_path / "there.gguf")


def test_a_failing_converter_leaves_nothing_and_says_why(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text("import sys\nsys.exit('no such pre-tokenizer')\n")
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    with pytest.raises(ModelError, match=r"status 1\); it said:\n  no such pre-tokenizer"):
        export_gguf(tiny_model_dir, tmp_path / "out.gguf")
    assert [one.name for one in tmp_path.iterdir()] == [script.name]


@pytest.mark.slow
def test_the_file_says_what_the_run_says(
    shared: Path, training_file: Path, load_saved: Any, tmp_path: Path
) -> None:
    import penchant

    try:
        find_converter()
    except ConfigError as error:
        pytest.skip(f"needs llama.cpp: {error}")
    keys = {"model": str(shared / "models" / "stories260k"), "data": str(training_file)}
    run = tmp_path / "run"
    penchant.train("dpo", **keys, max_steps=2, max_length=128, output=run, monitor_prompts=0)
    file = export_gguf(run, outtype="f32")
    assert file == run / "model-f32.gguf"
    ids = torch.arange(3, 40).unsqueeze(0)
    with torch.no_grad():
        read, own = (load_saved(f)(ids).logits for f in (converted(file, tmp_path), run / "model"))
    torch.testing.assert_close(read, own, atol=1e-4, rtol=1e-4)
