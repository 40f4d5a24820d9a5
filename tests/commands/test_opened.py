"""A run that somebody else has made: what it says of itself does not count for everything."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import penchant
from penchant.commands.chat import open_chat
from penchant.core.errors import ModelError

CODE = """
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM

Path({ran!r}).touch()


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""
SHORT = {"max_new_tokens": 2}
COMMANDS: dict[str, Callable[..., Any]] = {
    "chat": lambda run, data, **keys: open_chat(run, start="none", **SHORT, **keys),
    "evaluate": lambda run, data, **keys: penchant.evaluate(model=run, data=data, **keys),
    "win_rate": lambda run, data, **keys: penchant.win_rate(
        model=run, prompts=data, against=run, reward="length:4", **SHORT, **keys
    ),
}


@pytest.fixture
def foreign(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a run whose model brings code, and whose settings say that it may run."""
    run = tmp_path / "run"
    shutil.copytree(tiny_model_dir, run / "model")
    (run / "model" / "own.py").write_text(CODE.format(ran=str(tmp_path / "ran")))
    file = run / "model" / "config.json"
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    changes = {"model_type": "own", "architectures": ["OwnModel"], "auto_map": own}
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    settings = f"method: dpo\nmodel: {tiny_model_dir}\ntrust_remote_code: true\n"
    (run / "config.yaml").write_text(settings)
    # Where transformers copies such code to.
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_code_of_a_model_does_not_run_on_the_word_of_its_run(
    command: str, foreign: Path, held_out_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelError, match="trust_remote_code"):
        COMMANDS[command](foreign, held_out_file)
    assert not foreign.with_name("ran").exists()
    printed = " ".join("".join(capsys.readouterr()).split())
    assert "if you trust it, pass --trust_remote_code" in printed


def test_code_of_a_model_runs_on_the_word_of_the_user(foreign: Path, held_out_file: Path) -> None:
    chat = COMMANDS["chat"](foreign, held_out_file, trust_remote_code=True)
    assert foreign.with_name("ran").exists()
    assert type(chat.speakers["answer"].scorer.causal_model).__name__ == "OwnModel"
    assert chat.ask("Is 3 so?", lambda _, piece: None)["answer"].num_tokens > 0
