"""Completions of one prompt together, so that its tokens are laid out once."""

from __future__ import annotations

from collections.abc import Sequence

from penchant.data.batch import Group


def share_prompts(
    items: Sequence[tuple[Sequence[int], Sequence[int]]],
) -> tuple[list[Group], list[int]]:
    """Group items by prompt, so that its tokens are laid out once.

    Returns:
        One group a prompt, and which of the groups' completions each item is.
    """
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for i, (prompt, _) in enumerate(items):
        by_prompt.setdefault(tuple(prompt), []).append(i)
    groups = [
        Group(prompt, tuple(items[i][1] for i in members)) for prompt, members in by_prompt.items()
    ]
    laid_out = [i for members in by_prompt.values() for i in members]
    order = [0] * len(items)
    for number, i in enumerate(laid_out):
        order[i] = number
    return groups, order
