"""Sampling answers: a key-value cache, prompts of like length together, finished rows dropped."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from penchant.core.machine import to_device, widest
from penchant.core.screen import track
from penchant.models.attention import layer_kinds
from penchant.models.distribution import filtered
from penchant.models.size import learned_positions
from penchant.rl.sampling.base import Completion, Draw, Sampling
from penchant.rl.sampling.cache import can_select, make_room
from penchant.rl.sampling.generated import generate
from penchant.rl.sampling.prefill import read_prompts

if TYPE_CHECKING:
    from torch import Tensor

    from penchant.models.scoring import Scorer

logger = logging.getLogger("penchant")

# Rows leave the batch when at least this share of them has ended: moving a cache costs time.
DROPPED_AT_ONCE = 0.25
# A GPU is asked less often than once a token which rows have ended; rows that have go on meanwhile.
TOKENS_BETWEEN_LOOKS = 8


@dataclass
class CachedSampler:
    """Samples from a scorer's own model.

    A model whose cache is not keys and values everywhere is served by transformers' own loop.

    Args:
        scorer: the policy; answers come from its weights as they are.
        end_token_ids: any of them ends an answer.
        batch_size: answers that are drawn side by side.
    """

    scorer: Scorer
    end_token_ids: Sequence[int]
    batch_size: int = 32

    def sync(self) -> None:
        """The weights are the same objects."""

    @torch.no_grad()
    def sample(self, prompts: Sequence[list[int]], draw: Draw) -> list[list[Completion]]:
        answers: list[list[Completion]] = [[] for _ in prompts]
        sampling, numbers = draw.sampling, draw.numbers_of(prompts)
        device = self.scorer.causal_model.device
        batches = list(self._batches(prompts, draw.n))
        with self.scorer.generating():
            for batch in track(batches, "sampling"):
                keys = [
                    (numbers[i], k)
                    for i, count in batch
                    for k in range(len(answers[i]), len(answers[i]) + count)
                ]
                uniforms = row_uniforms(keys, sampling.max_completion_length, draw.seed)
                (uniforms,) = to_device([uniforms], device)
                rows = self._batch([prompts[i] for i, _ in batch], batch, sampling, uniforms)
                for (i, _), completions in zip(batch, rows, strict=True):
                    answers[i].extend(completions)
        return answers

    @cached_property
    def _selects(self) -> bool:
        """Whether rows can leave the cache; the same for every batch of a model."""
        return can_select(self.scorer.causal_model)

    def _batches(self, prompts: Sequence[list[int]], n: int) -> Iterator[list[tuple[int, int]]]:
        """Prompts by length, each with how many of its answers the batch draws."""
        batch: list[tuple[int, int]] = []
        room = self.batch_size
        for i in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
            left = n
            while left:
                count = min(left, room)
                batch.append((i, count))
                left, room = left - count, room - count
                if not room:
                    yield batch
                    batch, room = [], self.batch_size
        if batch:
            yield batch

    def _within_positions(self, sampling: Sampling, longest: int) -> Sampling:
        """Shorter answers where the model has no positions for longer ones."""
        limit = learned_positions(self.scorer.causal_model.config)
        if limit is None or longest + sampling.max_completion_length <= limit:
            return sampling
        room = max(1, limit - longest)
        logger.warning(
            "answers to prompts of %d tokens end after %d: the model has %d positions",
            longest, room, limit,
        )  # fmt: skip
        return replace(sampling, max_completion_length=room)

    def _batch(
        self,
        prompts: Sequence[list[int]],
        batch: Sequence[tuple[int, int]],
        sampling: Sampling,
        uniforms: Tensor,
    ) -> list[list[Completion]]:
        """The answers of one batch, by prompt; uniforms `[rows, T]` decide what is drawn."""
        ends = set(self.end_token_ids)
        sampling = self._within_positions(sampling, max(map(len, prompts)))
        if self._selects:
            counts = torch.tensor([count for _, count in batch])
            rows = _Rows(self.scorer, prompts, counts, ends, sampling)
            for column in uniforms.unbind(1)[: sampling.max_completion_length]:
                if not rows.step(column):
                    break
            done = iter(rows.completions)
        else:
            repeated = zip(prompts, batch, strict=True)
            every = [prompt for prompt, (_, count) in repeated for _ in range(count)]
            columns = iter(uniforms.unbind(1))
            drawn = generate(
                self.scorer,
                every,
                ends,
                sampling.max_completion_length,
                lambda logits: draw_tokens(logits, sampling, next(columns)),
            )
            done = iter([Completion(*row) for row in drawn])
        return [[next(done) for _ in range(count)] for _, count in batch]


@dataclass
class _Row:
    """One answer under way."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ended: bool = False


