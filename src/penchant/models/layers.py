"""Which layer of a model a packed row goes wrong in, for the message of the self-check."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from penchant.data.batch import Group
from penchant.models.attention import layer_kinds
from penchant.models.scoring import PLAIN, Scorer

if TYPE_CHECKING:
    from torch import Tensor

# Of the size of what a layer gives: rounding of fp32, and of half precision, is far below it.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
IN_HALF = 0.1


def first_difference(scorer: Scorer, groups: Sequence[Group]) -> str:
    """Words on the first layer whose output differs from a plain forward's, or that fails.

    Args:
        scorer: with the plan that was refused; it keeps it.
        groups: that were compared.

    Returns:
        `, first in layer 3 of 26 (sliding_attention)`; empty where all layers agree or the model
        has no list of layers that give hidden states.
    """
    layers = decoder_layers(scorer)
    plan = scorer.plan
    singles = [Group(group.prompt, (c,)) for group in groups for c in group.completions]
    try:
        packed = _outputs(scorer, layers, [groups])
        scorer.use(PLAIN)
        plain = _outputs(scorer, layers, [[single] for single in singles])
    finally:
        scorer.use(plan)
    number = _first(packed, plain)
    if number is None:
        return ""
    kinds = layer_kinds(scorer.causal_model.config.get_text_config())
    kind = kinds[number] if number < len(kinds) else type(layers[number]).__name__
    return f", first in layer {number + 1} of {len(layers)} ({kind})"


def decoder_layers(scorer: Scorer) -> list[nn.Module]:
    """The longest list of modules in the model: its layers."""
    lists = [m for m in scorer.causal_model.modules() if isinstance(m, nn.ModuleList)]
    return list(max(lists, key=len, default=()))


def _outputs(
    scorer: Scorer, layers: Sequence[nn.Module], passes: Sequence[Sequence[Group]]
) -> list[Tensor]:
    """`[N, H]` of each layer that ran, where tokens of completions are predicted."""
    collected: list[list[Tensor]] = [[] for _ in layers]
    for groups in passes:
        batch = scorer.batch(groups)
        # What it raises was told before: here it only ends the list.
        with _recorded(layers) as outputs, suppress(Exception), torch.no_grad():
            scorer.hidden_states(batch)
        for own, output in zip(collected, outputs, strict=False):
            own.append(output.flatten(0, 1)[batch.predictors])
    return [torch.cat(parts) for parts in collected if len(parts) == len(passes)]


@contextmanager
def _recorded(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """What the layers give while this is open, in the order in which they run."""
    outputs: list[Tensor] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if isinstance(hidden, torch.Tensor) and hidden.dim() == 3:
            outputs.append(hidden.detach())

    handles = [layer.register_forward_hook(note) for layer in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _first(packed: Sequence[Tensor], plain: Sequence[Tensor]) -> int | None:
    for number, theirs in enumerate(plain):
        if number == len(packed):
            return number  # it raised
        ours = packed[number]
        tolerance = TOLERANCE.get(theirs.dtype, IN_HALF)
        if not (ours - theirs).abs().max() <= tolerance * theirs.abs().max():  # NaN as well
            return number
    return None
