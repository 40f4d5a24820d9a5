"""Prompts that are nearly those of held-out data, by MinHash."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from penchant.data.faults import ALIKE, Count, joined
from penchant.data.near import MAX_CHARACTERS, Signatures, near_duplicates, signatures
from penchant.data.records import Record, prompt_key


def near_to_others(own: Signatures, others: Signatures) -> NDArray[np.bool_]:
    """Which of some texts are near to one of the others, or to a text that is.

    Args:
        own, others: of distinct texts, `[texts, NUM_HASHES]`.
    """
    every = np.concatenate([others, own])
    group = near_duplicates([(every, ALIKE)], np.arange(len(every)))
    return np.asarray(group[len(others) :] < len(others))


def count_near_leaks(records: Sequence[Record], held_out: Sequence[Record]) -> Count:
    """Records with nearly a prompt that is held out, without those that have one exactly."""
    others = {prompt_key(record): joined(record.prompt) for record in held_out}
    keys = [prompt_key(record) for record in records]
    own = {k: joined(r.prompt) for k, r in zip(keys, records, strict=True) if k not in others}
    near: set[str] = set()
    if own:
        signed = (_sign_prompts(own.values()), _sign_prompts(others.values()))
        near = {key for key, hit in zip(own, near_to_others(*signed), strict=True) if hit}
    return Count(sum(key in near for key in keys), len(records), records[0].noun)


def _sign_prompts(prompts: Iterable[str]) -> Signatures:
    return signatures([prompt[:MAX_CHARACTERS] for prompt in prompts])
