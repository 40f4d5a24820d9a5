"""Models whose weights another process hands out: what is one weight stays one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from penchant.core.errors import ModelError
from penchant.models.sharding import empty


def dtypes_of(model: Any) -> dict[str, torch.dtype]:
    return {name: torch.bfloat16 for name, _ in model.named_parameters()}


def test_a_head_that_is_the_embedding_stays_it_without_memory(make_model: Any) -> None:
    model = make_model(tie_word_embeddings=True)
    model.model.norm.requires_grad_(False)
    empty(model, dtypes_of(model))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}
    assert {b.device.type for b in model.buffers()} == {"meta"}
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["model.norm.weight"]


def test_files_with_a_head_beside_the_embedding_that_it_is_said_to_be_are_refused(
    make_model: Any,
) -> None:
    with pytest.raises(ModelError, match=r"lm_head.weight.*set tie_word_embeddings to false"):
        empty(make_model(tie_word_embeddings=True), dtypes_of(make_model()))
