"""Turn pairs into labels and labels into pairs, in memory or from file to file."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

from penchant.atomic import write_atomically
from penchant.data.messages import contents
from penchant.data.read import OtherKindError, read_labels, read_pairs
from penchant.data.records import DataError, Label, Pair, counted, prompt_key


@dataclass(frozen=True)
class Conversion:
    """What `convert` did.

    Args:
        read: what was read and refused, in the words of `summary()` of the data.
        written: how many records of which kind.
        alone: labels that are in no pair.
        output: the file that was written.
    """

    read: str
    written: str
    alone: int
    output: Path

    def summary(self) -> str:
        """Say in a few lines what was read, written and left out."""
        left_out = (
            f"; {counted(self.alone, 'label')} left out, without a partner: a completion of the "
            "other class for the same prompt"
        )
        return f"{self.read}\nwrote {self.written} to {self.output}{left_out if self.alone else ''}"


def pairs_to_labels(pairs: Iterable[Pair]) -> list[Label]:
    """Judge both completions of every pair: two adjacent labels, the desirable one first.

    Args:
        pairs: any; their margins and agreements have no place in labels.

    Returns:
        Twice as many labels.
    """
    return [label for pair in pairs for label in pair.labels()]


def labels_to_pairs(labels: Iterable[Label]) -> tuple[list[Pair], int]:
    """Pair each desirable completion with each undesirable one of the same prompt.

    Args:
        labels: any; a completion that was judged both ways is not paired with itself.

    Returns:
        The pairs, by the first occurrence of their prompt and then in the order of the labels;
        and how many labels are in no pair.
    """
    by_prompt: dict[str, list[Label]] = defaultdict(list)
    for label in labels:
        by_prompt[prompt_key(label)].append(label)
    pairs: list[Pair] = []
    alone = 0
    for group in by_prompt.values():
        desirable = [label for label in group if label.desirable]
        undesirable = [label for label in group if not label.desirable]
        matches = [
            (good, bad)
            for good, bad in product(desirable, undesirable)
            if contents(good.completion) != contents(bad.completion)
        ]
        pairs += [_pair(good, bad) for good, bad in matches]
        alone += len(group) - len({id(label) for match in matches for label in match})
    return pairs, alone


def convert(
    source: str | Path,
    to: Literal["labels", "pairs"],
    output: Path,
    *,
    split: str = "train",
    strict: bool = False,
) -> Conversion:
    """Read one kind of records and write the other, as JSON Lines in the canonical layout.

    Args:
        source: a file, a folder written by `Dataset.save_to_disk`, or an id on the hub.
        to: what to write; the source holds the other.
        output: a new `.jsonl` file; it is there whole or not at all.
        split: which split to take, where the source has several.
        strict: raise when any row is refused, instead of counting it.

    Returns:
        What was read, written and left out.

    Raises:
        DataError: `output` exists or cannot be written, the source cannot be read, holds what
            was asked for already, or has no two labels that make a pair.
    """
    _require_new(output)
    try:
        if to == "labels":
            found = read_pairs(source, strict=strict, split=split)
            rows, alone = [_label_row(label) for label in pairs_to_labels(found.pairs)], 0
            read = found.summary()
        else:
            judged = read_labels(source, strict=strict, split=split)
            pairs, alone = labels_to_pairs(judged.labels)
            rows, read = [_pair_row(pair) for pair in pairs], judged.summary()
    except OtherKindError as error:
        raise DataError(f"{source} holds {to} already; there is nothing to convert") from error
    if not rows:
        raise DataError(
            f"no prompt of {source} has both a desirable and an undesirable completion, so no "
            "pair can be made; train on the labels with method kto"
        )
    _write(output, rows)
    return Conversion(read, counted(len(rows), to.removesuffix("s")), alone, output)


def _pair(good: Label, bad: Label) -> Pair:
    where = good.where if good.where == bad.where else f"{good.where} and {bad.where}"
    return Pair(good.prompt, good.completion, bad.completion, where)


def _label_row(label: Label) -> dict[str, object]:
    return {"prompt": label.prompt, "completion": label.completion, "label": label.desirable}


def _pair_row(pair: Pair) -> dict[str, object]:
    return {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}


def _require_new(output: Path) -> None:
    if output.suffix != ".jsonl":
        raise DataError(f"{output} is written as JSON Lines; give output a name in .jsonl")
    if output.exists():
        raise DataError(f"{output} exists and is not overwritten; give output another name")
    if not output.parent.is_dir():
        raise DataError(f"the folder {output.parent} does not exist; create it, or set output")


def _write(output: Path, rows: Sequence[dict[str, object]]) -> None:
    try:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomically(output, text)
    except OSError as error:
        raise DataError(f"cannot write {output}: {error.strerror}; set output") from error
