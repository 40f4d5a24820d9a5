"""`max_tokens_per_batch: auto`: the largest passes that fit, and the same ones after a resume."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from penchant.config.keys import load_config
from penchant.core.machine import Room
from penchant.data.batch import laid_out
from penchant.data.budget import FoundLimit, TokenBudget
from penchant.models.footprint import Load, footprint
from penchant.training import token_limit
from penchant.training.accelerator import make_accelerator
from penchant.training.inputs import read_inputs, read_run_data
from penchant.training.kind import kind_of
from penchant.training.prepare import prepare
from penchant.training.workload import count_work, measure_run

KEY = "max_tokens_per_batch"


@pytest.mark.parametrize("room_for", [1, 400, 10**6])
def test_the_largest_passes_that_fit_are_found(
    room_for: int, tiny_keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At least the longest example, at most a whole step."""
    seen: dict[str, Any] = {}

    def measured(config: Any, setup: Any, accelerator: Any) -> Any:
        sizes, room = measure_run(config, setup, accelerator)
        share = seen["load"].predicted / seen["load"].tokens
        load = replace(seen["load"], tokens=room_for, predicted=round(share * room_for))
        peak = footprint(sizes, replace(load, accumulates=True)).peak
        return sizes, Room(held=peak, available=0.0, total=room.total)

    config = load_config("dpo", {**tiny_keys, KEY: "auto", "gradient_accumulation_steps": 4})
    accelerator = make_accelerator(config.precision)
    inputs = read_inputs(config, read_run_data(config, config.data, None))
    work = count_work(config, inputs.train_set)
    seen["load"] = work.load(config, checkpointing=False)
    assert isinstance(seen["load"], Load)
    monkeypatch.setattr(token_limit, "measure_run", measured)
    setup = prepare(config, accelerator, inputs)
    groups = kind_of(config.spec).groups(config, inputs.train_set)
    longest = max(laid_out([group], layout="shared") for group in groups)
    expected = min(max(longest, room_for), 4 * work.longest)
    assert setup.decided[KEY] == expected
    decided = setup.decide(config)
    assert config.max_tokens_per_batch == "auto" and decided.max_tokens_per_batch == expected
    assert max(count_work(decided, inputs.train_set).passes) <= expected


def test_a_run_that_goes_on_keeps_the_limit_that_it_found() -> None:
    limits = (FoundLimit(90), FoundLimit(70), 70)
    first, again, asked = (TokenBudget(limit, lambda some: [], "shared") for limit in limits)
    for budget in (again, asked):
        budget.load_state(first.state())
    assert (first.state()["asked"], again.limit, asked.limit) == ("auto", 90, 70)
