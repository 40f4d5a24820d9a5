"""Answers to held-out prompts: what a person looks at before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from penchant.models.scoring import Scorer
from penchant.rl.sampling.text import answer_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Answer:
    """One answer; `ended` tells whether the model stopped by itself."""

    text: str
    num_tokens: int
    ended: bool


@torch.no_grad()
def answer_prompts(
    scorer: Scorer,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    *,
    end_token_ids: Sequence[int],
    max_new_tokens: int,
    batch_size: int = 8,
) -> list[Answer]:
    """Greedy answers, in the order of `prompts` (token ids as in training).

    Greedy, so that before and after differ by the weights alone and no random state is touched.
    """
    with scorer.evaluating():
        ends = sorted({*end_token_ids, int(tokenizer.eos_token_id)})
        answers: list[Answer] = []
        with scorer.plain_attention():
            for start in range(0, len(prompts), batch_size):
                part = prompts[start : start + batch_size]
                generated = _generate(scorer, part, ends, max_new_tokens)
                answers.extend(_cut(row, ends, tokenizer) for row in generated)
    return answers


def _generate(
    scorer: Scorer, prompts: Sequence[list[int]], ends: list[int], max_new_tokens: int
) -> list[list[int]]:
    width = max(map(len, prompts))
    device = scorer.causal_model.device
    ids = torch.full((len(prompts), width), scorer.pad_token_id, device=device)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):  # generation continues on the right: pad on the left
        ids[i, width - len(prompt) :] = torch.tensor(prompt, device=device)
        mask[i, width - len(prompt) :] = 1
    out: Any = scorer.model.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=mask,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        max_new_tokens=max_new_tokens,
        eos_token_id=ends,
        pad_token_id=scorer.pad_token_id,
    )
    return [row[width:].tolist() for row in out]


def _cut(row: list[int], ends: list[int], tokenizer: PreTrainedTokenizerBase) -> Answer:
    stop = next((i for i, token in enumerate(row) if token in ends), None)
    kept = row if stop is None else row[:stop]
    text = answer_text(kept, tokenizer, ended=False)
    return Answer(text.strip(), len(kept), stop is not None)
