"""Answers to held-out prompts: what a person looks at before and after training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penchant.core.machine import out_of_memory_explained
from penchant.models.scoring import Scorer
from penchant.rl.sampling.base import Draw, Sampling
from penchant.rl.sampling.sampler import CachedSampler
from penchant.rl.sampling.text import answer_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# Where memory runs out while answers are drawn.
LESS = "set a lower max_new_tokens, fewer answers side by side, or give a smaller model"


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
    with out_of_memory_explained("answers were drawn", LESS):
        drawn = sampler.sample(prompts, greedy)
    for (completion,) in drawn:
        text = answer_text(completion.ids, tokenizer, ended=completion.ended)
        num_tokens = len(completion.ids) - completion.ended
        answers.append(Answer(text.strip(), num_tokens, completion.ended))
    return answers
