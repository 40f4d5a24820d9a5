"""What is known of a model before its weights are loaded, and whose word counts for it."""

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
from penchant.commands.opened import off_is_start, trained_on_plain, tuned_from
from penchant.core.errors import ModelError, UserError

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


REFUSING = "{{ raise_exception('no system message') if messages[0].role == 'system' else '' }}"
REFUSING += "{{ messages[-1].content }}"
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is 3 so?"}]
ROWS = [{"prompt": CHAT, "chosen": [{**CHAT[1], "role": "assistant"}], "rejected": [
    {"role": "assistant", "content": "no"}]}]  # fmt: skip
BEFORE_WEIGHTS: dict[str, tuple[Callable[..., Any], str]] = {
    "evaluate: no reference": (
        lambda model, template: penchant.evaluate(model=model, data=ROWS),
        "says nothing about what it was tuned from; set reference",
    ),
    "evaluate: reference": (
        lambda model, template: penchant.evaluate(model=model, data=ROWS, reference="./nothing"),
        "no such model: ./nothing",
    ),
    "evaluate: template": (
        lambda model, template: penchant.evaluate(
            model=model, data=ROWS, method="orpo", chat_template=template
        ),
        r"no held-out record is left .*no system message",
    ),
    "evaluate: reward model": (
        lambda model, template: penchant.evaluate(
            model=model, data=ROWS, method="reward", chat_template=template
        ),
        r"no answer is left .*no system message",
    ),
    "win_rate": (
        lambda model, template: penchant.win_rate(
            model=model, prompts=ROWS, against=model, reward="length:4", chat_template=template
        ),
        "no prompt is left that both models can read",
    ),
    "chat: template": (
        lambda model, template: open_chat(model, prompts=["Hi", CHAT], chat_template=template),
        r"refuses what was said: .*no system message",
    ),
    "chat: start": (lambda model, template: open_chat(model, start="./nothing"), "no such model"),
}


@pytest.mark.parametrize("what", BEFORE_WEIGHTS)
def test_what_cannot_be_read_is_refused_before_a_weight_is_loaded(
    what: str, model_without_weights: Path, tmp_path: Path
) -> None:
    template = tmp_path / "refusing.jinja"
    template.write_text(REFUSING)
    call, message = BEFORE_WEIGHTS[what]
    with pytest.raises(UserError, match=message):
        call(model_without_weights, str(template))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"init_lora_weights": True, "bias": "none"}, True),
        ({"init_lora_weights": "eva"}, True),
        ({"init_lora_weights": "pissa_niter_16"}, False),
        ({"init_lora_weights": "olora"}, False),
        ({"bias": "lora_only"}, False),
    ],
    ids=str,
)
def test_an_adapter_that_changes_its_base_is_not_its_start_when_it_is_off(
    tmp_path: Path, tiny_model_dir: Path, settings: dict[str, Any], expected: bool
) -> None:
    adapter = tmp_path / "run" / "model"
    adapter.mkdir(parents=True)
    saved = {**settings, "base_model_name_or_path": str(tiny_model_dir)}
    (adapter / "adapter_config.json").write_text(json.dumps(saved))
    assert off_is_start(str(adapter)) == expected
    assert tuned_from(adapter, str(adapter)) == str(tiny_model_dir)
    (tmp_path / "run" / "config.yaml").write_text("model: another\n")
    assert tuned_from(tmp_path / "run", str(adapter)) == "another"


def test_a_model_without_an_adapter_is_tuned_from_what_its_run_says(tiny_model_dir: Path) -> None:
    assert not off_is_start(str(tiny_model_dir))
    assert tuned_from(tiny_model_dir, str(tiny_model_dir)) is None


@pytest.mark.parametrize(
    ("kept", "plain"), [("num_chat", False), ("num_none", True), ("summary", True), ("none", False)]
)
def test_what_a_run_was_trained_on_is_known_before_it_is_complete(
    tmp_path: Path, kept: str, plain: bool
) -> None:
    """Else a killed run on plain texts would be judged through the chat template."""
    checkpoint = tmp_path / "checkpoints" / "step-5"
    checkpoint.mkdir(parents=True)
    data = {"data": {"num_chat": 3 if kept == "num_chat" else 0}}
    if kept != "none":
        (tmp_path / "data.json").write_text(json.dumps(data))
    if kept == "summary":
        (tmp_path / "summary.json").write_text(json.dumps({"chat": False}))
    for place in (tmp_path, tmp_path / "model", checkpoint):
        assert trained_on_plain(place) is plain
