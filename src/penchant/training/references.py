"""Which reference a run gets, and making it: an adapter, a copy, another model, a cache."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel

from penchant.core.findings import Finding
from penchant.core.screen import gibibytes
from penchant.data.batch import segment_sums
from penchant.models.memory import weight_bytes
from penchant.models.reference import AdapterReference, KeptSums, Reference
from penchant.models.scoring import Scorer
from penchant.models.selfcheck import NEGLIGIBLE, TIMES_PLAIN, tolerance
from penchant.training.accelerator import team_of

if TYPE_CHECKING:
    from accelerate import Accelerator

    from penchant.config.keys import RunConfig
    from penchant.data.batch import Group

logger = logging.getLogger("penchant")


@dataclass(frozen=True)
class ReferenceMaker:
    """What a reference is made of: the run, and the policy, which is still as it was loaded.

    Attributes:
        config: the run's.
        policy: planned, on its device.
        accelerator: for its autocast and its processes.
        precision: of the arithmetic.
        base: the policy's resolved name.
        keep: whether a cache keeps its reference in memory.
        loaded: a model in memory, in place of what `config.reference_model` names.
    """

    config: RunConfig
    policy: Scorer
    accelerator: Accelerator
    precision: str
    base: str
    keep: bool = False
    loaded: Any = None

    def choose(self, spare_bytes: float) -> str:
        """What `reference` means for this run, `auto` included.

        Args:
            spare_bytes: what training leaves free, for a copy.
        """
        config = self.config
        if not config.spec.needs_reference or config.reference == "none":
            return "none"
        if config.reference != "auto":
            return config.reference
        if not config.spec.needs(config.options).reference and not config.lora_r:
            return "none"  # it would cost a copy, only to tell how far the policy is
        if config.sync_ref_model:
            return "copy"
        if config.off_is_start and not config.reference_model:
            return "adapter"
        again = config.num_train_epochs > 1 or self.copy_bytes() > spare_bytes
        return "cache" if again and config.cacheable else "copy"

    def copy_bytes(self) -> int:
        """What a frozen copy of the policy takes, in the process where that is most."""
        model, config = self.policy.causal_model, self.config
        if config.sync_ref_model:
            own = weight_bytes(model)
        else:
            from penchant.models.frozen import frozen_bytes

            own = frozen_bytes(model, config.frozen_dtype, self.precision)
        if not self.policy.is_sharded:
            return own
        return max(team_of(self.accelerator).gather(own))  # all choose by it, and the same


def switched_off(config: RunConfig, policy: Scorer) -> AdapterReference | None:
    """The policy with its adapter off, where that is the model that training starts from."""
    adapted = isinstance(policy.model, PeftModel) and config.off_is_start
    return AdapterReference(policy) if adapted else None


def keep_sums(
    config: RunConfig, accelerator: Accelerator, reference: Reference | None
) -> KeptSums | None:
    """The reference, asked once for each completion; None where that is nothing or not possible.

    One process only: of several, a checkpoint has what the main one knows.
    """
    again = config.num_train_epochs > 1 or config.max_steps is not None
    changes = config.sync_ref_model or config.spec.samples
    if reference is None or reference.kind == "cache" or changes or not again:
        return None
    return KeptSums(reference) if accelerator.num_processes == 1 else None


@dataclass(frozen=True)
class ReferenceCost:
    """What a reference costs.

    Attributes:
        num_bytes: of memory beside the policy.
        logprob_error: mean absolute difference, in nats per token, from the log-probs of the
            weights it stands for; None where they are the same weights, or another model's.
    """

    num_bytes: int
    logprob_error: float | None

    def describe(self) -> str:
        """What follows the reference's name, for people."""
        size = f", {gibibytes(self.num_bytes)}" if self.num_bytes else ", no further memory"
        if self.logprob_error is None:
            return size
        return f"{size}, log-probs off by {self.logprob_error:.4f} nats per token (mean)"


@torch.no_grad()
def measure_cost(reference: Reference, policy: Scorer, groups: Sequence[Group]) -> ReferenceCost:
    """Memory and error of a reference, before training has changed the policy.

    Args:
        reference: made from the policy's own weights.
        policy: as loaded.
        groups: a few records to compare on.
    """
    with reference.active() as scorer:
        if scorer is None or scorer is policy:
            return ReferenceCost(0, None)
        num_bytes = 0 if scorer.offloads else weight_bytes(scorer)
        if not reference.kind.startswith("copy-"):
            return ReferenceCost(num_bytes, None)
        with policy.evaluating():
            pairs = [(policy(policy.batch([g])), scorer(scorer.batch([g]))) for g in groups]
    if not pairs:
        return ReferenceCost(num_bytes, None)
    differences = torch.cat([(ours - theirs).abs() for ours, theirs in pairs])
    return ReferenceCost(num_bytes, float(differences.mean()))


@torch.no_grad()
def find_difference(
    reference: Reference, policy: Scorer, groups: Sequence[Group]
) -> Finding | None:
    """That a reference made from the policy's own weights disagrees with it before training.

    Args:
        reference: the switched-off adapter, an exact copy, or a cache.
        policy: as loaded, inside the run's autocast.
        groups: a few records that the reference has log-probs of.
    """
    with policy.evaluating():
        batch = policy.batch(groups)
        ours, theirs = segment_sums(batch, policy(batch)), reference.sums(groups, batch)
        lengths = batch.completion_lengths
        difference = float(((ours - theirs).abs() / lengths).max())
        limit, half = tolerance(policy)
        if half:
            limit = NEGLIGIBLE
            if difference > limit:
                from penchant.training.rounding import rounding

                limit += TIMES_PLAIN * rounding(policy, groups, ours, lengths)
    if difference <= limit:  # also false for NaN
        return None
    return Finding(
        "reference-differs-at-start",
        "error",
        f"before the first step the policy differs from its own reference ({reference.kind}) by "
        f"{difference:.2g} nats per token, where at most {limit:.2g} are tolerated: log-ratios and "
        "the first loss are wrong",
        "set attention to plain and dtype to fp32; if the difference stays, set cache_dir to an "
        "empty folder, or reference to copy",
        {"difference": difference, "limit": limit, "reference": reference.kind},
    )
