"""Token ids on disk: the same examples and report, made once for the same content."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from penchant.data.batch import Turns
from penchant.data.prompts import read_prompts
from penchant.data.read import read_pairs
from penchant.data.read_labels import read_labels
from penchant.data.token_cache import cached
from penchant.data.tokenise import Tokeniser

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def tokeniser(byte_level_tokenizer: Callable[[str], Any]) -> Tokeniser:
    return Tokeniser(byte_level_tokenizer(TEMPLATE), max_length=96, max_prompt_length=24)


class Kind:
    """Tokenises and counts how often."""

    def __init__(self, tokenise: Callable[[Any], Any]) -> None:
        self.own, self.calls = tokenise, 0

    def tokenise(self, tokeniser: Tokeniser, records: Any) -> Any:
        self.calls += 1
        return self.own(records)


class Other(Kind):
    """Another kind of data."""


def turns(pairs: list[Any]) -> list[Any]:
    """Pairs of two turns each, with a message of the user's between them."""

    def said(text: str) -> Any:
        between = {"role": "user", "content": "And?"}
        answers = [{"role": "assistant", "content": part} for part in (text.strip(), "So.")]
        return (answers[0], between, answers[1])

    return [
        replace(p, prompt=({"role": "user", "content": p.prompt},), chosen=said(p.chosen),
                rejected=said(p.rejected), margin=float(i) if i % 2 else None)
        for i, p in enumerate(pairs)
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["pairs", "turns", "labels", "prompts"])
def test_examples_from_the_disk_are_those_that_were_made(
    tokeniser: Tokeniser, training_file: Path, tmp_path: Path, kind: str
) -> None:
    pairs = read_pairs(training_file).records
    records: Any = {
        "pairs": lambda: [*pairs[:3], replace(pairs[3], rejected=pairs[3].chosen), *pairs[4:]],
        "turns": lambda: turns(pairs),
        "labels": lambda: read_labels(training_file, unpair=True).records,
        "prompts": lambda: read_prompts(training_file).records,
    }[kind]()
    if kind != "turns":
        tokeniser.max_prompt_length = 12
    tokenise = {"labels": tokeniser.labels, "prompts": tokeniser.prompts}.get(kind, tokeniser.pairs)
    made = Kind(tokenise)
    first, second = (cached(tmp_path, records, tokeniser, made) for _ in range(2))
    assert made.calls == 1
    assert second[0] == first[0]
    assert asdict(second[1]) == asdict(first[1])
    assert second[1].prompts_cut > 0 or kind == "turns"
    if kind == "pairs":
        assert len(first[0]) == len(records) - 1  # one was dropped: the others keep their rows
    if kind == "turns":
        assert all(isinstance(one.chosen, Turns) for one in second[0])


def test_other_content_lengths_or_template_is_tokenised_again(
    tokeniser: Tokeniser,
    byte_level_tokenizer: Callable[[str], Any],
    training_file: Path,
    tmp_path: Path,
) -> None:
    pairs = read_pairs(training_file).records
    others = [
        (tokeniser, pairs, Kind),
        (tokeniser, [*pairs[1:], pairs[0]], Kind),
        (tokeniser, [replace(pairs[0], chosen=" yes indeed"), *pairs[1:]], Kind),
        (tokeniser, pairs, Other),
        (Tokeniser(tokeniser.tokenizer, max_length=95, max_prompt_length=24), pairs, Kind),
        (Tokeniser(tokeniser.tokenizer, max_length=96, max_prompt_length=24,
                   end_token_ids=[0]), pairs, Kind),
        (Tokeniser(byte_level_tokenizer(TEMPLATE + " "), max_length=96, max_prompt_length=24),
         pairs, Kind),
    ]  # fmt: skip
    for one, records, kind in others:
        made = kind(one.pairs)
        cached(tmp_path, records, one, made)
        assert made.calls == 1
    assert len(list(tmp_path.iterdir())) == len(others)


def test_a_file_that_cannot_be_read_is_made_again(
    tokeniser: Tokeniser, training_file: Path, tmp_path: Path
) -> None:
    pairs = read_pairs(training_file).records
    made = Kind(tokeniser.pairs)
    expected, _ = cached(tmp_path, pairs, tokeniser, made)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert cached(tmp_path, pairs, tokeniser, made)[0] == expected
    assert cached(tmp_path, pairs, tokeniser, made)[0] == expected
    assert made.calls == 2


def test_a_run_keeps_large_data_alone(
    tokeniser: Tokeniser, training_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from penchant.training import inputs
    from penchant.training.kinds import Pairs

    pairs = read_pairs(training_file).records
    expected, _ = inputs.tokenise(Pairs(), pairs, tokeniser, "training", tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(inputs, "CACHED_FROM", len(pairs))
    inputs.tokenise(Pairs(), pairs, tokeniser, "training", tmp_path)
    monkeypatch.setattr(tokeniser, "pairs", lambda _: pytest.fail("they are tokenised again"))
    assert inputs.tokenise(Pairs(), pairs, tokeniser, "training", tmp_path)[0] == expected


def test_where_nothing_can_be_kept_the_examples_are_made_all_the_same(
    tokeniser: Tokeniser,
    training_file: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("penchant"), "propagate", True)
    pairs = read_pairs(training_file).records
    expected, _ = tokeniser.pairs(pairs)
    taken = tmp_path / "tokens"
    taken.write_text("a file, not a folder")
    made, _ = cached(taken, pairs, tokeniser, Kind(tokeniser.pairs))
    assert made == expected
    assert f"token ids are not kept in {taken}" in caplog.text
