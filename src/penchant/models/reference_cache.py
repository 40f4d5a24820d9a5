"""Log-probabilities under the reference, computed once and kept on disk."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import xxhash

from penchant.models.reference import Progress, Reference, completion_keys
from penchant.models.scoring import segment_sums

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from penchant.data.batch import Group, TokenBatch
    from penchant.models.scoring import Scorer


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
            need it.
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
        self, groups: Sequence[Group], scorer: Scorer, *, batch_size: int, progress: Progress
    ) -> int:
        """Look up every completion and score the missing ones; returns how many were missing."""
        with closing(sqlite3.connect(self.path, timeout=60)) as database:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("CREATE TABLE IF NOT EXISTS logprobs (key BLOB PRIMARY KEY, sum REAL)")
            self._values.update(database.execute("SELECT key, sum FROM logprobs"))
            missing = [g for g in groups if any(k not in self._values for k in completion_keys(g))]
            starts = range(0, len(missing), batch_size)
            for start in progress(starts, "reference log-probs"):
                part = missing[start : start + batch_size]
                with torch.no_grad():
                    batch = scorer.batch(part)
                    sums = segment_sums(batch, scorer(batch)).tolist()
                keys = [key for group in part for key in completion_keys(group)]
                rows = list(zip(keys, sums, strict=True))
                with database:  # one transaction
                    database.executemany("INSERT OR REPLACE INTO logprobs VALUES (?, ?)", rows)
                self._values.update(rows)
        return sum(len(group.completions) for group in missing)

    def active(self) -> AbstractContextManager[Scorer | None]:
        return nullcontext() if self._live is None else self._live.active()

    def sums(
        self, groups: Sequence[Group], batch: TokenBatch, weights: Tensor | None = None
    ) -> Tensor:
        assert weights is None, "the configuration refuses a cache of weighted sums"
        values = [self._values[key] for group in groups for key in completion_keys(group)]
        return torch.tensor(values, device=batch.input_ids.device)


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
        flat = parameter.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(memoryview(flat.numpy()))
    return digest.hexdigest()
