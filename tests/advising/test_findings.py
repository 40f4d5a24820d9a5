"""What is measured in the data is what is there."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from penchant.advising.advice import Advice
from penchant.advising.findings import Findings, find
from penchant.data.lengths import Cut, Percentiles, Sample, TokenLengths, choose_lengths
from penchant.data.noise import measure_noise
from penchant.data.quality import LengthBias
from penchant.data.read import read_pairs
from penchant.data.read_labels import read_labels

NONE = Percentiles(1, 1, 1, 1)
TOKENS = TokenLengths(
    1, 0, NONE, NONE, NONE, cut=Cut(64, 32, 0, 0, 0), cut_by_default=Cut(64, 32, 0, 0, 0)
)


def found(rows: list[dict[str, Any]]) -> Findings:
    return find(read_pairs(rows), TOKENS)


def test_votes_of_three_give_back_the_error_they_were_drawn_with() -> None:
    draw = random.Random(0)
    agreements = []
    wrong = 0
    for _ in range(20_000):
        votes = [draw.random() >= 0.2 for _ in range(3)]
        majority = sum(votes) >= 2
        wrong += not majority
        agreements.append(votes.count(majority) / 3)
    noise = measure_noise(agreements)
    assert noise is not None and noise.votes == 3
    assert noise.vote_error == pytest.approx(0.2, abs=0.01)
    assert noise.flip_probability == pytest.approx(wrong / 20_000, abs=0.01)


def test_hand_worked_noise_of_three_votes() -> None:
    # d = (1/4)(1/3) = 1/12 = e(1 - e), so e = (1 - sqrt(1 - 4/12)) / 2; flipped: e^2 (3 - 2e)
    noise = measure_noise([1, 1, 1, 2 / 3])
    assert noise is not None
    error = (1 - (1 - 4 / 12) ** 0.5) / 2
    assert noise.vote_error == pytest.approx(error)
    assert noise.flip_probability == pytest.approx(error**2 * (3 - 2 * error))
    assert (noise.num_split, noise.num_rated, noise.mean_agreement) == (1, 4, 11 / 12)


@pytest.mark.parametrize("votes", [2, 3, 4, 5, 7])
def test_error_stays_within_bounds_however_split_the_votes_are(votes: int) -> None:
    for agreeing in range(votes + 1):
        noise = measure_noise([agreeing / votes, 1.0])
        assert noise is not None
        assert 0 <= noise.flip_probability <= noise.vote_error <= 0.5


def test_unanimous_votes_have_no_error_and_no_votes_say_nothing() -> None:
    noise = measure_noise([1.0] * 50)
    assert noise is not None and noise.vote_error == noise.flip_probability == 0
    assert measure_noise([]) is None


@pytest.mark.parametrize(
    ("counts", "accuracy", "biased"),
    [
        ((90, 10, 0), 0.9, True),
        ((10, 90, 0), 0.9, True),
        ((50, 50, 0), 0.5, False),
        ((6, 4, 0), 0.6, False),  # ten pairs may well do so by chance
        ((0, 0, 10), 0.5, False),
        ((60, 20, 20), 0.7, True),
    ],
)
def test_length_bias_is_the_accuracy_of_a_rule_that_reads_nothing(
    counts: tuple[int, int, int], accuracy: float, biased: bool
) -> None:
    bias = LengthBias(*counts)
    assert bias.accuracy == pytest.approx(accuracy)
    assert bias.biased is biased


def test_pairs_that_contradict_each_other_are_counted_and_are_noise() -> None:
    rows = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(6)]
    rows += [{"prompt": f"p{i}", "chosen": "b", "rejected": "a"} for i in range(2)]
    findings = found(rows)
    assert findings.num_contradicted == 4
    assert findings.signal == "coin toss"
    assert found(rows[:6]).signal == "unknown"


def test_labels_that_share_a_prompt_could_be_pairs() -> None:
    rows = [
        {"prompt": "p", "completion": f"c{i}", "label": label}
        for i, label in enumerate([True, True, False, False, False])
    ]
    rows.append({"prompt": "q", "completion": "c", "label": True})
    findings = find(read_labels(rows), TOKENS)
    assert (findings.kind, findings.num_possible_pairs, findings.num_desirable) == ("labels", 6, 3)


def test_lengths_cover_the_data_in_steps_of_64_within_the_context() -> None:
    rows = [(100, (40, 50))] * 99 + [(900, (10, 10))]
    sample = Sample(rows, 0)
    assert choose_lengths(sample, 8192, None, None) == (192, 128)
    assert sample.cut(192, 128).records == 0.01
    # 150 tokens do not fit 128: completions keep half of it
    assert choose_lengths(sample, 128, None, None) == (128, 64)
    assert choose_lengths(sample, 8192, 96, None) == (96, 48)
    assert choose_lengths(sample, 8192, None, 500) == (564, 500)


@pytest.mark.parametrize("seed", range(20))
def test_lengths_leave_room_for_completions_whatever_the_data(seed: int) -> None:
    draw = random.Random(seed)
    rows = [(draw.randint(1, 400), (draw.randint(1, 400),)) for _ in range(draw.randint(1, 60))]
    for context in (None, 2, 60, 300):
        for given in (None, 2, 70):
            length, prompt = choose_lengths(Sample(rows, 0), context, given, None)
            assert 1 <= prompt < length
            assert given or context is None or length <= context


def test_numbers_of_real_votes_are_right(shared: Path, tiny_model_dir: Path) -> None:
    from penchant.advising import advise

    file = shared / "data" / "pandalm.jsonl"
    if not file.exists():
        pytest.skip("needs ../shared/data/pandalm.jsonl")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    kept = [row for row in rows if row["label"] != "tie"]
    agreeing = [row["votes"].count(row["label"]) for row in kept]
    gaps = [
        (len(row["completion_a"]) - len(row["completion_b"])) * (1 if row["label"] == "a" else -1)
        for row in kept
    ]
    advice: Advice = advise(data=file, model=tiny_model_dir, memory="4GiB")
    findings = advice.findings
    assert (findings.num_records, findings.num_ties) == (len(kept), len(rows) - len(kept))
    assert findings.num_prompts == len({row["prompt"] for row in kept})
    noise, length = findings.noise, findings.length
    assert noise is not None and length is not None
    assert (noise.num_rated, noise.votes) == (len(kept), 3)
    assert noise.num_split == sum(count < 3 for count in agreeing)
    assert noise.mean_agreement == pytest.approx(sum(agreeing) / 3 / len(kept))
    assert length.longer_chosen == sum(gap > 0 for gap in gaps)
    assert length.shorter_chosen == sum(gap < 0 for gap in gaps)
    # The tiny model's tokens are bytes; the end token is one more.
    prompts = sorted(len(row["prompt"].encode()) for row in kept)
    assert findings.tokens.prompt.longest == prompts[-1]
    assert findings.tokens.prompt.p50 == prompts[(len(prompts) - 1) // 2]
    longest = max(len(row[f"completion_{side}"].encode()) for row in kept for side in "ab")
    assert findings.tokens.completion.longest == longest + 1
