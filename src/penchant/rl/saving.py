"""Half-used rollouts in a checkpoint: ragged rows as a few flat tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from penchant.rl.rollout import Rollout

TOKENS = ("prompt", "completion")
VALUES = ("logprobs", "advantages", "ref_logprobs", "values", "returns")


def pack_rollouts(rollouts: Sequence[Rollout]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, and what is JSON."""
    tensors: dict[str, Tensor] = {}
    for name in TOKENS if rollouts else ():
        rows = [getattr(rollout, name) for rollout in rollouts]
        tensors[f"{name}_lengths"] = torch.tensor([len(row) for row in rows])
        tensors[name] = torch.tensor([token for row in rows for token in row])
    for name in VALUES:
        if rollouts and getattr(rollouts[0], name) is not None:
            tensors[name] = torch.cat([getattr(rollout, name) for rollout in rollouts])
    record = {"where": [r.where for r in rollouts], "number": [r.number for r in rollouts]}
    return tensors, record


def unpack_rollouts(tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> list[Rollout]:
    """The inverse of `pack_rollouts`."""
    if not record["where"]:
        return []
    lengths = {name: tensors[f"{name}_lengths"].tolist() for name in TOKENS}
    columns: dict[str, Any] = {
        name: [row.tolist() for row in tensors[name].split(lengths[name])] for name in TOKENS
    }
    columns |= {
        name: tensors[name].split(lengths["completion"]) for name in VALUES if name in tensors
    }
    rows = zip(*columns.values(), strict=True)
    names = zip(record["where"], record["number"], strict=True)
    return [
        Rollout(where=where, number=number, **dict(zip(columns, row, strict=True)))
        for row, (where, number) in zip(rows, names, strict=True)
    ]
