"""Log-probabilities under the reference: a switched-off adapter or a frozen copy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch
import xxhash
from peft import PeftModel

from penchant.core.machine import to_device
from penchant.data.batch import Group, TokenBatch, Turns, segment_sums, trained_spans
from penchant.models.scoring import Scorer

if TYPE_CHECKING:
    from torch import Tensor

# Part of every cache key: raise it when the layout or the arithmetic changes what is stored.
LAYOUT_VERSION = 2


class Progress(Protocol):
    """Wraps an iterable in a progress bar."""

    def __call__(self, items: Iterable[int], description: str) -> Iterable[int]: ...


class Reference(Protocol):
    """Where reference log-probabilities come from."""

    kind: str

    def sums(
        self, groups: Sequence[Group], batch: TokenBatch, weights: Tensor | None = None
    ) -> Tensor:
        """`[completions]`: summed log-probs of the completions of `groups`, laid out in `batch`.

        Args:
            weights: `[N]`, of each token; default: all 1.
        """

    def active(self) -> AbstractContextManager[Scorer | None]:
        """The reference as a scorer for a while; None where no reference model is held."""


class SameBackbone(ABC):
    """A reference that is the policy's own model, under another adapter or none."""

    @abstractmethod
    def active(self) -> AbstractContextManager[Scorer]:
        """The policy's scorer as that model, for a while."""

    @torch.no_grad()
    def sums(
        self, groups: Sequence[Group], batch: TokenBatch, weights: Tensor | None = None
    ) -> Tensor:
        """`[completions]`: summed log-probs."""
        with self.active() as scorer:
            return weighted_sums(batch, scorer(batch), weights)


class AdapterReference(SameBackbone):
    """The policy's own weights with the adapter switched off: no second model."""

    kind = "adapter"

    def __init__(self, policy: Scorer) -> None:
        assert isinstance(policy.model, PeftModel)
        self._policy = policy
        self._adapted: PeftModel = policy.model
        self._switches: list[Any] = [
            module for module in policy.modules() if hasattr(module, "_disable_adapters")
        ]

    @contextmanager
    def active(self) -> Iterator[Scorer]:
        with self._policy.evaluating(), self._switched_off():
            yield self._policy

    @contextmanager
    def _switched_off(self) -> Iterator[None]:
        """As PEFT's `disable_adapter`, which walks the whole model twice and turns gradients off.

        Its layers read the same attribute; adapters without such layers are left to PEFT.
        """
        if not self._switches:
            with self._adapted.disable_adapter():
                yield
            return
        before = [switch._disable_adapters for switch in self._switches]
        for switch in self._switches:
            switch._disable_adapters = True
        try:
            yield
        finally:
            for switch, disabled in zip(self._switches, before, strict=True):
                switch._disable_adapters = disabled


class KeptSums:
    """A reference that is asked once for each completion: later epochs look its sums up.

    They belong to a checkpoint: asked again after a resume, the reference would see completions
    beside others than before, and their sums would differ in the last bits.

    Args:
        reference: which does not change while training.
    """

    def __init__(self, reference: Reference) -> None:
        self.kind = reference.kind
        self._reference = reference
        self._rows: dict[bytes, int] = {}
        """Where the sum of a completion stands among all sums."""
        self._sums: list[Tensor] = []
        """Of one pass after another, on the device; joined when they are read."""

    def active(self) -> AbstractContextManager[Scorer | None]:
        return self._reference.active()

    def sums(
        self, groups: Sequence[Group], batch: TokenBatch, weights: Tensor | None = None
    ) -> Tensor:
        # Weights depend on the other completion of a pair: then the pair is looked up.
        keys = [
            key for group in groups for key in completion_keys(group, together=weights is not None)
        ]
        missing = [key not in self._rows for key in keys]
        if weights is not None and any(missing):
            missing = [True] * len(keys)
        if all(missing):
            return self._keep(keys, self._reference.sums(groups, batch, weights))
        if any(missing):
            unknown = iter(missing)
            rest = [
                Group(g.prompt, tuple(c for c in g.completions if next(unknown))) for g in groups
            ]
            rest = [group for group in rest if group.completions]
            with self.active() as scorer:
                assert scorer is not None, "a cache knows every completion"
                sums = self._reference.sums(rest, scorer.batch(rest))
            self._keep([key for key, new in zip(keys, missing, strict=True) if new], sums)
        device = batch.targets.device
        (rows,) = to_device([torch.tensor([self._rows[key] for key in keys])], device)
        return self._table(device)[rows]

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint: keys `[completions, 16]` and their sums `[completions]`."""
        if not self._rows:
            return {}
        keys = torch.frombuffer(bytearray(b"".join(self._rows)), dtype=torch.uint8)
        return {"keys": keys.view(-1, 16), "sums": self._table(torch.device("cpu"))}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` returned."""
        keys = [bytes(row) for row in state["keys"].numpy()] if state else []
        self._rows = {key: row for row, key in enumerate(keys)}
        self._sums = [state["sums"]] if state else []

    def _keep(self, keys: Sequence[bytes], sums: Tensor) -> Tensor:
        new = []
        for i, key in enumerate(keys):
            if key not in self._rows:  # a completion may stand twice in one batch
                self._rows[key] = len(self._rows)
                new.append(i)
        if len(new) == len(keys):
            self._sums.append(sums)
        elif new:
            (rows,) = to_device([torch.tensor(new)], sums.device)
            self._sums.append(sums[rows])
        return sums

    def _table(self, device: torch.device) -> Tensor:
        self._sums = [torch.cat([sums.to(device) for sums in self._sums])]
        return self._sums[0]


def completion_keys(group: Group, *, together: bool = False) -> list[bytes]:
    """Of each completion after its prompt, or where they are scored together after all others."""
    prompt = xxhash.xxh3_128(f"layout {LAYOUT_VERSION} prompt {list(group.prompt)}".encode())
    if together:
        # What is trained of the others decides how long they are, and with that the weights.
        others = [(list(c), trained_spans(c)) for c in group.completions]
        prompt.update(f"beside {others}".encode())
    keys = []
    for completion in group.completions:
        digest = prompt.copy()
        digest.update(f"completion {list(completion)}".encode())
        if isinstance(completion, Turns):
            digest.update(f"trained {completion.trained}".encode())
        keys.append(digest.digest())
    return keys


def weighted_sums(batch: TokenBatch, logprobs: Tensor, weights: Tensor | None) -> Tensor:
    """Sum log-probs `[N]`, each times its weight, over each segment."""
    return segment_sums(batch, logprobs if weights is None else logprobs * weights)
