"""Answers under way in one batch: a key-value cache, the tokens drawn, the rows that have ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from penchant.core.machine import to_device, widest
from penchant.models.attention import layer_kinds
from penchant.models.distribution import entropies
from penchant.rl.sampling.base import Completion, Sampling
from penchant.rl.sampling.cache import make_room
from penchant.rl.sampling.drawing import draw_from, log_distribution
from penchant.rl.sampling.prefill import read_prompts

if TYPE_CHECKING:
    from torch import Tensor

    from penchant.models.scoring import Scorer
    from penchant.rl.sampling.telling import Telling

# A GPU is asked less often than once a token which rows have ended; rows that have go on meanwhile.
TOKENS_BETWEEN_LOOKS = 8


@dataclass
class _Row:
    """One answer under way."""

    ids: list[int] = field(default_factory=list)
    told: list[Sequence[float]] = field(default_factory=list)
    """Of each token: its log-prob, and where they are asked for entropy and value."""
    ended: bool = False

    def completion(self) -> Completion:
        columns = [list(column) for column in zip(*self.told, strict=True)]
        return Completion(self.ids, columns[0], self.ended, *columns[1:])


class Rows:
    """Answers that grow side by side; each prompt is read once, however many answer it.

    Args:
        scorer: whose model answers; it is generating.
        prompts: token ids, the shortest first.
        counts: `[prompts]`, answers to each.
        ends: tokens that end an answer.
        sampling: how tokens are drawn.
        telling: what else is told of each token; None: nothing.
    """

    # Rows leave the batch when at least this share of them has ended: moving a cache costs time.
    dropped_at_once = 0.25

    def __init__(
        self,
        scorer: Scorer,
        prompts: Sequence[list[int]],
        counts: Tensor,
        ends: set[int],
        sampling: Sampling,
        telling: Telling | None = None,
    ) -> None:
        self.model: Any = scorer.causal_model
        self.ends, self.sampling, self._telling = ends, sampling, telling
        device = self.model.device
        read = read_prompts(self.model, prompts, scorer.pad_token_id)
        self.cache = read.cache
        (repeated,) = to_device([torch.arange(len(prompts)).repeat_interleave(counts)], device)
        self._make_room(repeated)
        self.mask, self.logits = read.mask[repeated], read.logits[repeated]
        values = None if telling is None else telling.values(len(prompts))
        self._values = None if values is None else values[repeated]
        """`[rows]`, of the states that the next tokens are drawn from."""
        self.positions = self.mask.sum(1, keepdim=True) - 1
        self.rows = [_Row() for _ in range(len(repeated))]
        self.alive = list(range(len(repeated)))
        """Rows that are still in the batch, in its order."""
        self._places = torch.arange(len(self.rows), device=device)
        """Their numbers, on the device."""
        self._unread: list[Tensor] = []
        """Of each token that is drawn and not looked at, `[2, rows]` or more: ids, log-probs."""
        self._length, self._patience = 0, 1 if device.type == "cpu" else TOKENS_BETWEEN_LOOKS
        # In two dimensions transformers looks whether the mask leaves out anything: a wait a token.
        config = self.model.config
        plain = set(layer_kinds(config.get_text_config())) == {"full_attention"}
        self._prepared = device.type != "cpu" and plain and config._attn_implementation == "sdpa"

    def _make_room(self, rows: Tensor) -> None:
        """Let the cache have these rows, with room for the answers."""
        make_room(self.cache, rows, self.sampling.max_completion_length)

    @property
    def completions(self) -> list[Completion]:
        return [row.completion() for row in self.rows]

    def step(self, uniforms: Tensor) -> bool:
        """Draw the next token of every row that has not ended; tells whether any goes on.

        Args:
            uniforms: `[rows]`, of all rows, ended ones too.
        """
        if len(self.alive) < len(self.rows):
            uniforms = uniforms[self._places]
        every = log_distribution(self.logits, self.sampling)  # [rows, V]
        tokens, logprobs = draw_from(every, self.sampling, uniforms)
        told = [tokens, logprobs, *self._beside(every)]
        dtype = widest(tokens.device)
        self._unread.append(torch.stack([column.to(dtype) for column in told]))
        self._length += 1
        last = self._length >= self.sampling.max_completion_length
        if last or len(self._unread) >= self._patience:
            self._look()
        going = [k for k, i in enumerate(self.alive) if not self.rows[i].ended]
        if last or not going:
            return False
        if not self._unread and len(going) <= (1 - self.dropped_at_once) * len(self.alive):
            (kept,) = to_device([torch.tensor(going)], self.mask.device)
            self._places = self._places[kept]
            self.cache.batch_select_indices(kept)
            self.mask, self.positions, tokens = (
                one[kept] for one in (self.mask, self.positions, tokens)
            )
            self.alive = [self.alive[k] for k in going]
        self._advance(tokens)
        return True

    def _beside(self, every: Tensor) -> list[Tensor]:
        """What else is told of the tokens that are drawn now, `[rows]` each."""
        if self._telling is None:
            return []
        return [entropies(every), *([] if self._values is None else [self._values])]

    def _look(self) -> None:
        """Read what was drawn since the last look; the host waits for the device here."""
        for tokens, *told in torch.stack(self._unread).tolist():
            for i, token, *numbers in zip(self.alive, tokens, *told, strict=True):
                row = self.rows[i]
                if not row.ended:
                    row.ids.append(int(token))
                    row.told.append(numbers)
                    row.ended = int(token) in self.ends
        self._unread.clear()

    def _advance(self, tokens: Tensor) -> None:
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        self.positions = self.positions + 1
        out = self.model(
            input_ids=tokens.unsqueeze(1),
            attention_mask=self.mask[:, None, None].bool() if self._prepared else self.mask,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.logits = out.logits[:, -1]
        if self._telling is not None:
            self._values = self._telling.values(len(tokens))
