"""Which reference a run gets, and making it: an adapter, a copy, another model, a cache."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from penchant.core.errors import ModelError
from penchant.core.findings import Finding
from penchant.core.machine import default_cache_dir
from penchant.core.screen import gibibytes, track
from penchant.models.load import DTYPES, load_causal_model, resolve
from penchant.models.memory import is_quantised, weight_bytes
from penchant.models.reference import (
    AdapterReference,
    CachedReference,
    CopyReference,
    KeptSums,
    Reference,
    frozen_copy,
)
from penchant.models.scoring import Scorer, segment_sums
from penchant.models.selfcheck import plan_scoring, tolerance

if TYPE_CHECKING:
    from accelerate import Accelerator

    from penchant.config.keys import RunConfig
    from penchant.data.batch import Group

logger = logging.getLogger("penchant")


@dataclass(frozen=True)
class ReferenceMaker:
    """Makes the reference of a run from the policy, which is still as it was loaded.

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
        if config.lora_r and not config.reference_model:
            return "adapter"
        again = config.num_train_epochs > 1 or self.copy_bytes() > spare_bytes
        return "cache" if again and config.cacheable else "copy"

    def copy_bytes(self) -> int:
        """What a frozen copy of the policy takes."""
        model, config = self.policy.causal_model, self.config
        if config.sync_ref_model:
            return weight_bytes(model)
        from penchant.models.frozen import frozen_bytes

        return frozen_bytes(model, config.frozen_dtype, self.precision)

    def make(self, kind: str, groups: Sequence[Group]) -> Reference | None:
        """The reference.

        Args:
            kind: as `choose` returned it.
            groups: everything that will be scored: a cache is filled here, before training.
        """
        if kind == "none":
            return None
        if kind == "adapter":
            return AdapterReference(self.policy)
        if kind.startswith("copy-"):
            name = self.config.reference_model or self.base
            return self._loaded(name, groups, bits=int(kind[5]), kind=kind)
        other = self.config.reference_model
        if kind == "copy":
            return self._loaded(other, groups) if other else self._copied()
        return self._cached(groups)

    def _copied(self) -> CopyReference:
        reference = frozen_copy(self.policy)
        with reference.active() as scorer:
            self._hold(scorer.causal_model)
        return reference

    def _hold(self, model: Any) -> None:
        # What follows the policy moves by less than half precision tells apart.
        if not self.config.sync_ref_model:
            from penchant.models.frozen import hold_frozen

            hold_frozen(model, self.config.frozen_dtype, self.precision)

    def _cached(self, groups: Sequence[Group]) -> CachedReference:
        held: Reference | None = None
        if self.config.reference_model:
            held = self._loaded(self.config.reference_model, groups)
        elif self.config.lora_r:
            held = AdapterReference(self.policy)
        folder = (self.config.cache_dir or default_cache_dir()) / "reference"
        with nullcontext(self.policy) if held is None else held.active() as scorer:
            assert scorer is not None
            label = f"{scorer.causal_model.dtype}-{self.precision}".removeprefix("torch.")
            live = held if self.keep or isinstance(held, AdapterReference) else None
            if self.keep and held is None:  # the policy itself is the reference as yet
                live = self._copied()
            reference = CachedReference(folder, scorer.causal_model, label, live)
            first = self.accelerator.main_process_first
            with scorer.evaluating(), first(), self.accelerator.autocast():
                missing = reference.fill(
                    groups,
                    scorer,
                    batch_size=self.config.per_device_eval_batch_size,
                    progress=track,
                )
        logger.info("reference cache %s: %d completions scored now", reference.path, missing)
        return reference

    def _loaded(
        self, name: str, groups: Sequence[Group], *, bits: int | None = None, kind: str = "copy"
    ) -> CopyReference:
        model: Any = self.loaded or load_causal_model(
            resolve(name, self.config.cache_dir),
            dtype=self.policy.causal_model.dtype,
            trust_remote_code=self.config.trust_remote_code,
            quantization=self._quantization(bits),
        )
        require_same_vocabulary(self.policy.causal_model.config, model.config)
        if is_quantised(model):  # its weights are where they belong and stay there
            from penchant.models.quantised import compute_in

            compute_in(model, DTYPES[self.precision])
        else:
            if self.loaded is None:  # a caller's own model is left as it was given
                self._hold(model)
            model.to(self.accelerator.device)
        scorer = Scorer(model, self.policy.pad_token_id)
        with self.accelerator.autocast():
            plan_scoring(
                scorer,
                groups[:2],
                attention=self.config.attention,
                max_length=self.config.max_length,
            )
        return CopyReference(scorer, kind)

    def _quantization(self, bits: int | None) -> Any:
        if bits is None:
            return None
        from penchant.models.quantised import Quantization

        return Quantization(bits, DTYPES[self.precision], self.accelerator.device)


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
        logprob_error: mean absolute difference a token, in nats, from the log-probs of the weights
            it stands for; None where they are the same weights, or another model's.
    """

    num_bytes: int
    logprob_error: float | None

    def describe(self) -> str:
        """Behind the reference's name, for people."""
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
        num_bytes = weight_bytes(scorer)
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
    limit, _ = tolerance(policy)
    if difference <= limit:  # also false for NaN
        return None
    return Finding(
        "reference-differs-at-start",
        "error",
        f"before the first step the policy differs from its own reference ({reference.kind}) by "
        f"{difference:.2g} nats per token, where at most {limit:g} are tolerated: log-ratios and "
        "the first loss are wrong",
        "set attention to plain and dtype to fp32; if the difference stays, set cache_dir to an "
        "empty folder, or reference to copy",
        {"difference": difference, "limit": limit, "reference": reference.kind},
    )


def require_same_vocabulary(policy: Any, reference: Any) -> None:
    """Refuse a reference whose tokens are not the policy's.

    Args:
        policy, reference: the configurations of the two models.

    Raises:
        ModelError: the vocabularies have different sizes.
    """
    ours = policy.get_text_config().vocab_size
    theirs = reference.get_text_config().vocab_size
    if ours != theirs:
        raise ModelError(
            f"the reference has a vocabulary of {theirs} tokens, the model {ours}; they must share "
            "a tokenizer"
        )
