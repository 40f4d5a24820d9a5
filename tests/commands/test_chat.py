"""A conversation with a tuned model and its start: through the command line, as users have it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import penchant
from penchant.cli.main import main
from penchant.commands.chat import open_chat
from penchant.core.errors import ConfigError, ModelError, TrainingError
from penchant.models.load import load_tokenizer


def expected(model: Any, folder: Path, text: str, new: int) -> str:
    """Greedy decoding with transformers alone."""
    tokenizer = load_tokenizer(str(folder))
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    model.generation_config.pad_token_id = 0
    with torch.no_grad():
        out = model.generate(ids, do_sample=False, max_new_tokens=new, eos_token_id=2)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def test_both_models_answer_as_transformers_has_it(
    adapter_run: Path, tiny_model_dir: Path, load_saved: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["chat", str(adapter_run), "--prompt", "Is 3 so?", "--max_new_tokens", "6", "--json"]
    assert main(words) == 0
    answer = json.loads(capsys.readouterr().out)
    tuned, start = (load_saved(one) for one in (adapter_run / "model", tiny_model_dir))
    for name, model in {"tuned": tuned, "start": start}.items():
        assert answer[name]["text"] == expected(model, tiny_model_dir, "Is 3 so?", 6)
    assert answer["tuned"]["text"] != answer["start"]["text"]


def test_an_adapter_that_changed_its_base_stands_beside_the_base_as_it_was(
    changed_base_run: Path, tiny_model_dir: Path, load_saved: Any
) -> None:
    chat = open_chat(changed_base_run, max_new_tokens=6)
    answers = chat.ask("Is 3 so?", lambda _, piece: None)
    for name, folder in {"tuned": changed_base_run / "model", "start": tiny_model_dir}.items():
        assert answers[name].text == expected(load_saved(folder), tiny_model_dir, "Is 3 so?", 6)
    ids, adapted = torch.tensor([[5, 6, 7]]), chat.speakers["tuned"].scorer.model
    with torch.no_grad(), adapted.disable_adapter():
        off, start = adapted(ids).logits, load_saved(tiny_model_dir)(ids).logits
    assert (off - start).abs().max() > 1e-3


def test_piped_lines_are_answered_one_by_one(
    adapter_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Is 3 so?\n\n/new\nIs 4?\n/quit\nnever\n"))
    assert main(["chat", str(adapter_run), "--max-new-tokens", "3"]) == 0
    shown = capsys.readouterr().out
    assert [line for line in shown.splitlines() if line.startswith("prompt: ")] == [
        "prompt: Is 3 so?",
        "prompt: Is 4?",
    ]
    assert shown.count("start: ") == shown.count("tuned: ") == 2


def test_a_file_of_prompts_is_answered(
    adapter_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "Is 1?"}, {"prompt": ""}, {"prompt": "Is 2?"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["chat", str(adapter_run), "--prompts", str(file), "--json", "--max_new_tokens", "2"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert [json.loads(line)["prompt"] for line in out.splitlines()] == ["Is 1?", "Is 2?"]
    assert "prompts.jsonl:2" in err
    assert main([*words, "--prompt", "Is 3?"]) == 1
    assert "two sources of prompts" in capsys.readouterr().err


def test_a_conversation_is_what_the_template_makes_of_it(tiny_model_dir: Path) -> None:
    chat = open_chat(tiny_model_dir, system="Be brief.", max_new_tokens=4)
    assert chat.names == ["answer"]
    pieces: list[str] = []
    first = chat.ask("Hello", lambda _, piece: pieces.append(piece))["answer"]
    assert "".join(pieces) == first.text and len(pieces) > 1
    chat.ask("And?", lambda _, piece: None)
    said = [(one["role"], one["content"]) for one in chat.speakers["answer"].messages[:4]]
    assert said == [
        ("system", "Be brief."),
        ("user", "Hello"),
        ("assistant", first.text),
        ("user", "And?"),
    ]
    chat.forget()
    assert chat.ask("Hello", lambda _, piece: None)["answer"] == first


def test_draws_differ_by_seed_alone(tiny_model_dir: Path) -> None:
    def drawn(seed: int) -> str:
        chat = open_chat(tiny_model_dir, temperature=1.0, seed=seed, max_new_tokens=8)
        return chat.ask("Hello", lambda _, piece: None)["answer"].text

    assert drawn(0) == drawn(0) != drawn(1)


def test_memory_that_runs_out_says_what_to_set_and_the_conversation_goes_on(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = open_chat(tiny_model_dir, max_new_tokens=4)

    def full(*args: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate 3 GiB")

    hook = chat.speakers["answer"].scorer.causal_model.register_forward_pre_hook(full)
    said = "out of memory while an answer was drawn: tried.*set a lower max_new_tokens"
    with pytest.raises(TrainingError, match=said):
        chat.ask("Hello", lambda _, piece: None)
    hook.remove()
    assert chat.ask("Hello", lambda _, piece: None)["answer"].num_tokens
    monkeypatch.setattr(torch.nn.Module, "to", full)
    said = "out of memory while a model was loaded: tried.*set quantization 4bit"
    with pytest.raises(TrainingError, match=said):
        open_chat(tiny_model_dir)


def test_what_cannot_be_talked_with_is_refused(
    adapter_run: Path, classifier: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "penchant.commands.chat.load_model", lambda *_, **__: pytest.fail("a model was loaded")
    )
    with pytest.raises(ModelError, match="is a reward model"):
        open_chat(classifier(1))
    with pytest.raises(ConfigError, match="temperature must be 0 or more, got -1"):
        open_chat(adapter_run, temperature=-1)
    with pytest.raises(ConfigError, match="system message needs a chat template"):
        open_chat(adapter_run, system="Be brief.")  # the run was on plain texts
    with pytest.raises(ModelError, match="the prompt is empty"):
        open_chat(adapter_run, prompts=["Is 3 so?", ""])


@pytest.mark.parametrize(
    "keys", [{"lora_r": 0}, {"lora_r": 4, "peft": {"init_lora_weights": "pissa"}}], ids=str
)
def test_a_run_stands_beside_what_it_started_from_where_no_adapter_gives_that(
    tiny_keys: dict[str, Any], tmp_path: Path, keys: dict[str, Any]
) -> None:
    run = tmp_path / "run"
    penchant.train("dpo", **tiny_keys, **keys, max_steps=3, output=run)
    chat = open_chat(run, max_new_tokens=4)
    answers = chat.ask("Is 3 so?", lambda _, piece: None)
    start = open_chat(tiny_keys["model"], max_new_tokens=4)
    start.templated = False  # as the run's data were
    assert answers["start"] == start.ask("Is 3 so?", lambda _, piece: None)["answer"]
    assert open_chat(run, start="none").names == ["answer"]
