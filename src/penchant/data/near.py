"""Texts that are nearly the same, by MinHash: the same words with few changed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from penchant.data.grouping import digest
from penchant.data.records import DataError

Signatures = npt.NDArray[np.uint32]

NUM_HASHES = 128
BATCH = 2048
# Words beyond tell no two texts apart that those before do not.
MAX_CHARACTERS = 20_000
SEED = 1
WORD = re.compile(r"\w+|[^\w\s]")


class NearGroups:
    """Puts texts together that are equal or nearly so, with those near to them, and so on.

    Args:
        similarity: the least share of words and neighbouring words that two near texts have in
            common (Jaccard), as estimated by `NUM_HASHES` hashes; 1 takes only equal texts.
    """

    def __init__(self, similarity: float = 0.7) -> None:
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
        from penchant.data.audit.neighbours import near_duplicates

        self._sign()
        self._signed = [np.concatenate(self._signed)]
        parts = [(self._signed[0], self.similarity)]
        return near_duplicates(parts, np.arange(count)).tolist()

    def _sign(self) -> None:
        if self._waiting:
            self._signed.append(signatures(self._waiting))
            self._waiting = []


def signatures(texts: Sequence[str], seed: int = SEED) -> Signatures:
    """MinHash signatures of texts, `[texts, NUM_HASHES]`.

    Raises:
        DataError: rensa, which computes them, is not installed.
    """
    try:
        import rensa
    except ModuleNotFoundError as error:
        raise DataError(
            "near-duplicates are found with rensa, which is not installed; "
            "pip install 'penchant[data]', or set similarity to 1"
        ) from error
    sets = [_tokens(text) for text in texts]
    matrix = rensa.RMinHash.digest_matrix_from_token_sets(sets, NUM_HASHES, seed)
    return np.array(matrix.to_rows(), np.uint32)


def _tokens(text: str) -> list[str]:
    words = WORD.findall(text.lower())
    return [*words, *(f"{one} {other}" for one, other in pairwise(words))] or [text]
