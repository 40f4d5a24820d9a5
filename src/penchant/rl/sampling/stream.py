"""An answer that is told while it is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from penchant.core.errors import ModelError
from penchant.core.machine import out_of_memory_explained
from penchant.models.size import learned_positions
from penchant.rl.sampling.answers import LESS, Answer
from penchant.rl.sampling.base import Sampling
from penchant.rl.sampling.drawing import draw_tokens, row_uniforms
from penchant.rl.sampling.generated import generate
from penchant.rl.sampling.text import answer_text

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from penchant.models.scoring import Scorer

# What a tokenizer writes for bytes that are no whole character yet.
UNFINISHED = "\ufffd"


@out_of_memory_explained("an answer was drawn", LESS)
@torch.no_grad()
def stream_answer(
    scorer: Scorer,
    tokenizer: PreTrainedTokenizerBase,
    prompt: list[int],
    *,
    end_token_ids: Sequence[int],
    sampling: Sampling,
    seed: int,
    on_text: Callable[[str], None],
) -> Answer:
    """Draw one answer, and hand on its text as it grows.

    Args:
        scorer: whose weights answer, as they are.
        tokenizer: of the model.
        prompt: token ids, as in training.
        end_token_ids: any of them ends the answer; the tokenizer's own end token does too.
        sampling: how tokens are drawn.
        seed: of the draws; at temperature 0 there are none.
        on_text: gets each new piece of the text. All pieces together are the answer's text.

    Raises:
        ModelError: the model has no position left after the prompt.
    """
    ends = {*end_token_ids, int(tokenizer.eos_token_id)}
    sampling = _within_positions(scorer, sampling, len(prompt))
    length = sampling.max_completion_length
    uniforms = iter(row_uniforms([(0, 0)], length, seed).unbind(1))
    told = _Told(tokenizer, ends, on_text)

    def next_tokens(logits: Tensor) -> tuple[Tensor, Tensor]:
        tokens, logprobs = draw_tokens(logits, sampling, next(uniforms))  # [1] each
        told.add(int(tokens[0]))
        return tokens, logprobs

    with scorer.generating():
        ((ids, _, ended),) = generate(scorer, [prompt], ends, length, next_tokens)
    text = answer_text(ids, tokenizer, ended=ended)
    on_text(text[len(told.text) :])
    return Answer(text, len(ids) - ended, ended)


def _within_positions(scorer: Scorer, sampling: Sampling, num_prompt: int) -> Sampling:
    limit = learned_positions(scorer.causal_model.config)
    room = sampling.max_completion_length if limit is None else limit - num_prompt
    if room < 1:
        raise ModelError(
            f"the model has {limit} positions, and the conversation has {num_prompt} tokens; "
            "begin a new one"
        )
    return replace(sampling, max_completion_length=min(room, sampling.max_completion_length))


class _Told:
    """The text of the tokens so far, up to the last whole character."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, ends: set[int], on_text: Callable[[str], None]
    ) -> None:
        self.tokenizer, self.ends, self.on_text = tokenizer, ends, on_text
        self.ids: list[int] = []
        self.text = ""

    def add(self, token: int) -> None:
        if token in self.ends:
            return
        self.ids.append(token)
        text = answer_text(self.ids, self.tokenizer, ended=False)
        # A later token may complete the character, or take a space that is not there yet.
        if text.startswith(self.text) and not text.endswith(UNFINISHED):
            self.on_text(text[len(self.text) :])
            self.text = text
