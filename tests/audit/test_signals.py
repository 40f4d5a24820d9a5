"""Biases and noise are measured as they are, and said to be unknown where they cannot be."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penchant.audit import inspect
from penchant.audit.signals import language
from penchant.core.errors import ConfigError

Row = dict[str, Any]
Make = Callable[..., list[Row]]
GOOD, BAD = [f"good{n}" for n in range(40)], [f"bad{n}" for n in range(40)]


def learnable(count: int, flip: float, seed: int = 0) -> tuple[list[Row], list[int]]:
    """Pairs that words tell, a share of them reversed."""
    draw = random.Random(seed)
    rows, flipped = [], []
    for number in range(count):
        sides = []
        for share in (0.7, 0.3):
            words = [draw.choice(GOOD if draw.random() < share else BAD) for _ in range(20)]
            sides.append(" ".join(words))
        if draw.random() < flip:
            sides.reverse()
            flipped.append(number)
        rows.append({"prompt": f"prompt {number}", "chosen": sides[0], "rejected": sides[1]})
    return rows, flipped


@pytest.mark.parametrize("flip", [0.0, 0.1, 0.3])
def test_the_probe_finds_the_share_of_flipped_labels(flip: float) -> None:
    rows, flipped = learnable(2000, flip)
    report = inspect(rows)
    assert report.probe is not None
    assert report.probe.flip_rate == pytest.approx(len(flipped) / 2000, abs=0.05)
    assert report.probe.low <= report.probe.flip_rate <= report.probe.high


def test_the_rows_named_as_noise_are_mostly_the_flipped_ones() -> None:
    rows, flipped = learnable(2000, 0.2)
    finding = inspect(rows).finding("label-noise")
    assert finding is not None and finding.severity in ("warning", "error")
    named = set(finding.rows.tolist())
    assert len(named & set(flipped)) > 0.8 * len(named) > 0


def test_noise_is_unknown_where_no_probe_learns(make_pairs: Make) -> None:
    finding = inspect(make_pairs(600)).finding("label-noise")
    assert finding is not None and finding.severity == "note"
    assert "cannot tell" in finding.title and not finding.rows.size
    assert finding.evidence["high"] > 0.4


def test_a_known_rate_names_rows_where_the_probe_cannot_tell_how_many() -> None:
    rows, flipped = learnable(250, 0.3)
    unknown = inspect(rows).finding("label-noise")
    assert unknown is not None and "noise_rate" in unknown.remedy and not unknown.rows.size
    known = inspect(rows, noise_rate=0.3).finding("label-noise")
    assert known is not None and known.evidence["estimate"] == 0.3
    named = set(known.rows.tolist())
    assert len(named & set(flipped)) > 0.8 * len(named) > 0.5 * len(flipped)


def test_a_known_rate_asks_the_probe_also_where_there_are_votes() -> None:
    rows = [
        {**row, "agreement": 1.0 if number % 4 else 2 / 3}
        for number, row in enumerate(learnable(300, 0.3)[0])
    ]
    by_votes, by_rate = inspect(rows), inspect(rows, noise_rate=0.3)
    found = [report.finding("label-noise") for report in (by_votes, by_rate)]
    assert [one.evidence["from"] for one in found if one] == ["votes", "noise_rate"]


def test_unanimous_votes_are_no_finding(make_pairs: Make) -> None:
    assert (
        inspect([{**row, "agreement": 1.0} for row in make_pairs(60)]).finding("label-noise")
        is None
    )


@pytest.mark.parametrize("rate", [-0.1, 0.5, 1.0])
def test_an_impossible_rate_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match=r"noise_rate must be at least 0 and below 0\.5"):
        inspect(learnable(10, 0)[0], noise_rate=rate)


def test_a_length_rule_is_measured_and_its_surplus_evens_it_out(make_pairs: Make) -> None:
    rows = make_pairs(1000)
    for number, row in enumerate(rows):
        side = "rejected" if number % 10 < 3 else "chosen"
        row[side] += " And so it goes on."
    report = inspect(rows)
    bias = report.finding("length-bias")
    assert bias is not None and bias.severity == "warning"
    longer, shorter = bias.evidence["longer chosen"], bias.evidence["shorter chosen"]
    assert 0.6 < longer / (longer + shorter) < 0.75
    kept = [row for number, row in enumerate(rows) if number not in set(bias.rows.tolist())]
    signs = np.sign([len(row["chosen"]) - len(row["rejected"]) for row in kept])
    assert signs.sum() == 0


@pytest.mark.parametrize(
    ("cue", "before", "after"),
    [
        ("emoji", "", " 🎉"),
        ("refusal", "I'm sorry, but I can't help. ", ""),
        ("markdown", "**Yes**, ", ""),
        ("list", "- one\n- two\n", ""),
        ("exclamation", "", " Ho!"),
    ],
)
def test_a_cue_that_tells_the_label_is_named(
    cue: str, before: str, after: str, make_pairs: Make
) -> None:
    rows = make_pairs(200)
    for row in rows[::2]:
        row["rejected"] = before + row["rejected"] + after
    report = inspect(rows)
    found = next(one for one in report.cues if one.name == cue)
    assert found.favours == -1 and found.when_differs == 1
    assert found.accuracy == pytest.approx(0.75, abs=0.1)
    finding = report.finding(f"cue-{cue}")
    assert finding is not None and set(finding.rows.tolist()) == set(range(0, 200, 2))


def test_opening_words_are_learned_on_other_prompts(make_pairs: Make) -> None:
    rows = make_pairs(400)
    for row in rows:
        row["chosen"] = "Sure thing " + row["chosen"]
        row["rejected"] = "Well no " + row["rejected"]
    found = next(one for one in inspect(rows).cues if one.name == "opening words")
    assert found.accuracy == 1


def test_languages_are_told_and_pairs_of_two_are_named(make_pairs: Make) -> None:
    english = (
        "The weather is going to be fine tomorrow, and we will all walk along the river together."
    )
    german = "Das Wetter wird morgen schön, und wir gehen alle zusammen am Fluss entlang spazieren."
    assert (language(english), language(german), language("ok")) == ("en", "de", None)
    rows = [
        {"prompt": "p", "chosen": english, "rejected": english.replace("fine", "bad")},
        {"prompt": "q", "chosen": german, "rejected": english},
    ]
    finding = inspect(rows).finding("mixed-languages")
    assert finding is not None and finding.rows.tolist() == [1]


def test_what_a_model_would_cut_is_counted(make_pairs: Make, tiny_model_dir: Path) -> None:
    rows = make_pairs(30)
    rows[4]["prompt"] = "long " * 100
    rows[9]["chosen"] = "long " * 300
    report = inspect(rows, model=tiny_model_dir, max_length=1000, max_prompt_length=200)
    prompts, completions = map(report.finding, ("prompts-cut", "answers-cut"))
    assert prompts is not None and prompts.rows.tolist() == [4]
    assert completions is not None and completions.rows.tolist() == [9]
    assert report.tokens is not None and report.tokens.prompt.longest == 500  # a byte a token
