"""By how much half precision moves what a run compares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from penchant.data.batch import segment_sums
from penchant.models.exact import HALF
from penchant.models.scoring import Scorer
from penchant.models.selfcheck import exact_logprobs

if TYPE_CHECKING:
    from torch import Tensor

    from penchant.data.batch import Group


def rounding(policy: Scorer, groups: Sequence[Group], sums: Tensor, lengths: Tensor) -> float:
    """Nats per token by which half precision moves summed log-probs `[completions]`, at most.

    Measured in fp32; where that cannot be had, a random walk: each of two blocks of a layer rounds
    the hidden state to the precision's bits, and the sum over a completion's tokens averages.

    Args:
        policy: inside the run's autocast.
        groups: that the sums are of.
        sums: in half precision; lengths: of the completions, in tokens.
    """
    exact = exact_logprobs(policy, groups, policy.plan)
    if exact is not None:
        moved = sums - segment_sums(policy.batch(groups), exact)
        return float((moved.abs() / lengths).max())
    config = policy.causal_model.config.get_text_config()
    dtype = policy.causal_model.dtype
    half = dtype if dtype in HALF else torch.get_autocast_dtype(policy.device.type)
    unit = torch.finfo(half).eps / 2
    walk = unit * float(2 * config.num_hidden_layers) ** 0.5
    return walk / float(lengths.min()) ** 0.5
