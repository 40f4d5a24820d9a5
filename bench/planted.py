"""Plant known faults into generated pairs, inspect them, and compare what is found with the truth.

    python bench/planted.py [--pairs 20000] [--seed 0]

Words are drawn from a Zipf law over 3,000 pseudo-words; a fifth of them has a quality, and of two
completions the one of the higher mean quality is chosen. Rows are then added or changed as `FAULTS`
says. The noise estimate is measured on sets of their own, with labels flipped at several rates.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from penchant.audit import inspect
from penchant.audit.report import Report

Row = dict[str, Any]

NUM_WORDS, INFORMATIVE = 3000, 0.2
SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
CHANGED_WORDS = 0.05
FLIP_RATES = (0.0, 0.1, 0.2, 0.3)
SHARE = 0.02  # of the pairs, for each fault


@dataclass
class Generator:
    """Draws texts and judges them."""

    random: np.random.Generator
    words: np.ndarray = field(init=False)
    quality: np.ndarray = field(init=False)
    chances: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        names = dict.fromkeys(
            "".join(self.random.choice(SYLLABLES, self.random.integers(2, 5)))
            for _ in range(3 * NUM_WORDS)
        )
        self.words = np.array(list(names)[:NUM_WORDS])
        size = len(self.words)
        self.quality = self.random.normal(size=size) * (self.random.random(size) < INFORMATIVE)
        self.chances = 1 / np.arange(1, size + 1)
        self.chances /= self.chances.sum()

    def draw(self, least: int, most: int) -> np.ndarray:
        """Numbers of words."""
        return self.random.choice(
            len(self.words), self.random.integers(least, most), p=self.chances
        )

    def text(self, numbers: np.ndarray) -> str:
        return " ".join(self.words[numbers]) + "."

    def pair(self, prompt: str | None = None) -> Row:
        """A prompt, and two completions in the order of their quality."""
        sides = sorted((self.draw(20, 60) for _ in range(2)), key=lambda n: -self.quality[n].mean())
        texts = map(self.text, sides)
        prompt = self.text(self.draw(8, 30)) if prompt is None else prompt
        return {"prompt": prompt, **dict(zip(("chosen", "rejected"), texts, strict=True))}

    def changed(self, text: str) -> str:
        """The text with 5% of its words, at least one, replaced by others."""
        words = text.split()
        count = max(1, round(CHANGED_WORDS * len(words)))
        for at in self.random.choice(len(words), count, replace=False):
            words[at] = str(self.random.choice(self.words))
        return " ".join(words)


@dataclass
class Planted:
    """Rows, and for each fault the indices of those that have it."""

    rows: list[Row]
    truth: dict[str, set[int]]
    held_out: list[Row]


def plant(num_pairs: int, seed: int) -> Planted:
    """Generate pairs with faults; later rows are the faulty ones of two."""
    make = Generator(np.random.default_rng(seed))
    count = round(SHARE * num_pairs)
    faulty: dict[str, list[Row]] = {
        "ties": [], "duplicates": [], "near-duplicates": [], "contradictions": [], "cycles": [],
        "leaks": [], "white-space": [],
    }  # fmt: skip
    clean = [make.pair() for _ in range(num_pairs - 9 * count)]
    originals = iter(clean)
    faulty["duplicates"] = [dict(next(originals)) for _ in range(count)]
    faulty["near-duplicates"] = [
        {name: make.changed(text) for name, text in next(originals).items()} for _ in range(count)
    ]
    for _ in range(count):
        row = make.pair()
        swapped = {"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"]}
        faulty["contradictions"] += [row, swapped]
    for _ in range(count // 3):
        prompt, a, b, c = (make.text(make.draw(20, 60)) for _ in range(4))
        for better, worse in ((a, b), (b, c), (c, a)):
            faulty["cycles"].append({"prompt": prompt, "chosen": better, "rejected": worse})
    held_out = [make.pair() for _ in range(count)]
    faulty["leaks"] = [make.pair(row["prompt"]) for row in held_out]
    for _ in range(count):
        row = make.pair()
        faulty["white-space"].append({**row, "rejected": "  ".join(row["chosen"].split()) + "\n"})
    # A tie has a layout of its own: all rows are written in it.
    rows = [_labelled(row, "a") for row in clean]
    truth: dict[str, set[int]] = {}
    for name, some in faulty.items():
        truth[name] = set(range(len(rows), len(rows) + len(some)))
        rows += [_labelled(row, "a") for row in some]
    truth["ties"] = set(range(len(rows), len(rows) + count))
    rows += [_labelled(make.pair(), "tie") for _ in range(count)]
    return Planted(rows, truth, held_out)


def _labelled(row: Row, label: str) -> Row:
    return {"prompt": row["prompt"], "completion_a": row["chosen"],
            "completion_b": row["rejected"], "label": label}  # fmt: skip


def length_biased(num_pairs: int, share: float, seed: int) -> list[Row]:
    """Pairs of which this share has the longer completion chosen."""
    make = Generator(np.random.default_rng(seed))
    rows = []
    while len(rows) < num_pairs:
        row = make.pair()
        shorter, longer = sorted((row["chosen"], row["rejected"]), key=len)
        if len(shorter) == len(longer):
            continue
        order = (longer, shorter) if make.random.random() < share else (shorter, longer)
        rows.append({"prompt": row["prompt"], "chosen": order[0], "rejected": order[1]})
    return rows


def flipped(num_pairs: int, rate: float, seed: int) -> tuple[list[Row], np.ndarray]:
    """Pairs with this share of the labels reversed, and which."""
    make = Generator(np.random.default_rng(seed))
    rows = [make.pair() for _ in range(num_pairs)]
    turned = np.random.default_rng(seed + 1).random(num_pairs) < rate
    for row, wrong in zip(rows, turned, strict=True):
        if wrong:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    return rows, turned


def write(rows: Iterable[Row], path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def scores(report: Report, name: str, truth: set[int]) -> tuple[float, float]:
    """Recall and precision of a finding."""
    finding = report.finding(name)
    found = set() if finding is None else set(finding.rows.tolist())
    hits = len(found & truth)
    return hits / len(truth), hits / max(len(found), 1)


def measure_faults(num_pairs: int, seed: int, folder: Path) -> None:
    planted = plant(num_pairs, seed)
    report = inspect(
        write(planted.rows, folder / "planted.jsonl"),
        eval_data=write(planted.held_out, folder / "held-out.jsonl"),
    )
    print(
        f"{len(planted.rows)} rows\n\n| Fault | Planted | Recall | Precision |\n|---|---|---|---|"
    )
    for name, truth in planted.truth.items():
        recall, precision = scores(report, name, truth)
        print(f"| {name} | {len(truth)} | {recall:.4f} | {precision:.4f} |")


def measure_noise(num_pairs: int, seed: int, folder: Path) -> None:
    print("\n| Flipped | Estimate | 95% interval | Rows named | Precision | Recall |")
    print("|---|---|---|---|---|---|")
    for rate in FLIP_RATES:
        rows, turned = flipped(num_pairs, rate, seed)
        report = inspect(write(rows, folder / "flipped.jsonl"), sample=num_pairs)
        probe, finding = report.probe, report.finding("label-noise")
        assert probe is not None and finding is not None
        hits = turned[finding.rows]
        print(
            f"| {turned.mean():.1%} | {probe.flip_rate:.1%} | {probe.low:.1%} to {probe.high:.1%} "
            f"| {len(hits)} | {hits.mean() if len(hits) else 1:.2f} "
            f"| {hits.sum() / max(turned.sum(), 1):.2f} |"
        )


def measure_length_bias(num_pairs: int, seed: int, folder: Path) -> None:
    print("\n| Longer chosen | Found | Length alone, held out | Reported |\n|---|---|---|---|")
    for share in (0.5, 0.6, 0.67, 0.8):
        report = inspect(write(length_biased(num_pairs, share, seed), folder / "biased.jsonl"))
        finding = report.finding("length-bias")
        cue = next(cue for cue in report.cues if cue.name == "length")
        found = None
        if finding is not None:
            longer, shorter = (finding.evidence[f"{one} chosen"] for one in ("longer", "shorter"))
            found = longer / (longer + shorter)
        print(
            f"| {share:.0%} | {'-' if found is None else f'{found:.1%}'} | {cue.accuracy:.1%} | "
            f"{'no' if finding is None else finding.severity} |"
        )


PARTS: dict[str, Callable[[int, int, Path], None]] = {
    "faults": measure_faults,
    "noise": measure_noise,
    "length": measure_length_bias,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=PARTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, part in PARTS.items():
            if options.only in (None, name):
                part(options.pairs, options.seed, Path(folder))


if __name__ == "__main__":
    main()
