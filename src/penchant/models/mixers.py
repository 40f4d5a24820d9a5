"""Layers that carry a state along the sequence, in a packed row: a row of its own a completion.

Attention can share a prompt. A recurrent layer (Gated DeltaNet, Mamba) or a convolution cannot:
its state at the prompt's end goes on with one completion. Around these modules alone the packed
row `[1, T]` is copied to `[completions, L]`, the module runs as it is, and its outputs are put
back. The modules are causal, so that a prompt has the same outputs in all rows, of which the first
is taken, and what is padded on the right reaches nothing.

Linear layers inside such a module work on each position alone: they are given the positions of the
packed row, so that no prompt is multiplied twice there either. No model code is patched: `forward`
of the instances is replaced, and restored when the layout is no longer packed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from penchant.core.machine import to_device

if TYPE_CHECKING:
    from torch import Tensor

    from penchant.data.batch import Segments
    from penchant.models.segments import SegmentTable

# Groups stand in one batch of rows while the shorter's longest row fills this share of the width.
FILLED = 0.75
# Keywords of the caches that such modules read and write; scoring uses none.
CACHES = ("cache_params", "past_key_values")


def take_packed_rows(modules: list[nn.Module]) -> None:
    """Let these modules take packed rows; safe to call more than once."""
    for module in modules:
        if not isinstance(vars(module).get("forward"), _PackedForward):
            packed = _PackedForward(module)
            for linear in _linear_layers(module):
                _SharedLinear(linear, packed)


def take_plain_rows(modules: list[nn.Module]) -> None:
    """Let these modules run as they came, with everything inside of them."""
    for module in modules:
        for part in module.modules():
            replaced = vars(part).get("forward")
            if isinstance(replaced, _Replaced):
                replaced.restore()


@dataclass(frozen=True)
class Rows:
    """Some groups that stand side by side, and their layout with a row for each completion.

    Attributes:
        count, width: of the rows.
        source: `[count * width]`, which of the groups' positions stands at a place; 0 for padding.
        first: `[T]`, the place of a position; of a prompt's, in the first of its rows.
        copies: `[2, K]`, places and positions of the prompts in all rows but their first.
    """

    count: int
    width: int
    source: Tensor
    first: Tensor
    copies: Tensor

    @classmethod
    def of(cls, groups: list[Segments], device: torch.device) -> Rows:
        """The rows of groups, in their order."""
        rows: list[tuple[list[int], int]] = []  # positions, and how many of them are copies
        start = 0
        for group in groups:
            moved = start - group.start
            prompt = range(start, group.prompt_end + moved)
            for number, (begin, end) in enumerate(group.completions):
                completion = range(begin + moved, end + moved)
                rows.append(([*prompt, *completion], len(prompt) if number else 0))
            start = group.end + moved
        width = max(len(positions) for positions, _ in rows)
        source, first = [0] * (len(rows) * width), [0] * start
        copies: tuple[list[int], list[int]] = ([], [])
        for number, (positions, num_copied) in enumerate(rows):
            for place, position in enumerate(positions, start=number * width):
                source[place] = position
                if place - number * width < num_copied:
                    copies[0].append(place)
                    copies[1].append(position)
                else:
                    first[position] = place
        tensors = [torch.tensor(x, dtype=torch.long) for x in (source, first, copies)]
        return cls(len(rows), width, *to_device(tensors, device))

    def lay_out(self, x: Tensor) -> Tensor:
        """`[T, H]` to `[count, width, H]`."""
        return _LayOut.apply(x, self)

    def put_back(self, x: Tensor) -> Tensor:
        """`[count, width, H]` to `[T, H]`."""
        return _PutBack.apply(x, self)


class _LayOut(torch.autograd.Function):
    """A copy of a prompt for each of its completions; their gradients are added up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Rows) -> Tensor:
        ctx.rows = rows
        # No view: a module may work on it in place.
        flat = x.index_select(0, rows.source)
        return torch.ops.aten._unsafe_view(flat, [rows.count, rows.width, x.shape[-1]])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, flat = ctx.rows, grad.flatten(0, 1)  # [count * width, H]
        out = flat.index_select(0, rows.first)  # [T, H]
        places, positions = rows.copies
        return out.index_add_(0, positions, flat.index_select(0, places)), None


