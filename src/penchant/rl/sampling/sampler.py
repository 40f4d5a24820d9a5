"""Sampling answers: a key-value cache, prompts of like length together, finished rows dropped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import torch

from penchant.core.machine import to_device
from penchant.core.screen import track
from penchant.models.size import learned_positions
from penchant.rl.sampling.base import Completion, Draw, Sampling
from penchant.rl.sampling.cache import can_select
from penchant.rl.sampling.drawing import draw_tokens, row_uniforms
from penchant.rl.sampling.generated import generate
from penchant.rl.sampling.rows import Rows

if TYPE_CHECKING:
    from torch import Tensor

    from penchant.models.scoring import Scorer
    from penchant.rl.sampling.telling import Telling

logger = logging.getLogger("penchant")


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
    tells: ClassVar[bool] = True
    """Whether it can tell entropies and values of what it draws."""

    def sync(self) -> None:
        """The weights are the same objects."""

    @torch.no_grad()
    def sample(self, prompts: Sequence[list[int]], draw: Draw) -> list[list[Completion]]:
        answers: list[list[Completion]] = [[] for _ in prompts]
        sampling, numbers = draw.sampling, draw.numbers_of(prompts)
        device = self.scorer.device
        batches = list(self._batches(prompts, draw.n))
        with self.scorer.generating(), self._telling(draw) as telling:
            for batch in track(batches, "sampling"):
                keys = [
                    (numbers[i], k)
                    for i, count in batch
                    for k in range(len(answers[i]), len(answers[i]) + count)
                ]
                uniforms = row_uniforms(keys, sampling.max_completion_length, draw.seed)
                (uniforms,) = to_device([uniforms], device)
                asked = [prompts[i] for i, _ in batch]
                rows = self._batch(asked, batch, sampling, uniforms, telling)
                for (i, _), completions in zip(batch, rows, strict=True):
                    answers[i].extend(completions)
        return answers

    @contextmanager
    def _telling(self, draw: Draw) -> Iterator[Telling | None]:
        """What listens while answers are drawn; None where nothing is asked or could be told."""
        from penchant.models.policy import PolicyScorer
        from penchant.rl.sampling.telling import Telling

        able = draw.tells and self.tells and self._selects and not self.scorer.is_sharded
        if not able or not isinstance(self.scorer, PolicyScorer) or self.scorer.critic is not None:
            yield None
            return
        telling = Telling(self.scorer)
        with telling.listening():
            yield telling

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

    @property
    def _rows(self) -> Callable[..., Rows]:
        """What makes the answers that are drawn side by side."""
        return Rows

    def _batch(
        self,
        prompts: Sequence[list[int]],
        batch: Sequence[tuple[int, int]],
        sampling: Sampling,
        uniforms: Tensor,
        telling: Telling | None,
    ) -> list[list[Completion]]:
        """The answers of one batch, by prompt; uniforms `[rows, T]` decide what is drawn."""
        ends = set(self.end_token_ids)
        sampling = self._within_positions(sampling, max(map(len, prompts)))
        if self._selects:
            counts = torch.tensor([count for _, count in batch])
            rows = self._rows(self.scorer, prompts, counts, ends, sampling, telling)
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
