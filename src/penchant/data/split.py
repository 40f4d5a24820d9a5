"""Divide records between training and evaluation without putting one prompt on both sides."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from penchant.data.records import DataError, Record, counted, prompt_key

R = TypeVar("R", bound=Record)


def split_by_prompt(
    records: Sequence[R], train_fraction: float, seed: int
) -> tuple[list[R], list[R]]:
    """Divide pairs or labels so that every prompt is wholly on one side.

    Prompts are shuffled and fill the training side up to the target; single prompts are then
    added or exchanged while that brings the number of records nearer to it.

    Args:
        records: what to divide.
        train_fraction: the share of records (not of prompts) for training, above 0 and below 1.
        seed: the same seed gives the same division on every machine.

    Returns:
        The training and the evaluation records, each in the order given; neither is empty.

    Raises:
        ValueError: when the fraction is out of range.
        DataError: when there are fewer than two prompts.
    """
    if not 0 < train_fraction < 1:
        raise ValueError(
            f"train_fraction must be above 0 and below 1, got {train_fraction}; "
            "0.9 keeps a tenth for evaluation"
        )
    keys = [prompt_key(record) for record in records]
    sizes: dict[str, int] = {}
    for key in keys:
        sizes[key] = sizes.get(key, 0) + 1
    if len(sizes) < 2:
        prompts = counted(len(sizes), "distinct prompt")
        raise DataError(
            f"cannot split {counted(len(records), 'example')} with {prompts}: a prompt goes "
            "wholly to one side, so at least two are needed; give separate evaluation data"
        )
    order = list(sizes)
    random.Random(seed).shuffle(order)
    train = _choose(order, sizes, target=train_fraction * len(records))
    return (
        [record for record, key in zip(records, keys, strict=True) if key in train],
        [record for record, key in zip(records, keys, strict=True) if key not in train],
    )


def _choose(order: list[str], sizes: dict[str, int], target: float) -> set[str]:
    """Pick prompts whose records add up to nearly `target`; neither side stays empty."""
    train: dict[str, None] = {}
    filled = 0
    for key in order:
        if filled + sizes[key] <= target and len(train) < len(order) - 1:
            train[key] = None
            filled += sizes[key]
    if not train:
        smallest = min(order, key=sizes.__getitem__)
        train[smallest] = None
        filled = sizes[smallest]
    while step := _best_step(order, sizes, train, target - filled):
        removed, added = step
        if removed is not None:
            del train[removed]
            filled -= sizes[removed]
        train[added] = None
        filled += sizes[added]
    return set(train)


def _best_step(
    order: list[str], sizes: dict[str, int], train: dict[str, None], shortfall: float
) -> tuple[str | None, str] | None:
    """Find the addition or exchange of one prompt that most reduces `shortfall`, if any does."""
    # Prompts of one size are interchangeable here: the few distinct sizes are all that is tried.
    leaving: dict[int, str | None] = {sizes[key]: key for key in reversed(order) if key in train}
    entering = {sizes[key]: key for key in reversed(order) if key not in train}
    if len(train) < len(order) - 1:
        leaving[0] = None
    best: tuple[str | None, str] | None = None
    nearest = abs(shortfall)
    for size_out, key_out in leaving.items():
        for size_in, key_in in entering.items():
            distance = abs(shortfall - (size_in - size_out))
            if distance < nearest:
                best, nearest = (key_out, key_in), distance
    return best
