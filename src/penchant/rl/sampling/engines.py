"""Which engine draws the answers: the cache here, continuous batching, or vLLM."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from penchant.core.errors import ConfigError
from penchant.rl.sampling.sampler import CachedSampler, Sampler

if TYPE_CHECKING:
    from penchant.models.scoring import Scorer


def make_sampler(
    kind: str, policy: Scorer, *, name: str, end_token_ids: list[int], batch_size: int
) -> Sampler:
    """The sampler that `generation` names.

    Args:
        kind: `auto`, `cached`, `continuous` or `vllm`.
        policy: whose weights are sampled from.
        name: the resolved name of its model, which vLLM loads by itself.
        end_token_ids: any of them ends an answer.
        batch_size: answers that are drawn side by side.

    Raises:
        ConfigError: an engine that is not installed or does not run on this device.
    """
    device = policy.causal_model.device.type
    if kind == "continuous":
        from penchant.rl.sampling.continuous import ContinuousSampler, require_continuous

        require_continuous()
        if device != "cuda":
            raise ConfigError(
                "generation: continuous needs a CUDA GPU; set generation to auto or cached"
            )
        return ContinuousSampler(policy, end_token_ids, batch_size)
    if kind == "vllm":
        from penchant.rl.sampling.vllm import VllmSampler

        if importlib.util.find_spec("vllm") is None:
            raise ConfigError(
                "generation: vllm needs vLLM: pip install vllm, or set generation to auto"
            )
        if device != "cuda":
            raise ConfigError("generation: vllm needs a CUDA GPU; set generation to auto or cached")
        return VllmSampler.start(policy, name, end_token_ids)
    return CachedSampler(policy, end_token_ids, batch_size)
