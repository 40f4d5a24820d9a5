"""Queries, responses and scores as scripts pass them: padded tensors or lists."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from penchant.core.errors import ConfigError

Tokens = list[int]


def query_ids(queries: Any, pad_token_id: int | None) -> list[Tokens]:
    """Token ids of every query.

    No mask says what is padding in a tensor `[B, T]`: pad tokens at either end are. A list of
    tensors `[T]` is taken as it is.

    Raises:
        ConfigError: neither of the two, or a query without tokens.
    """
    rows = _rows("queries", queries)
    if isinstance(queries, Tensor):
        rows = [_stripped(row, pad_token_id) for row in rows]
    return _filled("queries", rows, "give every query a token, such as the tokenizer's BOS")


def response_ids(
    responses: Any, pad_token_id: int | None, end_token_ids: Collection[int]
) -> list[Tokens]:
    """Token ids of every response.

    In a tensor `[B, T]` pad tokens on the right are padding; where the pad token is also one that
    ends an answer, the first of them did.

    Raises:
        ConfigError: neither a tensor nor a list, or a response without tokens.
    """
    rows = _rows("responses", responses)
    if isinstance(responses, Tensor):
        rows = [_ended(row, pad_token_id, end_token_ids) for row in rows]
    return _filled(
        "responses", rows,
        "leave it out, with its query and score (`generate` returns no prompts: nothing is to be "
        "sliced off its responses)",
    )  # fmt: skip


def score_values(scores: Any) -> list[float]:
    """Every score: a tensor of one element, or a number.

    Raises:
        ConfigError: several elements, or not a finite number.
    """
    values = []
    for i, score in enumerate(scores):
        value = torch.as_tensor(score)
        if value.numel() != 1 or value.dim() > 1:
            raise ConfigError(
                f"scores[{i}] must be one number, got shape {tuple(value.shape)}; give one a query"
            )
        values.append(float(value))
        if not math.isfinite(values[-1]):
            raise ConfigError(f"scores[{i}] is {values[-1]}; correct the reward, or leave it out")
    return values


def require_batch(columns: Mapping[str, Any], batch_size: int) -> None:
    """Require that every column holds a whole batch.

    Raises:
        ConfigError: one holds another number of entries.
    """
    for name, values in columns.items():
        if len(values) != batch_size:
            raise ConfigError(
                f"{name} holds {len(values)} entries and batch_size is {batch_size}; pass whole "
                "batches (drop_last=True in a data loader), or set batch_size"
            )


def token_masks(masks: Any, responses: Sequence[Tokens]) -> list[Tensor] | None:
    """`[T]` bool of every response: the tokens that are learned from.

    Raises:
        ConfigError: they do not fit the responses, or leave nothing of one.
    """
    if masks is None:
        return None
    rows = []
    for i, (mask, response) in enumerate(zip(masks, responses, strict=True)):
        own = torch.as_tensor(mask).cpu().flatten().bool()
        if isinstance(masks, Tensor):  # padded as the responses are
            own = own[: len(response)]
        if len(own) != len(response) or not own.any():
            raise ConfigError(
                f"response_masks[{i}] has {len(own)} entries, {int(own.sum())} of them not 0, for "
                f"a response of {len(response)} tokens; give one a token, and at least one 1"
            )
        rows.append(own)
    return rows


def without_tails(
    responses: Sequence[Tokens], masks: Sequence[Tensor] | None
) -> tuple[list[Tokens], Tensor]:
    """Responses up to the last token that is learned from, and the masks end to end `[N]`."""
    if masks is None:
        return list(responses), torch.ones(sum(map(len, responses)), dtype=torch.bool)
    lengths = [int(mask.nonzero().max()) + 1 for mask in masks]
    cut = [row[:n] for row, n in zip(responses, lengths, strict=True)]
    return cut, torch.cat([mask[:n] for mask, n in zip(masks, lengths, strict=True)])


def like(
    queries: Any,
    prompts: Sequence[Tokens],
    responses: Sequence[Tokens],
    return_prompt: bool,
    pad_token_id: int,
    device: torch.device,
) -> Any:
    """Responses in the form of the queries: a list, or a tensor padded on the right.

    Args:
        queries: as they were passed; prompts: their token ids.
        responses: token ids.
        return_prompt: put the query in front.
        pad_token_id, device: of what is returned.
    """
    if isinstance(queries, Tensor):
        width = max(map(len, responses))
        rows = [[*row, *[pad_token_id] * (width - len(row))] for row in responses]
        out = torch.tensor(rows, device=device)
        return torch.cat([queries.to(device), out], 1) if return_prompt else out
    pairs = zip(prompts, responses, strict=True)
    full = [[*prompt, *row] if return_prompt else row for prompt, row in pairs]
    return [torch.tensor(row, device=device) for row in full]


def _rows(name: str, value: Any) -> list[Tokens]:
    if isinstance(value, Tensor) and value.dim() == 2:
        return [list(map(int, row)) for row in value.tolist()]
    if isinstance(value, list) and all(isinstance(v, Tensor) and v.dim() == 1 for v in value):
        return [list(map(int, row.tolist())) for row in value]
    got = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise ConfigError(
        f"{name} must be a tensor [batch, tokens] or a list of tensors [tokens], got {got}"
    )


def _stripped(row: Tokens, pad: int | None) -> Tokens:
    first, last = 0, len(row)
    while first < last and row[first] == pad:
        first += 1
    while first < last and row[last - 1] == pad:
        last -= 1
    return row[first:last]


def _ended(row: Tokens, pad: int | None, ends: Collection[int]) -> Tokens:
    last = len(row)
    while last and row[last - 1] == pad:
        last -= 1
    ended = last > 0 and row[last - 1] in ends
    return row[: last + 1] if pad in ends and not ended else row[:last]


def _filled(name: str, rows: list[Tokens], fix: str) -> list[Tokens]:
    if not rows:
        raise ConfigError(f"{name} is empty; pass at least one")
    for i, row in enumerate(rows):
        if not row:
            raise ConfigError(f"{name}[{i}] holds no tokens; {fix}")
    return rows
