"""Weights that processes divide: handed out as they were, and gathered in step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from penchant.core.errors import ModelError
from penchant.models.sharding import empty, opened


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


class Unit(torch.nn.Module):
    """What torch makes of a module that processes divide; it notes what it is told."""

    def __init__(self, *inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = torch.nn.ModuleList(inner)
        self.told: list[str] = []

    def set_reshard_after_forward(self, after: bool, recurse: bool) -> None:
        assert not recurse

    def unshard(self) -> None:
        self.told.append("gather")

    def reshard(self) -> None:
        self.told.append("give up")

    def reset_iter_state(self) -> None:
        self.told.append("reset")


def test_weights_are_gathered_once_however_often_one_process_fails_on_them() -> None:
    """What is gathered again by one process alone, the others would wait for in another place."""
    layer = Unit()
    root = Unit(layer)
    with opened(root, layers=True):
        for _ in range(2):
            with pytest.raises(KeyError), opened(root, layers=True):
                raise KeyError("a layer")
        assert root.told == layer.told == ["gather"]
    assert layer.told == ["gather", "give up"]
    assert root.told == ["gather", "give up", "reset"]
    with opened(root):
        pass
    assert root.told[3:] == ["gather", "give up"]
