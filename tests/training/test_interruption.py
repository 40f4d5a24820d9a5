"""Signals that end a run: what is another wish, and what is the same one again."""

from __future__ import annotations

import signal

import pytest

from penchant.training import interruption
from penchant.training.interruption import Interruption

INT, TERM = signal.SIGINT, signal.SIGTERM


@pytest.mark.parametrize(
    ("second", "seconds", "ends_at_once"),
    [(TERM, 1, False), (TERM, 11, True), (INT, 1, True)],
    ids=["a launcher hands it on", "somebody asks again", "Ctrl-C"],
)
@pytest.mark.parametrize("first", [INT, TERM])
def test_a_second_signal_ends_at_once_unless_it_is_the_same_wish(
    monkeypatch: pytest.MonkeyPatch,
    first: signal.Signals,
    second: signal.Signals,
    seconds: float,
    ends_at_once: bool,
) -> None:
    clock = iter([100.0, 100.0 + seconds])
    monkeypatch.setattr(interruption.time, "monotonic", lambda: next(clock))
    one = Interruption()
    one.handle(first, None)
    assert one.wanted
    if ends_at_once:
        with pytest.raises(KeyboardInterrupt):
            one.handle(second, None)
    else:
        one.handle(second, None)
