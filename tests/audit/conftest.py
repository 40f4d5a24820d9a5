"""Rows to find faults in."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

Row = dict[str, Any]
WORDS = [f"{a}{b}{c}" for a in ("ba", "ke", "lo", "mi") for b in ("ru", "sa", "ti") for c in "nptx"]


@pytest.fixture
def make_pairs() -> Callable[..., list[Row]]:
    """Return a function that draws distinct pairs of random words."""

    def make(count: int, seed: int = 0) -> list[Row]:
        draw = random.Random(seed)

        def text(length: int) -> str:
            return " ".join(draw.choices(WORDS, k=length)) + "."

        return [
            {"prompt": text(12), "chosen": text(30), "rejected": text(30)} for _ in range(count)
        ]

    return make
