"""Preferences as a graph: an edge from each chosen completion of a prompt to its rejected one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from penchant.data.near import combined


def opposed(edges: NDArray[Any]) -> NDArray[np.bool_]:
    """Which edges also occur the other way round.

    Args:
        edges: with the columns `prompt`, `chosen` and `rejected`, each a hash.
    """
    prompt, chosen, rejected = (edges[name] for name in ("prompt", "chosen", "rejected"))
    return np.isin(combined(prompt, chosen, rejected), combined(prompt, rejected, chosen))


def in_cycles(edges: NDArray[Any]) -> NDArray[np.bool_]:
    """Which edges lie on a cycle, such as A over B, B over C, C over A.

    An edge does when both its ends are in one strongly connected component.
    """
    if not len(edges):
        return np.zeros(0, np.bool_)
    ends = [combined(edges["prompt"], edges[side]) for side in ("chosen", "rejected")]
    _, node = np.unique(np.concatenate(ends), return_inverse=True)
    better, worse = node.reshape(2, len(edges))
    size = int(node.max()) + 1
    graph = coo_array((np.ones(len(edges), np.bool_), (better, worse)), shape=(size, size))
    _, component = connected_components(graph, directed=True, connection="strong")
    return np.asarray(component[better] == component[worse])
