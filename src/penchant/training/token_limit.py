"""How many tokens a pass may lay out in the memory there is: `max_tokens_per_batch: auto`."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from penchant.core.screen import gibibytes
from penchant.data.batch import laid_out
from penchant.data.budget import FoundLimit
from penchant.models.footprint import footprint
from penchant.models.memory import weight_bytes
from penchant.training.kind import kind_of
from penchant.training.workload import count_work, measure_run

if TYPE_CHECKING:
    from accelerate import Accelerator

    from penchant.config.keys import RunConfig
    from penchant.training.setup import Setup

logger = logging.getLogger("penchant")


def find_limit(config: RunConfig, setup: Setup, accelerator: Accelerator) -> FoundLimit:
    """The largest passes that are predicted to fit, up to a whole step in one.

    At least the longest example: where that does not fit, activations are recomputed, or the run
    is refused, as with any other limit. All processes get the same answer.

    Args:
        config, accelerator: of the run.
        setup: planned, on its device.
    """
    sizes, room = measure_run(config, setup, accelerator)
    layout = setup.scorer.plan.layout
    work = count_work(
        config,
        setup.train_set,
        layout=layout,
        num_processes=accelerator.num_processes,
        num_held_out=len(setup.eval_set),
    )
    load = work.load(config, checkpointing=config.gradient_checkpointing == "on")
    share = load.predicted / load.tokens
    reserved = _copy_bytes(config, setup)
    groups = kind_of(config.spec).groups(config, setup.train_set)
    longest = max(laid_out([group], layout=layout) for group in groups)
    if config.spec.samples:
        options: Any = config.options
        longest += options.max_completion_length

    def fits(tokens: int) -> bool:
        some = replace(load, tokens=tokens, predicted=round(share * tokens), accumulates=True)
        return footprint(sizes, some).peak + reserved <= room.limit

    low, high = longest, max(longest, load.tokens * config.gradient_accumulation_steps)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    found = low
    if accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        found = min(gather_object([found]))
    logger.info(
        "max_tokens_per_batch auto: %d, of passes that are predicted to fit into %s (the longest "
        "example has %d tokens)", found, gibibytes(room.limit), longest,
    )  # fmt: skip
    return FoundLimit(found)


def _copy_bytes(config: RunConfig, setup: Setup) -> float:
    """What a copy as the reference will take, where one may be made."""
    copied = config.reference == "copy" or (
        config.reference == "auto" and (not config.off_is_start or config.sync_ref_model)
    )
    return weight_bytes(setup.scorer) if config.spec.needs_reference and copied else 0.0
