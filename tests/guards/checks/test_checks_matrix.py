"""Wrong configurations, each caught by the rule that is meant to, and sound ones left in peace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from penchant.commands.check import check
from penchant.methods import METHODS

Changed = Callable[..., Path]
Row = dict[str, Any]


@dataclass(frozen=True)
class Wrong:
    """A run with one mistake.

    Attributes:
        finding: the id that must be found.
        method: to train with.
        keys: beside the sound ones.
        rows: changes a sound pair of a number; model: changes files of the tiny model.
        served: names a reward that answers at the address of a server.
        severity: it must have.
    """

    finding: str
    method: str = "dpo"
    keys: dict[str, Any] = field(default_factory=dict)
    rows: Callable[[Row, int], Row] | None = None
    model: dict[str, dict[str, Any]] | None = None
    severity: str = "warning"
    served: str | None = None


def chat(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def text_of(row: Row, side: str) -> str:
    return str(row[side][0]["content"])


def plain(row: Row, number: int) -> Row:
    return {side: text_of(row, side) for side in row}


def votes(*shares: float) -> Callable[[Row, int], Row]:
    """Pairs with these shares of votes for the chosen answer, in turn."""
    return lambda row, number: {**row, "agreement": shares[number % len(shares)]}


def longer(row: Row, number: int) -> Row:
    return {**row, "chosen": chat("assistant", f"{number} " * 20)}


def long_prompt(row: Row, number: int) -> Row:
    return {**row, "prompt": chat("user", f"{number} so " * 60)}


def long_answer(row: Row, number: int) -> Row:
    return {**row, "chosen": chat("assistant", f"{number} and " * 60)}


def contradicted(row: Row, number: int) -> Row:
    """Pairs of one prompt, half of them the other way round."""
    prompt = chat("user", f"Question {number // 2 * 613}?")
    answers = chat("assistant", "It is so."), chat("assistant", "It is no.")
    chosen, rejected = reversed(answers) if number % 2 else answers
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def same(row: Row, number: int) -> Row:
    return {**row, "rejected": chat("assistant", text_of(row, "chosen").upper() + " ")}


def one_prompt(row: Row, number: int) -> Row:
    return {**row, "prompt": chat("user", "Say something.")}


def two_bos(row: Row, number: int) -> Row:
    """The answers repeat the token that begins a text."""
    row = plain(row, number)
    return {**row, "chosen": "<|im_start|>" + row["chosen"]}


def early_end(row: Row, number: int) -> Row:
    return {**row, "chosen": chat("assistant", text_of(row, "chosen") + "<|im_end|> and more")}


def thoughtful(row: Row, number: int) -> Row:
    return {**row, "chosen": chat("assistant", f"<think>so</think>{text_of(row, 'chosen')}")}


def lopsided(row: Row, number: int) -> Row:
    return {"prompt": row["prompt"], "completion": row["chosen"], "label": number % 10 != 0}


def some_ties(row: Row, number: int) -> Row:
    tie = {"prompt": "p", "completion_a": "a", "completion_b": "b", "label": "tie"}
    return tie if number % 9 == 0 else {**tie, "prompt": f"Is {number} so?", "label": "A"}


def bad_rows(row: Row, number: int) -> Row:
    return {**row, "chosen": []} if number % 20 == 0 else row


def no_pairs(row: Row, number: int) -> Row:
    return {"text": "no pair"}


PPO = {"reward": "length:8", "batch_size": 16, "max_completion_length": 32}
FULL = {"lora_r": 0}
QUIET = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OPENS = QUIET.replace("assistant\n", "assistant\n<think>\n")
WRONG = [
    # the configuration
    Wrong("reward-epochs", "reward", {"num_train_epochs": 2}),
    Wrong("reward-epochs", "reward", {"max_steps": 40, "per_device_train_batch_size": 8}),
    Wrong("learning-rate", "dpo", {**FULL, "learning_rate": 2e-5}),
    Wrong("learning-rate", "ppo", {**PPO, **FULL, "learning_rate": 2e-5}),
    Wrong("learning-rate", "kto", {**FULL, "learning_rate": 2e-5}),
    Wrong("learning-rate", "dpo", {"learning_rate": 1e-3}),
    Wrong("learning-rate", "dpo", {"learning_rate": 5e-7}),
    Wrong("learning-rate", "simpo", {**FULL, "learning_rate": 1e-5}),
    Wrong("beta", "dpo", {"beta": 0.9}),
    Wrong("beta", "dpo", {"beta": 0.001}),
    Wrong("beta", "simpo", {"beta": 0.1}),
    Wrong("beta", "sppo", {"beta": 0.5}),
    Wrong("epochs", "dpo", {"num_train_epochs": 6}, severity="note"),
    Wrong("warmup", "dpo", {"max_steps": 4}),
    Wrong("warmup", "dpo", {"warmup_ratio": 0.8}),
    Wrong("configuration", "ppo", {**PPO, "batch_size": 10}, severity="error"),
    Wrong("configuration", "dpo", {"beta": 0}, severity="error"),
    Wrong("configuration", "dpo", {"precision": "fp16"}, severity="error"),
    Wrong("configuration", "dpo", {"max_prompt_length": 256}, severity="error"),
    Wrong("second-reference", "dpo", {"reference": "copy"}),
    Wrong("lora-dropout", "ppo", {**PPO, "lora_dropout": 0.1}),
    Wrong("lora-dropout", "dpo", {"lora_dropout": 0.1}, severity="note"),
    # the rewards
    Wrong("reward-normalization", "ppo", {**PPO, "reward_normalization": "none"}),
    Wrong("no-kl-penalty", "ppo", {**PPO, "init_kl_coef": 0, "adap_kl_ctrl": False}),
    Wrong("no-kl-penalty", "grpo", {**PPO, "beta": 0}, severity="note"),
    Wrong("no-kl-penalty", "grpo", {**PPO, "beta": 0}, served="judge:{url}"),
    Wrong("no-kl-penalty", "grpo", {**PPO, "beta": 0}, served="{url}/score"),
    Wrong("target-kl", "ppo", {**PPO, "target_kl": 40}),
    # the records
    Wrong("beta-noise", "dpo", {"beta": 0.02}, rows=votes(1.0, 0.6)),
    Wrong("beta-noise", "dpo", {"beta": 0.4}, rows=votes(1.0), severity="note"),
    Wrong("white-space", rows=same),
    Wrong("ties", rows=some_ties, severity="note"),
    Wrong("low-agreement", rows=votes(1.0, 0.55, 1.0)),
    Wrong("contradictions", rows=contradicted),
    Wrong("label-noise", rows=votes(0.6)),
    Wrong("length-bias", rows=longer),
    Wrong("one-prompt", rows=one_prompt),
    Wrong("refused-rows", rows=bad_rows),
    Wrong("kto-imbalance", "kto", rows=lopsided),
    Wrong("leaks", "dpo", {"eval_data": "pairs"}),
    Wrong("no-held-out", "dpo", {"eval_data": None}, severity="note"),
    Wrong("data", rows=no_pairs, severity="error"),
    # the tokens
    Wrong("prompts-cut", rows=long_prompt),
    Wrong("prompts-cut", "dpo", {"max_prompt_length": 16}),
    Wrong("answers-cut", rows=long_answer),
    Wrong("answer-room", "dpo", {"max_prompt_length": 230}),
    Wrong("chat-as-text", rows=plain),
    Wrong("template-drops-text", "dpo", {"chat_template": QUIET}, thoughtful, severity="error"),
    Wrong("generation-prompt", "dpo", {"chat_template": OPENS}),
    Wrong("early-eos", rows=early_end),
    # the model
    Wrong("double-bos", rows=two_bos, model={"tokenizer_config": {"bos_token": "<|im_start|>"}}),
    Wrong("doubled-eos", model={"tokenizer_config": {"eos_token": "<|endoftext|>",
                                                     "pad_token": "<|im_start|>"},
                                "generation_config": {"eos_token_id": 0},
                                "config": {"eos_token_id": 0}}),
    Wrong("missing-eos", model={"generation_config": {"eos_token_id": 0},
                                "config": {"eos_token_id": 0}}),
    Wrong("pad-is-eos", "reward", model={"tokenizer_config": {"pad_token": "<|im_end|>"}}),
    Wrong("pad-is-eos", model={"tokenizer_config": {"pad_token": None}}, severity="note"),
    Wrong("dropout", model={"config": {"attention_dropout": 0.1}}),
    Wrong("context", "dpo", {"max_length": 512}, rows=long_answer,
          model={"config": {"max_position_embeddings": 128}}),
    Wrong("reference-differs", "dpo", {"reference_model": "other"}),
    Wrong("model", "dpo", {"model": "no-such-model"}, severity="error"),
]  # fmt: skip


def keys_of(
    method: str, files: dict[str, Path], folder: Path, output: Path, **keys: Any
) -> dict[str, Any]:
    """A sound run of a method."""
    kind = METHODS[method].data
    found = {
        "model": str(folder), "data": files[kind], "eval_data": files[f"{kind}_held_out"],
        "output": output / "run", "max_length": 256,
    }  # fmt: skip
    if METHODS[method].samples:
        found |= PPO
    if "teacher_model" in METHODS[method].options.model_fields:
        found["teacher_model"] = str(folder)
    return {**found, **keys}


@pytest.mark.parametrize("case", WRONG, ids=lambda case: f"{case.finding}-{case.method}")
def test_mistake_is_caught_by_its_rule(
    case: Wrong,
    files: dict[str, Path],
    tiny_model_dir: Path,
    changed_model: Changed,
    write_pairs: Callable[..., Path],
    serve_chat: Callable[..., Any],
    tmp_path: Path,
) -> None:
    model = changed_model(**case.model) if case.model else tiny_model_dir
    keys = dict(case.keys)
    if keys.get("eval_data") == "pairs":
        keys["eval_data"] = files["pairs"]
    if keys.get("reference_model") == "other":
        keys["reference_model"] = str(changed_model())
    if template := keys.get("chat_template"):
        (tmp_path / "template.jinja").write_text(template)
        keys["chat_template"] = str(tmp_path / "template.jinja")
    if case.served:
        keys["reward"] = ["length:8", case.served.format(url=serve_chat(str).url)]
    if case.rows:
        keys["data"] = write_pairs(tmp_path / "data.jsonl", case.rows)
    found = check(case.method, probe=False, **keys_of(case.method, files, model, tmp_path, **keys))
    severities = {finding.id: finding.severity for finding in found.findings}
    assert severities.get(case.finding) == case.severity, found.findings
    beside = [one for one in found.findings if one.id != case.finding and one.severity == "error"]
    assert beside == []
    if case.severity == "error":
        assert [one.id for one in found.errors] == [case.finding]


SOUND: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in METHODS),
    ("dpo", {"lora_r": 0}),
    ("dpo", {"beta": 0.05, "learning_rate": 2e-4}),
    ("dpo", {"lora_r": 0, "learning_rate": 5e-7, "num_train_epochs": 2}),
    ("dpo", {"reference": "cache"}),
    ("ipo", {"lora_r": 0, "reference": "copy"}),
    ("simpo", {"beta": 10, "gamma": 5}),
    ("orpo", {"lora_r": 0}),
    ("kto", {"lora_r": 0}),
    ("reward", {"lora_r": 0}),
    ("ppo", {"lora_r": 0, "learning_rate": 1e-6}),
    ("grpo", {"beta": 0.04, "num_generations": 4}),
    ("rloo", {"lora_r": 0}),
]


@pytest.mark.parametrize(
    ("method", "keys"), SOUND, ids=[f"{name}-{i}" for i, (name, _) in enumerate(SOUND)]
)
def test_sound_run_has_no_error_and_at_most_one_warning(
    method: str, keys: dict[str, Any], files: dict[str, Path], tiny_model_dir: Path, tmp_path: Path
) -> None:
    found = check(method, probe=False, **keys_of(method, files, tiny_model_dir, tmp_path, **keys))
    assert found.errors == []
    assert found.counts()["warning"] <= 1, found.findings
