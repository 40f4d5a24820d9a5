"""Answers by transformers' own loop, for models whose state is not a cache of keys and values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from penchant.rl.sampling.prefill import padded_left

if TYPE_CHECKING:
    from torch import Tensor

    from penchant.models.scoring import Scorer


class _Draw(LogitsProcessor):
    """Draws the next tokens itself: distribution and seed are those of the sampler."""

    def __init__(self, draw: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        self.draw = draw
        self.steps: list[tuple[Tensor, Tensor]] = []
        """Tokens and log-probs of each step, `[rows]` each."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        tokens, logprobs = self.draw(scores)
        self.steps.append((tokens, logprobs))
        # The likeliest token is what the loop takes: leave it one.
        only = torch.full_like(scores, -torch.inf)
        return only.scatter_(1, tokens.unsqueeze(1), 0.0)


def generate(
    scorer: Scorer,
    prompts: Sequence[list[int]],
    ends: set[int],
    max_new_tokens: int,
    draw: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> list[tuple[list[int], list[float], bool]]:
    """Tokens, log-probs and whether it ended, of one answer to each prompt.

    Args:
        scorer: in evaluation mode, in its model's own attention.
        prompts: token ids.
        ends: any of them ends an answer.
        max_new_tokens: the end token included.
        draw: from logits `[rows, V]` to tokens and log-probs, `[rows]` each.
    """
    model: Any = scorer.causal_model
    ids, mask = padded_left(prompts, scorer.pad_token_id, model.device)
    drawing = _Draw(draw)
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends),
        pad_token_id=scorer.pad_token_id,
    )
    with _without_own_settings(model):
        model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=settings,
            logits_processor=LogitsProcessorList([drawing]),
        )
    tokens, logprobs = (
        torch.stack(steps, dim=1).tolist() for steps in zip(*drawing.steps, strict=True)
    )  # [rows, steps] each
    return [_until_end(*row, ends) for row in zip(tokens, logprobs, strict=True)]


@contextmanager
def _without_own_settings(model: Any) -> Iterator[None]:
    """Without what the model's generation_config.json asks for, such as a repetition penalty.

    It fills whatever is left open, and log-probs would not be of the policy any more.
    """
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _until_end(
    ids: list[int], logprobs: list[float], ends: set[int]
) -> tuple[list[int], list[float], bool]:
    for i, token in enumerate(ids):
        if token in ends:
            return ids[: i + 1], logprobs[: i + 1], True
    return ids, logprobs, False
