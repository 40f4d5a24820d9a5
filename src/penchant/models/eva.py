"""EVA: an adapter whose first matrices are what a layer's inputs vary along, on the run's records.

Paischer et al. 2024, https://arxiv.org/abs/2410.07170. The passes and the decomposition are PEFT's
(`initialize_lora_eva_weights`); it may give layers other ranks than `r`, with the same sum.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence

from penchant.core.errors import ModelError

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor

logger = logging.getLogger("penchant")

# Texts of a pass, unless more are needed to have as many tokens as components are looked for.
TEXTS_AT_ONCE = 8
# Of the run's records, from the first one on: layers converge on a few thousand tokens.
NUM_TEXTS = 128


def start_from_inputs(model: PeftModel, texts: Sequence[Sequence[int]]) -> None:
    """Let an adapter with `init_lora_weights: eva` start from its layers' inputs on texts.

    Args:
        model: with the fresh adapter, on the device that makes the passes.
        texts: token ids of some records.

    Raises:
        ModelError: too few tokens for the components that are looked for, or PEFT refuses.
    """
    from peft import initialize_lora_eva_weights

    config: Any = model.peft_config["default"]
    ranks = [config.r, *config.rank_pattern.values()]
    needed = round(max(ranks) * config.eva_config.rho)
    batches = list(_batches(texts, needed))
    if not batches:
        raise ModelError(
            f"peft: init_lora_weights eva looks for {needed} components (the rank times rho), and "
            f"the records have {sum(map(len, texts))} tokens; set a lower lora_r, or give more data"
        )
    logger.info("the adapter starts from its layers' inputs on %d records (eva)", len(texts))
    try:
        initialize_lora_eva_weights(
            model, batches, gather_distributed_inputs=False, show_progress_bar=False
        )
    except ValueError as error:
        raise ModelError(f"peft: init_lora_weights eva: {error}; set another one") from error


def _batches(texts: Sequence[Sequence[int]], needed: int) -> Iterator[dict[str, Tensor]]:
    """Padded texts of at least `needed` tokens a batch: PEFT waits for ever for a larger one."""
    some: list[Tensor] = []
    for text in texts:
        some.append(torch.tensor([*text]))
        if len(some) >= TEXTS_AT_ONCE and sum(map(len, some)) >= needed:
            yield _padded(some)
            some = []
    if some and sum(map(len, some)) >= needed:
        yield _padded(some)


def _padded(texts: Sequence[Tensor]) -> dict[str, Tensor]:
    masks = [torch.ones_like(text) for text in texts]
    return {
        "input_ids": pad_sequence(list(texts), batch_first=True),  # [texts, T]
        "attention_mask": pad_sequence(masks, batch_first=True),
    }
