"""A reference that follows the policy (TR-DPO)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penchant.models.reference_copy import CopyReference

if TYPE_CHECKING:
    from torch import Tensor

    from penchant.training.engine import Engine
    from penchant.training.setup import Setup


def let_follow(engine: Engine, setup: Setup) -> None:
    """Mix the policy into the reference as training goes on, and save it with every checkpoint."""
    reference, config = setup.reference, engine.config
    assert isinstance(reference, CopyReference)

    def mix(step: int) -> None:
        if step % config.ref_model_sync_steps == 0:
            reference.mix_in(setup.scorer, config.ref_model_mixup_alpha)

    engine.after_step = mix
    engine.checkpoints.extra_weights = following(setup)


def following(setup: Setup) -> dict[str, Tensor]:
    """The weights of the reference that follows the policy, in place, by their names."""
    assert isinstance(setup.reference, CopyReference)
    return {f"reference/{name}": weight for name, weight in setup.reference.weights().items()}
