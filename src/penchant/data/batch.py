"""Lay tokenised groups out as one batch of tensors: packed on a shared prompt, or padded.

A *group* is one prompt with its completions. Packed, a batch is a single row

    [prompt 0 | completion 0 | completion 1 | prompt 1 | completion 2 | completion 3 | ...]

in which a completion attends to its prompt and to itself, and positions restart at the prompt's
end. Nothing is padded and no prompt is computed twice. Where a model cannot share prompts, each
completion follows a copy of its own, in one row again; positions restart at every copy:

    [prompt 0 | completion 0 | prompt 0 | completion 1 | prompt 1 | completion 2 | ...]

Padded, every completion is a row of its own after a copy of its prompt: the layout of last
resort, which any model can run.

Either way the completions are numbered in order (pair 0 chosen, pair 0 rejected, pair 1 chosen,
...), and the batch says at which positions hidden states predict completion tokens that are trained
on. Where a method reads the prompts' own log-probs too, those are segments numbered after the last
completion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

import torch

from penchant.core.machine import to_device

if TYPE_CHECKING:
    from torch import Tensor


Layout = Literal["shared", "repeated", "padded"]
"""One row with each prompt once; one row with a copy for each completion; a row a completion."""

Item = tuple[Sequence[int], Sequence[int]]
"""Token ids of one completion after one prompt."""
Spans = tuple[tuple[int, int], ...]
"""Half-open ranges of positions, in order, none of them empty."""


@dataclass(frozen=True, slots=True)
class Turns(Sequence[int]):
    """Token ids of a completion of several turns, of which some are trained on: a mask.

    What others say in it is read, and neither predicted nor counted. A completion that is no
    `Turns` is trained on from its first token to its last.

    Args:
        ids: all of them.
        trained: which of them count.
    """

    ids: Sequence[int]
    trained: Spans

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, slice):
            return self.ids[index]
        start, stop, step = index.indices(len(self.ids))
        assert step == 1, "turns stay in their order"
        cut = ((max(a, start) - start, min(b, stop) - start) for a, b in self.trained)
        return Turns(self.ids[index], tuple((a, b) for a, b in cut if a < b))


def trained_spans(completion: Sequence[int]) -> Spans:
    """Which tokens of a completion are trained on."""
    return completion.trained if isinstance(completion, Turns) else ((0, len(completion)),)


def num_trained(completion: Sequence[int]) -> int:
    """How many tokens of a completion are trained on."""
    return sum(end - start for start, end in trained_spans(completion))


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
        input_ids: `[rows, T]`; one row when packed, with prompts shared or repeated.
        position_ids: `[rows, T]`.
        attention_mask: `[rows, T]`, 1 for real tokens; None when packed.
        segments: one entry a group where prompts are shared, else None.
        predictors: `[N]`, indices into the flattened `rows * T` positions whose hidden state
            predicts a scored token.
        targets: `[N]`, the token ids they predict.
        segment_index: `[N]`, which segment each target belongs to.
        segment_lengths: `[completions]`, scored tokens of each completion; `[completions +
            prompts]` where prompts are scored too (all their tokens but the first).
        ends: `[completions]`, the flattened position of each completion's last token.
        num_tokens: tokens that are not padding.
        kept: what models have worked out of it, once for all passes over it.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor | None
    segments: tuple[Segments, ...] | None
    predictors: Tensor
    targets: Tensor
    segment_index: Tensor
    segment_lengths: Tensor
    ends: Tensor
    num_tokens: int
    kept: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def layout(self) -> Layout:
        """How the groups were laid out."""
        if self.segments is not None:
            return "shared"
        return "padded" if self.attention_mask is not None else "repeated"

    @property
    def completion_lengths(self) -> Tensor:
        """`[completions]`, tokens of each."""
        return self.segment_lengths[: len(self.ends)]

    @property
    def prompt_lengths(self) -> Tensor:
        """`[prompts]`, scored tokens of each; empty where prompts are not scored."""
        return self.segment_lengths[len(self.ends) :]

    def to(self, device: torch.device | str) -> TokenBatch:
        """The same batch with every tensor on `device`."""
        tensors = {n: value for n, value in vars(self).items() if isinstance(value, torch.Tensor)}
        moved = to_device(list(tensors.values()), torch.device(device))
        named: dict[str, Any] = dict(zip(tensors, moved, strict=True))
        return replace(self, **named, kept={})


def pack(groups: Sequence[Group], *, with_prompts: bool = False) -> TokenBatch:
    """Lay groups out in one row, each prompt once.

    Args:
        groups: at least one.
        with_prompts: score the prompts' own tokens too.
    """
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
            for first, last in trained_spans(completion):
                # The prompt's last token predicts the first token of every completion.
                predictors += [start + prompt_length - 1] * (not first)
                predictors.extend(range(begin + max(first, 1) - 1, begin + last - 1))
            tokens.extend(completion)
            positions.extend(range(prompt_length, prompt_length + length))
            ranges.append((begin, begin + length))
        segments.append(Segments(start, start + prompt_length, tuple(ranges)))
    if with_prompts:
        predictors.extend(p for s in segments for p in range(s.start, s.prompt_end - 1))
    return TokenBatch(
        input_ids=torch.tensor([tokens]),
        position_ids=torch.tensor([positions]),
        attention_mask=None,
        segments=tuple(segments),
        predictors=torch.tensor(predictors, dtype=torch.long),
        ends=torch.tensor([end - 1 for s in segments for _, end in s.completions]),
        num_tokens=len(tokens),
        **_targets(groups, with_prompts),
    )


def pack_repeated(groups: Sequence[Group], *, with_prompts: bool = False) -> TokenBatch:
    """Lay groups out in one row, each completion after a copy of its prompt.

    Args:
        groups: at least one.
        with_prompts: score the prompts' own tokens too, in each group's first copy.
    """
    batch = pack([Group(group.prompt, (c,)) for group in groups for c in group.completions])
    assert batch.segments is not None
    predictors = batch.predictors
    if with_prompts:
        firsts = accumulate((len(group.completions) for group in groups[:-1]), initial=0)
        copies = (batch.segments[number] for number in firsts)
        own = [p for copy in copies for p in range(copy.start, copy.prompt_end - 1)]
        predictors = torch.cat([predictors, torch.tensor(own, dtype=torch.long)])
    return replace(batch, segments=None, predictors=predictors, **_targets(groups, with_prompts))


def pad(groups: Sequence[Group], pad_token_id: int, *, with_prompts: bool = False) -> TokenBatch:
    """Lay every completion out in a row of its own after its prompt, padded on the right."""
    laid_out = [(group.prompt, c) for group in groups for c in group.completions]
    rows = [[*prompt, *completion] for prompt, completion in laid_out]
    for group in groups:
        _require_tokens(group)
    width = max(map(len, rows))
    input_ids = torch.full((len(rows), width), pad_token_id)
    attention_mask = torch.zeros(len(rows), width, dtype=torch.long)
    predictors: list[int] = []
    for i, (row, (prompt, completion)) in enumerate(zip(rows, laid_out, strict=True)):
        start = len(prompt)
        input_ids[i, : len(row)] = torch.tensor(row)
        attention_mask[i, : len(row)] = 1
        before = i * width + start - 1
        for first, last in trained_spans(completion):
            predictors.extend(range(before + first, before + last))
    if with_prompts:
        first_row = 0
        for group in groups:
            predictors.extend(range(first_row * width, first_row * width + len(group.prompt) - 1))
            first_row += len(group.completions)
    return TokenBatch(
        input_ids=input_ids,
        position_ids=torch.arange(width).expand(len(rows), width),
        attention_mask=attention_mask,
        segments=None,
        predictors=torch.tensor(predictors, dtype=torch.long),
        ends=torch.tensor([i * width + len(row) - 1 for i, row in enumerate(rows)]),
        num_tokens=sum(map(len, rows)),
        **_targets(groups, with_prompts),
    )


def segment_sums(batch: TokenBatch, values: Tensor) -> Tensor:
    """Sum per-token values `[N]` over each segment, in fp32 or better: completions, then prompts.

    Without scored prompts `[completions]`, with them `[completions + prompts]`.
    """
    totals = values.new_zeros(len(batch.segment_lengths))
    return totals.index_add(0, batch.segment_index, values)


def laid_out(groups: Sequence[Group], *, layout: Layout) -> int:
    """Tokens of one pass: each prompt once, or in each row; padded rows as long as the longest."""
    if layout == "shared":
        return sum(group.num_tokens for group in groups)
    rows = [len(group.prompt) + len(c) for group in groups for c in group.completions]
    return sum(rows) if layout == "repeated" else len(rows) * max(rows)


def _require_tokens(group: Group) -> None:
    assert group.prompt, "a prompt without tokens reached the batch"
    assert group.completions and all(group.completions), "an empty completion reached the batch"


def _targets(groups: Sequence[Group], with_prompts: bool) -> dict[str, Any]:
    completions = (c for group in groups for c in group.completions)
    scored = [
        [t for a, b in c.trained for t in c.ids[a:b]] if isinstance(c, Turns) else c
        for c in completions
    ]
    if with_prompts:
        scored += [group.prompt[1:] for group in groups]
    lengths = torch.tensor([len(tokens) for tokens in scored])
    return {
        "targets": torch.tensor([t for tokens in scored for t in tokens], dtype=torch.long),
        "segment_index": torch.repeat_interleave(torch.arange(len(scored)), lengths),
        "segment_lengths": lengths,
    }
