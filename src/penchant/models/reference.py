"""Log-probabilities under the reference: a switched-off adapter, a frozen copy, or a disk cache."""

from __future__ import annotations

import copy
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
import xxhash
from peft import PeftModel

from penchant.data.batch import Group, TokenBatch
from penchant.models.load import weights_fingerprint
from penchant.models.scoring import Scorer, completion_sums

if TYPE_CHECKING:
    from torch import Tensor

# Part of every cache key: raise it when the layout or the arithmetic changes what is stored.
LAYOUT_VERSION = 1


class Progress(Protocol):
    """Wraps an iterable in a progress bar."""

    def __call__(self, items: Iterable[int], description: str) -> Iterable[int]: ...


class Reference(Protocol):
    """Where reference log-probabilities come from."""

    kind: str

    def sums(self, groups: Sequence[Group], batch: TokenBatch) -> Tensor:
        """`[completions]`: summed log-probs of the completions of `groups`, laid out in `batch`."""

    def active(self) -> AbstractContextManager[Scorer | None]:
        """The reference as a scorer for a while; None where no reference model is held."""


class AdapterReference:
    """The policy's own weights with the adapter switched off: no second model."""

    kind = "adapter"

    def __init__(self, policy: Scorer) -> None:
        assert isinstance(policy.model, PeftModel)
        self._policy = policy
        self._adapted: PeftModel = policy.model

    @contextmanager
    def active(self) -> Iterator[Scorer]:
        was_training = self._policy.training
        self._policy.eval()
        with self._adapted.disable_adapter():
            yield self._policy
        self._policy.train(was_training)

    @torch.no_grad()
    def sums(self, groups: Sequence[Group], batch: TokenBatch) -> Tensor:
        with self.active() as scorer:
            return completion_sums(batch, scorer(batch))


class CopyReference:
    """A second model, frozen."""

    kind = "copy"

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer.eval().requires_grad_(False)

    @contextmanager
    def active(self) -> Iterator[Scorer]:
        yield self._scorer

    @torch.no_grad()
    def sums(self, groups: Sequence[Group], batch: TokenBatch) -> Tensor:
        if self._scorer.plan.packed != (batch.segments is not None):
            batch = self._scorer.batch(groups)
        return completion_sums(batch, self._scorer(batch))


class CachedReference:
    """Log-probs computed once and kept on disk: no reference model in memory while training.

    One SQLite file a reference: its transactions survive a kill, and several runs can share it.
    The file is named by the reference's weights and precision; a row's key covers the layout's
    version, the token ids and where the completion (the loss mask) begins.
    """

    kind = "cache"

    def __init__(self, folder: Path, model: torch.nn.Module, precision: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
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
            missing = [g for g in groups if any(k not in self._values for k in _keys(g))]
            starts = range(0, len(missing), batch_size)
            for start in progress(starts, "reference log-probs"):
                part = missing[start : start + batch_size]
                with torch.no_grad():
                    batch = scorer.batch(part)
                    sums = completion_sums(batch, scorer(batch)).tolist()
                keys = [key for group in part for key in _keys(group)]
                rows = list(zip(keys, sums, strict=True))
                with database:  # one transaction
                    database.executemany("INSERT OR REPLACE INTO logprobs VALUES (?, ?)", rows)
                self._values.update(rows)
        return sum(len(group.completions) for group in missing)

    @contextmanager
    def active(self) -> Iterator[None]:
        yield None

    def sums(self, groups: Sequence[Group], batch: TokenBatch) -> Tensor:
        values = [self._values[key] for group in groups for key in _keys(group)]
        return torch.tensor(values, device=batch.input_ids.device)


def _keys(group: Group) -> list[bytes]:
    prompt = xxhash.xxh3_128(f"layout {LAYOUT_VERSION} prompt {list(group.prompt)}".encode())
    keys = []
    for completion in group.completions:
        digest = prompt.copy()
        digest.update(f"completion {list(completion)}".encode())
        keys.append(digest.digest())
    return keys


def frozen_copy(policy: Scorer) -> CopyReference:
    """A copy of the policy as it is now."""
    return CopyReference(copy.deepcopy(policy))
