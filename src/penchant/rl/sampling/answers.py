"""Answers to held-out prompts: what a person looks at before and after training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penchant.models.scoring import Scorer
from penchant.rl.sampling.base import Draw, Sampling
from penchant.rl.sampling.sampler import CachedSampler
from penchant.rl.sampling.text import answer_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Answer:
    """One answer; `ended` tells whether the model stopped by itself."""

    text: str
    num_tokens: int
    ended: bool


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
    The end token is neither in an answer's text nor in its number of tokens.
    """
    ends = sorted({*end_token_ids, int(tokenizer.eos_token_id)})
    sampler = CachedSampler(scorer, ends, batch_size)
    greedy = Draw(Sampling(max_new_tokens, temperature=0), seed=0)
    answers: list[Answer] = []
    for (completion,) in sampler.sample(prompts, greedy):
        text = answer_text(completion.ids, tokenizer, ended=completion.ended)
        num_tokens = len(completion.ids) - completion.ended
        answers.append(Answer(text.strip(), num_tokens, completion.ended))
    return answers
