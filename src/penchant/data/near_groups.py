"""Texts that belong together because they are nearly the same, such as prompts that are divided."""

from __future__ import annotations

import numpy as np

from penchant.data.faults import ALIKE
from penchant.data.grouping import digest
from penchant.data.near import MAX_CHARACTERS, Signatures, near_duplicates, signatures

BATCH = 2048


class NearGroups:
    """Puts texts together that are equal or nearly so, with those near to them, and so on.

    Args:
        similarity: the least share of words and neighbouring words that two near texts have in
            common (Jaccard), as estimated by `NUM_HASHES` hashes; 1 takes only equal texts.
    """

    def __init__(self, similarity: float = ALIKE) -> None:
        self.similarity = similarity
        self._numbers: dict[bytes, int] = {}
        self._taken = 0
        self._waiting: list[str] = []
        self._signed: list[Signatures] = []

    def add(self, text: str) -> int:
        """Take a text; equal texts have one number, counted from 0."""
        key = digest(text)
        number = self._numbers.setdefault(key, len(self._numbers))
        if self.similarity < 1 and number == self._taken:
            self._taken += 1
            self._waiting.append(text[:MAX_CHARACTERS])
            if len(self._waiting) >= BATCH:
                self._sign()
        return number

    def groups(self) -> list[int]:
        """For each number that `add` gave, the least number in its group."""
        count = len(self._numbers)
        if self.similarity == 1 or not count:
            return list(range(count))

        self._sign()
        self._signed = [np.concatenate(self._signed)]
        parts = [(self._signed[0], self.similarity)]
        return near_duplicates(parts, np.arange(count)).tolist()

    def _sign(self) -> None:
        if self._waiting:
            self._signed.append(signatures(self._waiting))
            self._waiting = []
