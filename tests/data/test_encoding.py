"""Texts of many records are encoded together, to what each would be alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from penchant.data import encoding
from penchant.data.read import read_pairs
from penchant.data.records import Pair
from penchant.data.tokenise import Tokeniser


class Counting:
    """A tokenizer that counts its calls."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.calls = tokenizer, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.tokenizer(*args, **kwargs)


def chats(pairs: list[Pair]) -> list[Pair]:
    """The same pairs as messages."""

    def message(role: str, text: Any) -> Any:
        return ({"role": role, "content": text.strip()},)

    return [
        Pair(message("user", p.prompt), message("assistant", p.chosen),
             message("assistant", p.rejected), p.where)
        for p in pairs
    ]  # fmt: skip


@pytest.fixture
def tokenizer(byte_level_tokenizer: Callable[[str], Any]) -> Any:
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return Counting(byte_level_tokenizer(template))


@pytest.mark.parametrize("chat", [False, True])
def test_a_chunk_of_records_takes_one_call_and_each_gets_what_it_would_get_alone(
    tokenizer: Any, training_file: Path, monkeypatch: pytest.MonkeyPatch, chat: bool
) -> None:
    monkeypatch.setattr(encoding, "AT_ONCE", 10)
    pairs = read_pairs(training_file).records
    pairs = chats(pairs) if chat else pairs
    tokeniser = Tokeniser(tokenizer, max_length=128, max_prompt_length=96)
    together, _ = tokeniser.pairs(pairs)
    assert tokenizer.calls == 3  # 24 records
    assert together == [tokeniser.pairs([pair])[0][0] for pair in pairs]
    prompt = tokeniser.prompt_ids(pairs[0].prompt)
    assert together[0].prompt == prompt
    alone = [tokeniser.single(p.prompt, (p.chosen, p.rejected)) for p in pairs]
    assert [one.prompt for one in together] == [one.prompt for one in alone]
    assert [[*one.chosen] for one in together] == [[*one.completions[0]] for one in alone]


def test_a_record_that_the_template_refuses_is_dropped_and_the_others_stay(
    byte_level_tokenizer: Callable[[str], Any], training_file: Path
) -> None:
    template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for m in messages %}{{ m['content'] }}{% endfor %}<|im_end|>"
    )
    pairs = chats(read_pairs(training_file).records)
    system = ({"role": "system", "content": "Be brief."}, *pairs[1].prompt)
    refused: Any = Pair(system, pairs[1].chosen, pairs[1].rejected, "row 2")
    tokeniser = Tokeniser(byte_level_tokenizer(template), max_length=128, max_prompt_length=96)
    examples, report = tokeniser.pairs([pairs[0], refused, pairs[2]])
    assert [example.where for example in examples] == [pairs[0].where, pairs[2].where]
    (reason,) = report.dropped
    assert "no system" in reason
