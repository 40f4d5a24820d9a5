"""References that are models of their own: a copy of the policy, another one, or a cache."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penchant.core.errors import ModelError
from penchant.core.machine import default_cache_dir
from penchant.core.screen import track
from penchant.models.load import DTYPES, load_causal_model
from penchant.models.locate import is_adapter, resolve
from penchant.models.memory import is_quantised
from penchant.models.reference import AdapterReference, Reference
from penchant.models.reference_cache import CachedReference
from penchant.models.reference_copy import CopyReference, frozen_copy
from penchant.models.rough_sizes import empty_model
from penchant.models.scoring import Scorer
from penchant.models.selfcheck import plan_scoring
from penchant.training.accelerator import team_of

if TYPE_CHECKING:
    from penchant.data.batch import Group
    from penchant.training.references import ReferenceMaker

logger = logging.getLogger("penchant")


class ReferenceModels:
    """Makes the references that need a model, or have needed one.

    Args:
        maker: knows the run, and the policy as it was loaded.
    """

    def __init__(self, maker: ReferenceMaker) -> None:
        self.config, self.policy, self.accelerator = maker.config, maker.policy, maker.accelerator
        self.precision, self.base = maker.precision, maker.base
        self.keep, self.loaded = maker.keep, maker.loaded

    def make(self, kind: str, groups: Sequence[Group]) -> Reference:
        """The reference of a kind that `ReferenceMaker.choose` has returned."""
        other = self.config.reference_model
        if kind == "cache":
            return self.cached(groups, keep=self.keep)
        if kind == "copy" and not other:
            return self.copied(groups)
        bits = None if kind == "copy" else int(kind.removeprefix("copy-")[0])
        return self.load(other or self.base, groups, bits=bits, kind=kind)

    def copied(self, groups: Sequence[Group]) -> CopyReference:
        """The policy as it is now, frozen; `groups` plan the passes of one that is loaded again."""
        if self.policy.is_sharded:  # no process has all weights to copy
            return self.load(self.base, groups)
        reference = frozen_copy(self.policy)
        with reference.active() as scorer:
            self._hold(scorer.causal_model)
        return reference

    def _hold(self, model: Any) -> None:
        # What follows the policy moves by less than half precision tells apart.
        if not self.config.sync_ref_model:
            from penchant.models.frozen import hold_frozen

            hold_frozen(model, self.config.frozen_dtype, self.precision)

    def cached(self, groups: Sequence[Group], *, keep: bool) -> CachedReference:
        """Log-probs of all groups on disk, those that are missing scored now.

        Args:
            groups: everything that will be scored.
            keep: whether the reference stays in memory.
        """
        held: Reference | None = None
        if self.config.reference_model:
            held = self.load(self.config.reference_model, groups)
        elif self.config.off_is_start:
            held = AdapterReference(self.policy)
        folder = (self.config.cache_dir or default_cache_dir()) / "reference"
        with nullcontext(self.policy) if held is None else held.active() as scorer:
            assert scorer is not None
            label = f"{scorer.causal_model.dtype}-{self.precision}".removeprefix("torch.")
            live = held if keep or isinstance(held, AdapterReference) else None
            if keep and held is None:  # the policy itself is the reference as yet
                live = self.copied(groups)
            reference = CachedReference(folder, scorer.causal_model, label, live)
            with scorer.evaluating(), self.accelerator.autocast():
                missing = reference.fill(
                    groups,
                    scorer,
                    batch_size=self.config.per_device_eval_batch_size,
                    progress=track,
                    team=team_of(self.accelerator),
                )
        logger.info("reference cache %s: %d completions scored now", reference.path, missing)
        return reference

    def load(
        self,
        name: str,
        groups: Sequence[Group],
        *,
        bits: int | None = None,
        kind: str = "copy",
        padded: bool = False,
    ) -> CopyReference:
        """A model in memory beside the policy, frozen.

        Args:
            name: what is loaded, unless a model is given.
            groups: whose first records plan its passes.
            bits: of its quantised weights; None: as they are.
            kind: what the reference is called.
            padded: its vocabulary may be of another size, beyond the tokens that both know.

        Raises:
            ModelError: nothing there, or another vocabulary.
        """
        model: Any = self.loaded or self._load(resolve(name, self.config.cache_dir), bits)
        if not padded:
            require_same_vocabulary(self.policy.causal_model.config, model.config)
        if is_quantised(model):  # its weights are where they belong and stay there
            from penchant.models.quantised import compute_in

            compute_in(model, DTYPES[self.precision])
        else:
            if self.loaded is None:  # a caller's own model is left as it was given
                self._hold(model)
            if not self.policy.is_sharded:
                model.to(self.accelerator.device)
        scorer = Scorer(model, self.policy.pad_token_id)
        if self.policy.is_sharded and not is_quantised(model):  # each process has all codes
            from penchant.training.sharded import divide

            divide(scorer.requires_grad_(False), self.config, self.accelerator)
        with self.accelerator.autocast():
            plan_scoring(
                scorer,
                groups[:2],
                attention=self.config.attention,
                max_length=self.config.max_length,
                team=team_of(self.accelerator),
            )
        return CopyReference(scorer, kind)

    def _load(self, base: str, bits: int | None) -> Any:
        first, trust = self.accelerator.is_main_process, self.config.trust_remote_code
        if self.policy.is_sharded and not first and bits is None and not is_adapter(Path(base)):
            model = empty_model(base, trust_remote_code=trust).eval()
            if getattr(model.config, "quantization_config", None) is None:
                return model  # the first process hands out the weights
        return load_causal_model(
            base,
            dtype=self.policy.causal_model.dtype,
            trust_remote_code=trust,
            quantization=self._quantization(bits),
        )

    def _quantization(self, bits: int | None) -> Any:
        if bits is None:
            return None
        from penchant.models.quantised import Quantization

        return Quantization(bits, DTYPES[self.precision], self.accelerator.device)


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