class _PutBack(torch.autograd.Function):
    """The first row's outputs at a prompt; the other rows' are equal and are left out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Rows) -> Tensor:
        ctx.rows = rows
        return x.flatten(0, 1).index_select(0, rows.first)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows = ctx.rows
        out = grad.new_zeros(rows.count * rows.width, grad.shape[-1])
        return out.index_copy_(0, rows.first, grad).view(rows.count, rows.width, -1), None


class MixerLayout:
    """The rows of a packed row's groups, those of like length together: little is padded."""

    def __init__(self, groups: tuple[Segments, ...], device: torch.device) -> None:
        def longest(group: Segments) -> int:
            completions = (end - begin for begin, end in group.completions)
            return group.prompt_end - group.start + max(completions)

        ordered = sorted(groups, key=longest, reverse=True)
        batches: list[list[Segments]] = [[]]
        for group in ordered:
            if batches[-1] and longest(group) < FILLED * longest(batches[-1][0]):
                batches.append([])
            batches[-1].append(group)
        if len(batches) == 1:
            batches = [list(groups)]  # no need to move anything
        self.batches = [Rows.of(batch, device) for batch in batches]
        self.lengths = [len(batch.first) for batch in self.batches]
        self._order: Tensor | None = None
        if len(batches) > 1:
            positions = (range(g.start, g.end) for batch in batches for g in batch)
            order = torch.tensor([i for own in positions for i in own])
            (self._order,) = to_device([order], device)
            self._back = self._order.argsort()

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """`[T, H]` in parts, one a batch of rows."""
        return (x if self._order is None else x.index_select(0, self._order)).split(self.lengths)

    def join(self, parts: list[Tensor]) -> Tensor:
        """The parts as `[T, H]` in the packed row's order."""
        joined = parts[0] if len(parts) == 1 else torch.cat(parts)
        return joined if self._order is None else joined.index_select(0, self._back)


def layout_of(segments: SegmentTable, device: torch.device) -> MixerLayout:
    """The rows that layers with a state work on, made once for a packed row."""
    if "mixers" not in segments.kept:
        segments.kept["mixers"] = MixerLayout(segments.groups, device)
    layout: MixerLayout = segments.kept["mixers"]
    return layout


class _Replaced:
    """Stands in for the `forward` of one module."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.before = vars(module).get("forward")  # another library's, as Accelerate's hooks
        module.forward = self

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own forward."""
        if self.before is not None:
            return self.before(*args, **kwargs)
        return type(self.module).forward(self.module, *args, **kwargs)

    def restore(self) -> None:
        """Give the module its own forward back."""
        if self.before is None:
            del self.module.forward
        else:
            self.module.forward = self.before


class _PackedForward(_Replaced):
    """Runs a module on a row for each completion of a packed row."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.rows: Rows | None = None
        """Of the call that is under way."""

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Map `[1, T, H]` to `[1, T, H]`; the segment table comes as `segments=`."""
        segments = kwargs.pop("segments", None)
        kind = type(self.module).__name__
        if segments is None:
            raise ValueError(f"{kind} is not told where the segments of a packed row are")
        if args or any(kwargs.get(name) is not None for name in (*CACHES, "attention_mask")):
            raise ValueError(f"{kind} is given a cache or a mask, which a packed row has not")
        layout = layout_of(segments, hidden_states.device)
        parts = []
        for rows, part in zip(layout.batches, layout.split(hidden_states[0]), strict=True):
            out = self._run(rows, part, kwargs)
            parts.append(rows.put_back(out))
        return layout.join(parts).unsqueeze(0)

    def _run(self, rows: Rows, part: Tensor, kwargs: dict[str, Any]) -> Tensor:
        self.rows = rows
        try:
            out = self.run(rows.lay_out(part), **kwargs)
        finally:
            self.rows = None
        if not isinstance(out, torch.Tensor):
            raise ValueError(f"{type(self.module).__name__} returns more than hidden states")
        return out


class _SharedLinear(_Replaced):
    """Multiplies each position of the packed row once, inside of a module that has rows."""

    def __init__(self, module: Any, mixer: _PackedForward) -> None:
        super().__init__(module)
        self.mixer = mixer

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Map `[count, width, in]` to `[count, width, out]`."""
        rows = self.mixer.rows
        if rows is None or x.dim() != 3 or x.shape[:2] != (rows.count, rows.width):
            return self.run(x, *args, **kwargs)
        return rows.lay_out(self.run(rows.put_back(x), *args, **kwargs))


def _linear_layers(module: nn.Module) -> Iterator[nn.Module]:
    """Linear layers inside of a module, with their adapters."""
    for child in module.children():
        base = child.get_base_layer() if isinstance(child, BaseTunerLayer) else child
        if isinstance(base, nn.Linear):
            yield child
        else:
            yield from _linear_layers(child)
