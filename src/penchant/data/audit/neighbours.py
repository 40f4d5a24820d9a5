"""Near duplicates by locality-sensitive hashing of MinHash signatures (Broder 1997).

Signatures stay on disk: a band of them is in memory at a time, and its equal rows are neighbours in
sorted order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from penchant.data.audit.facts import Signatures
from penchant.data.audit.finding import Indices, combined
from penchant.screen import track

# Texts of Jaccard similarity s share a band with probability 1 - (1 - s**4)**16: 99.8% at 0.75.
ROWS_A_BAND = 4
READ_ROWS = 1 << 16
COMPARED_PAIRS = 1 << 16


def near_duplicates(parts: Sequence[tuple[Signatures, float]], rows: Indices) -> Indices:
    """Group rows that are alike in every part.

    Args:
        parts: signatures with the least estimated Jaccard similarity, such as of prompts and of
            completions; candidates are those alike in all of them together.
        rows: those to group.

    Returns:
        For each of `rows` the first row of its group, which is itself where it is alone.
    """
    if not rows.size:
        return rows
    pairs = [np.zeros((0, 2), np.int64)]
    num_bands = parts[0][0].shape[1] // ROWS_A_BAND
    bands = _bands([signatures for signatures, _ in parts], rows)
    for keys in track(bands, "near duplicates", num_bands):
        pairs.append(_alike(parts, rows, _candidates(keys)))
    left, right = np.unique(np.concatenate(pairs), axis=0).T
    graph = coo_array((np.ones(len(left), np.bool_), (left, right)), shape=(len(rows), len(rows)))
    _, group = connected_components(graph, directed=False)
    _, first = np.unique(group, return_index=True)
    return rows[first[group]]


def similarity(left: Signatures, right: Signatures) -> NDArray[np.float64]:
    """Jaccard similarity of the sets behind signatures, estimated by the share of equal hashes."""
    return (left == right).mean(axis=1)


def _bands(signatures: Sequence[Signatures], rows: Indices) -> Iterator[NDArray[np.uint64]]:
    """A key a row for each band; equal bands have equal keys."""
    for start in range(0, signatures[0].shape[1], ROWS_A_BAND):
        keys = np.empty(len(rows), np.uint64)
        for at in range(0, len(rows), READ_ROWS):
            chosen = rows[at : at + READ_ROWS]
            # The signature of several texts together is the smaller value of each hash.
            bands = [part[chosen, start : start + ROWS_A_BAND] for part in signatures]
            keys[at : at + READ_ROWS] = combined(*np.minimum.reduce(bands).T)
        yield keys


def _candidates(keys: NDArray[np.uint64]) -> Indices:
    """Pairs of positions with equal keys: each with the first of its group and the one before it.

    All pairs of a large group would be too many; other bands bring other neighbours together.
    """
    order = np.argsort(keys, kind="stable")
    same = np.flatnonzero(keys[order][1:] == keys[order][:-1]) + 1
    starts = np.ones(len(keys), np.bool_)
    starts[same] = False
    first = np.maximum.accumulate(np.where(starts, np.arange(len(keys)), 0))
    pairs = np.concatenate(
        [
            np.stack([order[first[same]], order[same]], axis=1),
            np.stack([order[same - 1], order[same]], axis=1),
        ]
    )
    return np.unique(pairs, axis=0)


def _alike(parts: Sequence[tuple[Signatures, float]], rows: Indices, pairs: Indices) -> Indices:
    """Those pairs that are similar enough in every part."""
    kept = []
    for start in range(0, len(pairs), COMPARED_PAIRS):
        some = pairs[start : start + COMPARED_PAIRS]
        left, right = rows[some].T
        for signatures, least in parts:
            alike = similarity(signatures[left], signatures[right]) >= least
            some, left, right = some[alike], left[alike], right[alike]
        kept.append(some)
    return np.concatenate([np.zeros((0, 2), np.int64), *kept])
