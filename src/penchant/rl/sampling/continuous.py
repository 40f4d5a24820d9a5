"""Sampling with transformers' continuous batching: paged attention on CUDA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from penchant.rl.sampling.sampler import Completion, Sampling

if TYPE_CHECKING:
    from penchant.models.scoring import Scorer


@dataclass
class ContinuousSampler:
    """Samples from a scorer's own model; rows that end make room for others at once.

    Log-probs are not returned by this engine.

    Args:
        scorer: the policy, on CUDA.
        end_token_ids: any of them ends an answer.
    """

    scorer: Scorer
    end_token_ids: Sequence[int]

    def sync(self) -> None:
        """The weights are the same objects."""

    @torch.no_grad()
    def sample(
        self, prompts: Sequence[list[int]], *, n: int, sampling: Sampling, seed: int
    ) -> list[list[Completion]]:
        from transformers import GenerationConfig

        settings = GenerationConfig(
            max_new_tokens=sampling.max_completion_length,
            do_sample=sampling.temperature > 0,
            temperature=sampling.temperature or 1.0,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            eos_token_id=list(self.end_token_ids),
            pad_token_id=self.scorer.pad_token_id,
        )
        model: Any = self.scorer.causal_model
        with self.scorer.evaluating():
            repeated = [list(prompt) for prompt in prompts for _ in range(n)]
            devices = [model.device] if model.device.type == "cuda" else []
            with self.scorer.plain_attention(), torch.random.fork_rng(devices):
                torch.manual_seed(seed)
                outputs = model.generate_batch(repeated, generation_config=settings)
        ends = set(self.end_token_ids)
        rows = [
            Completion(list(one.generated_tokens), [], one.generated_tokens[-1] in ends)
            for one in outputs.values()
        ]
        return [rows[i * n : (i + 1) * n] for i in range(len(prompts))]
