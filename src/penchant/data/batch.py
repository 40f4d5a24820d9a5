"""Lay tokenised groups out as one batch of tensors: packed on a shared prompt, or padded.

A *group* is one prompt with its completions. Packed, a batch is a single row

    [prompt 0 | completion 0 | completion 1 | prompt 1 | completion 2 | completion 3 | ...]

in which a completion attends to its prompt and to itself, and positions restart at the prompt's
end. Nothing is padded and no prompt is computed twice. Padded, every completion is a row of its
own behind a copy of its prompt: the layout of last resort, which any model can run.

Either way the completions are numbered in order (pair 0 chosen, pair 0 rejected, pair 1 chosen,
...), and the batch says at which positions hidden states predict completion tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Group:
    """Token ids of one prompt and its completions; neither may be empty."""

    prompt: Sequence[int]
    completions: tuple[Sequence[int], ...]

    @property
    def num_tokens(self) -> int:
        """Tokens in the packed layout."""
        return len(self.prompt) + sum(map(len, self.completions))


@dataclass(frozen=True, slots=True)
class Segments:
    """Where one group stands in a packed row: half-open ranges of positions."""

    start: int
    prompt_end: int
    completions: tuple[tuple[int, int], ...]

    @property
    def end(self) -> int:
        """Where the group's last completion ends."""
        return self.completions[-1][1]


@dataclass(frozen=True)
class TokenBatch:
    """Tensors for one forward pass over some groups.

    Attributes:
        input_ids: `[rows, T]`; one row when packed.
        position_ids: `[rows, T]`.
        attention_mask: `[rows, T]`, 1 for real tokens; None when packed.
        segments: one entry a group when packed, else None.
        predictors: `[N]`, indices into the flattened `rows * T` positions whose hidden state
            predicts a completion token.
        targets: `[N]`, the token ids they predict.
        completion_index: `[N]`, which completion each target belongs to.
        completion_lengths: `[completions]`, tokens of each completion.
        num_tokens: tokens that are not padding.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor | None
    segments: tuple[Segments, ...] | None
    predictors: Tensor
    targets: Tensor
    completion_index: Tensor
    completion_lengths: Tensor
    num_tokens: int

    def to(self, device: torch.device | str) -> TokenBatch:
        """The same batch with every tensor on `device`."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, torch.Tensor)
        }
        return replace(self, **moved)


def pack(groups: Sequence[Group]) -> TokenBatch:
    """Lay groups out in one row, each prompt once."""
    tokens: list[int] = []
    positions: list[int] = []
    segments: list[Segments] = []
    predictors: list[int] = []
    for group in groups:
        start, prompt_length = len(tokens), len(group.prompt)
        _require_tokens(group)
        tokens.extend(group.prompt)
        positions.extend(range(prompt_length))
        ranges = []
        for completion in group.completions:
            begin, length = len(tokens), len(completion)
            # The prompt's last token predicts the first token of every completion.
            predictors.append(start + prompt_length - 1)
            predictors.extend(range(begin, begin + length - 1))
            tokens.extend(completion)
            positions.extend(range(prompt_length, prompt_length + length))
            ranges.append((begin, begin + length))
        segments.append(Segments(start, start + prompt_length, tuple(ranges)))
    return TokenBatch(
        input_ids=torch.tensor([tokens]),
        position_ids=torch.tensor([positions]),
        attention_mask=None,
        segments=tuple(segments),
        predictors=torch.tensor(predictors),
        num_tokens=len(tokens),
        **_targets(groups),
    )


def pad(groups: Sequence[Group], pad_token_id: int) -> TokenBatch:
    """Lay every completion out in a row of its own behind its prompt, padded on the right."""
    rows = [[*group.prompt, *c] for group in groups for c in group.completions]
    starts = [len(group.prompt) for group in groups for _ in group.completions]
    for group in groups:
        _require_tokens(group)
    width = max(map(len, rows))
    input_ids = torch.full((len(rows), width), pad_token_id)
    attention_mask = torch.zeros(len(rows), width, dtype=torch.long)
    predictors: list[int] = []
    for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
        input_ids[i, : len(row)] = torch.tensor(row)
        attention_mask[i, : len(row)] = 1
        predictors.extend(range(i * width + start - 1, i * width + len(row) - 1))
    return TokenBatch(
        input_ids=input_ids,
        position_ids=torch.arange(width).expand(len(rows), width),
        attention_mask=attention_mask,
        segments=None,
        predictors=torch.tensor(predictors),
        num_tokens=sum(map(len, rows)),
        **_targets(groups),
    )


def _require_tokens(group: Group) -> None:
    assert group.prompt, "a prompt without tokens reached the batch"
    assert group.completions and all(group.completions), "an empty completion reached the batch"


def _targets(groups: Sequence[Group]) -> dict[str, Tensor]:
    completions = [c for group in groups for c in group.completions]
    lengths = torch.tensor([len(c) for c in completions])
    return {
        "targets": torch.tensor([token for c in completions for token in c]),
        "completion_index": torch.repeat_interleave(torch.arange(len(completions)), lengths),
        "completion_lengths": lengths,
    }
