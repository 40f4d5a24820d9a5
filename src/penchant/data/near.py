"""Texts that are nearly the same, by MinHash: the same words with few changed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from penchant.data.grouping import digest
from penchant.data.records import DataError

Signatures = npt.NDArray[np.uint32]

NUM_HASHES = 128
# Hashes a band: at a similarity of 0.7, one of 32 bands of 4 is equal with a chance above 0.999.
BAND = 4
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
        parents = list(range(count))
        if self.similarity < 1 and count:
            self._sign()
            self._signed = [np.concatenate(self._signed)]
            for one, other in near_pairs(self._signed[0], self.similarity):
                _unite(parents, one, other)
        return [_root(parents, number) for number in range(count)]

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


def near_pairs(signed: Signatures, similarity: float) -> Iterator[tuple[int, int]]:
    """Pairs of rows that are near, enough to connect all near ones; some more than once.

    Args:
        signed: `[texts, NUM_HASHES]`.
        similarity: the least share of equal hashes.
    """
    for start in range(0, signed.shape[1], BAND):
        band = np.ascontiguousarray(signed[:, start : start + BAND])
        keys = band.view(np.dtype((np.void, band.dtype.itemsize * band.shape[1]))).ravel()
        order = np.argsort(keys, kind="stable")
        same = keys[order[1:]] == keys[order[:-1]]
        # Neighbours in a run of equal bands; the first of the run stands for it as well.
        heads = np.maximum.accumulate(np.where(np.r_[True, ~same], np.arange(len(order)), 0))
        for left in (order[:-1][same], order[heads[1:][same]]):
            right = order[1:][same]
            near = (signed[left] == signed[right]).mean(1) >= similarity
            yield from zip(left[near].tolist(), right[near].tolist(), strict=True)


def _tokens(text: str) -> list[str]:
    words = WORD.findall(text.lower())
    return [*words, *(f"{one} {other}" for one, other in pairwise(words))] or [text]


def _root(parents: list[int], number: int) -> int:
    while parents[number] != number:
        parents[number] = number = parents[parents[number]]
    return number


def _unite(parents: list[int], one: int, other: int) -> None:
    first, second = sorted((_root(parents, one), _root(parents, other)))
    parents[second] = first
