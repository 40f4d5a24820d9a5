"""Log-probabilities under the reference, computed once and kept on disk."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import xxhash

from penchant.core.machine import to_device
from penchant.core.team import ALONE, Team
from penchant.data.batch import segment_sums
from penchant.models.reference import Progress, Reference, completion_keys
from penchant.models.sharding import whole

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from penchant.data.batch import Group, TokenBatch
    from penchant.models.scoring import Scorer

SELECT = "SELECT key, sum FROM logprobs"
INSERT = "INSERT OR REPLACE INTO logprobs VALUES (?, ?)"
# A kill loses no more than what was scored in this time. A transaction waits for the disk, some
# 15 ms, which small batches are not to do each.
KEEP_SECONDS = 0.5


class CachedReference:
    """Log-probs computed once and kept on disk: no reference model in memory while training.

    One SQLite file a reference: its transactions survive a kill, and several runs can share it.
    The file is named by the reference's weights and precision; a row's key covers the layout's
    version, the token ids and the loss mask: where the completion begins, and which of its tokens
    count where it has several turns.

    Args:
        folder: of the cache.
        model: the reference.
        precision: what else the log-probs depend on.
        live: the same reference in memory, where it costs nothing to keep: exact comparisons
            need it, and it scores what the cache was not filled with.
    """

    kind = "cache"

    def __init__(
        self, folder: Path, model: PreTrainedModel, precision: str, live: Reference | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._live = live
        self.path = folder / f"{weights_fingerprint(model)}-{precision}.sqlite"
        self._values: dict[bytes, float] = {}

    def fill(
        self,
        groups: Sequence[Group],
        scorer: Scorer,
        *,
        batch_size: int,
        progress: Progress,
        team: Team = ALONE,
    ) -> int:
        """Look up every completion and score the missing ones; returns how many were missing.

        Each process scores its share, and the leader writes what all of them know then.
        """
        with closing(self._open()) if team.leads else nullcontext() as database:
            saved = {} if database is None else dict(database.execute(SELECT))
            self._values.update(team.agree(saved))
            missing = [g for g in groups if any(k not in self._values for k in completion_keys(g))]
            rounds = team.rounds(range(0, len(missing), batch_size))
            pending: list[tuple[bytes, float]] = []
            kept = time.monotonic()
            for i in progress(range(len(rounds)), "reference log-probs"):
                start, counts = rounds[i]
                part = missing[start : start + batch_size]
                with torch.no_grad():
                    batch = scorer.batch(part)
                    sums = segment_sums(batch, scorer(batch)).tolist()
                keys = [key for group in part for key in completion_keys(group)]
                own = list(zip(keys, sums, strict=True)) if counts else []
                rows = [row for some in team.gather(own) for row in some]
                self._values.update(rows)
                pending += rows
                if i == len(rounds) - 1 or time.monotonic() - kept > KEEP_SECONDS:
                    if database is not None:
                        with database:  # one transaction
                            database.executemany(INSERT, pending)
                    pending, kept = [], time.monotonic()
        return sum(len(group.completions) for group in missing)

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.path, timeout=60)
        # Not WAL: its index lies in the memory of one machine, and nodes may share the folder.
        database.execute("PRAGMA journal_mode = DELETE")
        database.execute("CREATE TABLE IF NOT EXISTS logprobs (key BLOB PRIMARY KEY, sum REAL)")
        return database

    def active(self) -> AbstractContextManager[Scorer | None]:
        return nullcontext() if self._live is None else self._live.active()

    def sums(
        self, groups: Sequence[Group], batch: TokenBatch, weights: Tensor | None = None
    ) -> Tensor:
        assert weights is None, "the configuration refuses a cache of weighted sums"
        keys = [key for group in groups for key in completion_keys(group)]
        if any(key not in self._values for key in keys):  # answers that were sampled since
            assert self._live is not None, "a cache knows every completion that it was filled with"
            return self._live.sums(groups, batch)
        values = [self._values[key] for key in keys]
        return to_device([torch.tensor(values)], batch.input_ids.device)[0]


# Of a model's configuration: what does not change its log-probs.
INCIDENTAL = {
    "_name_or_path",
    "architectures",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "use_cache",
}


def weights_fingerprint(model: PreTrainedModel) -> str:
    """Hex digest of the architecture and of every parameter's name, dtype and values.

    A fresh adapter changes nothing.
    """
    settings = {k: v for k, v in model.config.to_dict().items() if k not in INCIDENTAL}
    digest = xxhash.xxh3_128(json.dumps(settings, sort_keys=True, default=str).encode())
    base = {
        name.replace(".base_layer.", "."): parameter
        for name, parameter in model.state_dict().items()
        if ".lora_" not in name
    }
    for name, parameter in sorted(base.items()):
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        flat: Any = whole(parameter).flatten().view(torch.uint8)
        digest.update(memoryview(flat.numpy()))
    return digest.hexdigest()
