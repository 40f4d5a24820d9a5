"""Texts that are nearly the same, by MinHash: the same words with few changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from penchant.core.screen import track
from penchant.data.faults import ALIKE, Count, answers, joined, statement
from penchant.data.patterns import shingles
from penchant.data.records import DataError, Label, Record

Indices: TypeAlias = NDArray[np.int64]
Signatures: TypeAlias = NDArray[np.uint32]

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

NUM_HASHES = 64  # they estimate a similarity to within 0.05
# Words beyond tell no two texts apart that those before do not.
MAX_CHARACTERS = 20_000
SEED = 1
ABSENT = np.uint32(0xFFFFFFFF)  # in the signature of a text that a record does not have
# Of prompts and completions. A text with 5% of its words changed has about 0.85 of them in common;
# a short prompt with one changed word has half.
ALIKE_PROMPTS = 0.5


def signatures(texts: Sequence[str], seed: int = SEED) -> Signatures:
    """MinHash signatures of texts, `[texts, NUM_HASHES]`.

    Raises:
        DataError: rensa, which computes them, is not installed.
    """
    try:
        import rensa
    except ModuleNotFoundError as error:
        from penchant.core.commands import install

        raise DataError(
            "near-duplicates are found with rensa, which is not installed; "
            f"{install('data')}, or set similarity to 1"
        ) from error
    sets = [shingles(text) or [text] for text in texts]
    matrix = rensa.RMinHash.digest_matrix_from_token_sets(sets, NUM_HASHES, seed)
    return np.array(matrix.to_rows(), np.uint32)


def sign_records(records: Sequence[Record]) -> Signatures:
    """MinHash of prompts and completions, `[records, 3, NUM_HASHES]`.

    Of a label the second completion is lacking: it has the largest numbers.
    """
    signed = np.full((len(records), 3, NUM_HASHES), ABSENT)
    texts = ((record.prompt, *answers(record)) for record in records)
    for side, column in enumerate(zip(*texts, strict=True)):
        signed[:, side] = signatures([joined(text)[:MAX_CHARACTERS] for text in column])
    return signed


def near_repeats(signed: Signatures, desirable: NDArray[np.bool_], rows: Indices) -> Indices:
    """Those of some rows that are nearly equal to an earlier one of them.

    Labels of two verdicts do not repeat each other: a bad answer may be a light edit of a good one.

    Args:
        signed: as of `sign_records`.
        desirable: of each record that is signed; false for pairs.
        rows: indices, ascending; without those that are equal.
    """
    parts = [(signed[:, side], least) for side, least in enumerate((ALIKE_PROMPTS, ALIKE, ALIKE))]
    verdicts = (rows[desirable[rows]], rows[~desirable[rows]])
    return np.concatenate([own[near_duplicates(parts, own) != own] for own in verdicts])


def count_near_repeats(records: Sequence[Record]) -> Count:
    """Records nearly equal to an earlier one."""
    distinct = list({statement(record): record for record in records}.values())
    signed = sign_records(distinct)
    desirable = np.array([isinstance(one, Label) and one.desirable for one in distinct])
    num = len(near_repeats(signed, desirable, np.arange(len(distinct))))
    return Count(num, len(records), records[0].noun)


def combined(*columns: NDArray[Any]) -> NDArray[np.uint64]:
    """One 64-bit hash a row of several columns of unsigned integers."""
    key = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        key = (key ^ column.astype(np.uint64)) * MULTIPLIER
        key ^= key >> np.uint64(29)
    return key


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
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

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
