"""Actions are read before anything loads, and change no more than their bounds allow."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from penchant.config.actions import Actions, parse_actions
from penchant.config.keys import load_config
from penchant.core.errors import ConfigError
from penchant.guards.monitors.levers import Lever


def test_one_action_for_all_and_others_by_id() -> None:
    policy = parse_actions("stop, reward-hacking=adapt,collapse=rollback")
    assert policy == Actions("stop", {"reward-hacking": "adapt", "collapse": "rollback"})
    assert [policy.of(i) for i in ("drift", "collapse")] == ["stop", "rollback"]
    assert not any(parse_actions("warn").wants(a) for a in ("adapt", "rollback", "stop"))
    assert parse_actions("collapse=rollback").wants("rollback")


def test_adapt_for_all_leaves_a_warning_where_it_would_harm() -> None:
    policy = parse_actions("adapt")
    assert (policy.of("drift"), policy.of("no-learning")) == ("adapt", "warn")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("explode", "unknown action 'explode'; known are warn, adapt, rollback, stop"),
        ("colapse=stop", "did you mean collapse"),
        ("xyz=stop", "known are reward-hacking"),
        ("no-learning=adapt", "does not help against no-learning"),
    ],
)
def test_what_cannot_be_is_refused_with_the_configuration(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config("dpo", {"model": "m", "data": "d", "on_finding": text})


def test_lever_doubles_up_to_its_bound() -> None:
    held = SimpleNamespace(value=0.0)
    lever = Lever("k", lambda: held.value, lambda v: setattr(held, "value", v), 0.3, 0.1)
    assert [lever.turn() for _ in range(4)] == [
        "k raised from 0 to 0.1", "k raised from 0.1 to 0.2", "k raised from 0.2 to 0.3", "",
    ]  # fmt: skip
    held.value = 5.0
    assert lever.turn() == "" and held.value == 5.0, "a larger one that was asked for stays"


def test_lever_halves_down_to_its_bound() -> None:
    held = SimpleNamespace(value=0.8)
    lever = Lever("k", lambda: held.value, lambda v: setattr(held, "value", v), 0.3, factor=0.5)
    assert [lever.turn() for _ in range(3)] == [
        "k lowered from 0.8 to 0.4", "k lowered from 0.4 to 0.3", "",
    ]  # fmt: skip