class _Rows:
    """Answers that grow side by side; each prompt is read once, however many answer it."""

    def __init__(
        self,
        scorer: Scorer,
        prompts: Sequence[list[int]],
        counts: Tensor,
        ends: set[int],
        sampling: Sampling,
    ) -> None:
        self.model: Any = scorer.causal_model
        self.ends, self.sampling = ends, sampling
        device = self.model.device
        read = read_prompts(self.model, prompts, scorer.pad_token_id)
        self.cache = read.cache
        (repeated,) = to_device([torch.arange(len(prompts)).repeat_interleave(counts)], device)
        make_room(self.cache, repeated, sampling.max_completion_length)
        self.mask, self.logits = read.mask[repeated], read.logits[repeated]
        self.positions = self.mask.sum(1, keepdim=True) - 1
        self.rows = [_Row() for _ in range(len(repeated))]
        self.alive = list(range(len(repeated)))
        """Rows that are still in the batch, in its order."""
        self._places = torch.arange(len(self.rows), device=device)
        """Their numbers, on the device."""
        self._unread: list[Tensor] = []
        """Of each token that is drawn and not looked at, `[2, rows]`: ids and log-probs."""
        self._length, self._patience = 0, 1 if device.type == "cpu" else TOKENS_BETWEEN_LOOKS
        # In two dimensions transformers looks whether the mask leaves out anything: a wait a token.
        config = self.model.config
        plain = set(layer_kinds(config.get_text_config())) == {"full_attention"}
        self._prepared = device.type != "cpu" and plain and config._attn_implementation == "sdpa"

    @property
    def completions(self) -> list[Completion]:
        return [Completion(row.ids, row.logprobs, row.ended) for row in self.rows]

    def step(self, uniforms: Tensor) -> bool:
        """Draw the next token of every row that has not ended; tells whether any goes on.

        Args:
            uniforms: `[rows]`, of all rows, ended ones too.
        """
        if len(self.alive) < len(self.rows):
            uniforms = uniforms[self._places]
        tokens, logprobs = draw_tokens(self.logits, self.sampling, uniforms)
        dtype = widest(tokens.device)
        self._unread.append(torch.stack([tokens.to(dtype), logprobs.to(dtype)]))
        self._length += 1
        last = self._length >= self.sampling.max_completion_length
        if last or len(self._unread) >= self._patience:
            self._look()
        going = [k for k, i in enumerate(self.alive) if not self.rows[i].ended]
        if last or not going:
            return False
        if not self._unread and len(going) <= (1 - DROPPED_AT_ONCE) * len(self.alive):
            (kept,) = to_device([torch.tensor(going)], self.mask.device)
            self._places = self._places[kept]
            self.cache.batch_select_indices(kept)
            self.mask, self.positions, tokens = (
                one[kept] for one in (self.mask, self.positions, tokens)
            )
            self.alive = [self.alive[k] for k in going]
        self._advance(tokens)
        return True

    def _look(self) -> None:
        """Read what was drawn since the last look; the host waits for the device here."""
        for tokens, logprobs in torch.stack(self._unread).tolist():
            for i, token, logprob in zip(self.alive, tokens, logprobs, strict=True):
                row = self.rows[i]
                if not row.ended:
                    row.ids.append(int(token))
                    row.logprobs.append(logprob)
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


def row_uniforms(rows: Sequence[tuple[int, int]], length: int, seed: int) -> Tensor:
    """`[rows, length]`, random in [0, 1): each row by the seed, its prompt and its answer alone.

    They are made on the CPU, so that no device draws others.
    """
    generator = torch.Generator()
    drawn = torch.empty(len(rows), length, dtype=torch.float64)
    for row, (prompt, answer) in zip(drawn, rows, strict=True):
        generator.manual_seed(random.Random(f"{seed} {prompt} {answer}").getrandbits(63))
        row.uniform_(generator=generator)
    return drawn


def draw_tokens(logits: Tensor, sampling: Sampling, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row and its log-prob, `[rows]` each.

    Args:
        logits: `[rows, V]`, as the model gives them.
        sampling: with temperature 0, the likeliest token, and its log-prob at temperature 1.
        uniforms: `[rows]`, random in [0, 1).
    """
    logits = logits.float()
    if sampling.temperature == 0:
        every = logits.log_softmax(-1)
        tokens = every.argmax(-1)
    else:
        kept = filtered(logits / sampling.temperature, sampling.top_k, sampling.top_p)
        every = kept.log_softmax(-1)
        tokens = _drawn(every.exp(), uniforms)
    return tokens, every.gather(1, tokens.unsqueeze(1)).squeeze(1)


def _drawn(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """One index a row, `[rows]`: where the running sum `[rows, V]` passes its random number.

    `torch.multinomial` draws a number for every token of the vocabulary instead of one a row.
    """
    # In fp32 the rounding of a sum over a large vocabulary would move what is rare.
    dtype = torch.float32 if probabilities.device.type == "mps" else torch.float64
    mass = probabilities.cumsum(-1, dtype=dtype)
    where = uniforms.to(mass.device, dtype).unsqueeze(1) * mass[:, -1:]
    tokens = torch.searchsorted(mass, where, right=True).squeeze(1)
    return tokens.clamp(max=probabilities.shape[-1] - 1)  # a product that was rounded up
