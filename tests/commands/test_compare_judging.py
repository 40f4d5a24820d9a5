"""A judge that fails on all of a point's answers: that point is not judged, and the others are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import penchant
from penchant.cli.compare import print_comparison
from penchant.cli.main import main
from penchant.commands.yardstick import Measured, Yardstick
from penchant.core.errors import RewardError

METHODS = ["dpo", "orpo", "simpo"]
JUDGE = (
    "from pathlib import Path\n"
    "def score(completions, **_):\n"
    "    if Path(__file__).with_name('away').exists():\n"
    "        raise ConnectionError('the judge is away')\n"
    "    return [float(len(text)) for text in completions]\n"
)


@pytest.fixture
def away(tmp_path: Path) -> Path:
    """Return the file whose presence makes the judge fail."""
    return tmp_path / "away"


@pytest.fixture
def keys(tiny_keys: dict[str, Any], held_out_file: Path, tmp_path: Path) -> dict[str, Any]:
    """Return the keys of a comparison by a judge that can be sent away."""
    (tmp_path / "judge.py").write_text(JUDGE)
    keys = {"eval_data": str(held_out_file), "monitor_reward": f"{tmp_path / 'judge.py'}:score"}
    return {**tiny_keys, **keys, "max_steps": 2, "lora_r": 4, "output": str(tmp_path / "c")}


@pytest.fixture
def away_at(away: Path) -> Iterator[Callable[..., None]]:
    """Return a function that says while which points, in their order, the judge is away."""
    with pytest.MonkeyPatch.context() as patch:
        whole = Yardstick.measure

        def away_at(*numbers: int) -> None:
            measured: list[Path] = []

            def measure(yardstick: Yardstick) -> Measured:
                # Away until the next point is measured: the start's answers meet that, too.
                away.unlink(missing_ok=True)
                if len(measured) in numbers:
                    away.touch()
                measured.append(yardstick.config.output)
                return whole(yardstick)

            patch.setattr(Yardstick, "measure", measure)

        yield away_at


def test_a_point_that_cannot_be_judged_says_why_and_the_others_are_compared(
    keys: dict[str, Any],
    tmp_path: Path,
    away: Path,
    away_at: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = penchant.compare(METHODS, **{**keys, "output": str(tmp_path / "whole")})
    away_at(1)
    found = penchant.compare(METHODS, **keys)
    assert "orpo could not be judged: reward score failed" in capsys.readouterr().err
    first, second, third = found.points
    assert [one.measured for one in (first, third)] == [whole.points[i].measured for i in (0, 2)]
    assert (second.error, first.unjudged, third.unjudged) == (None, None, None)
    assert second.unjudged is not None and "the judge is away" in second.unjudged
    assert second.measured is not None and whole.points[1].measured is not None
    for name in ("implicit", "raw", "kl", "length", "answers"):
        assert getattr(second.measured, name) == getattr(whole.points[1].measured, name)
    assert second.measured.reward == second.measured.win_rate == []
    assert found.best != 1 and found.recommended != 1
    assert "1 point could not be judged" in found.reason

    recorded = json.loads((tmp_path / "c" / "compare.json").read_text())["points"]
    assert [one["unjudged"] for one in recorded] == [None, second.unjudged, None]
    assert "implicit" in recorded[1]["measured"] and "win_rate" not in recorded[1]["measured"]
    monkeypatch.setenv("COLUMNS", "200")
    print_comparison(found)
    shown = capsys.readouterr().out
    assert shown.count("not judged") == 2  # its win rate and its reward
    assert "orpo could not be judged: reward score failed" in shown

    away.unlink(missing_ok=True)
    away_at()
    step = "penchant.training.step.Step.take"
    monkeypatch.setattr(step, lambda *_: pytest.fail("a step was taken again"))
    again = penchant.compare(METHODS, **keys, resume=True)
    assert [one.measured for one in again.points] == [one.measured for one in whole.points]
    assert [one.unjudged for one in again.points] == [None] * 3
    assert again.recommended == whole.recommended


def test_a_judge_that_stops_serving_leaves_the_later_points_trained_and_not_judged(
    keys: dict[str, Any],
    tmp_path: Path,
    serve_chat: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = serve_chat(lambda text: f"Score: {len(text) % 7 + 1}")
    file = tmp_path / "judge.yaml"
    file.write_text(f"url: {server.url}\nretries: 0\n")
    whole = Yardstick.measure

    def measure(yardstick: Yardstick) -> Measured:
        measured = whole(yardstick)
        server.shutdown()
        server.server_close()
        return measured

    monkeypatch.setattr(Yardstick, "measure", measure)
    # Of two models that say the same the second is judged without a server.
    monkeypatch.setattr("penchant.core.answer_cache.AnswerCache.get", lambda *_: None)
    keys |= {"monitor_reward": f"judge:{file}"}
    first, second = penchant.compare(["dpo", "simpo"], **keys).points
    assert first.unjudged is None and first.measured is not None and first.measured.reward
    assert second.unjudged is not None and "Connection refused" in second.unjudged
    assert (second.output / "checkpoints" / "step-2").exists()


def test_a_judge_that_fails_on_every_point_is_an_error_that_keeps_the_runs(
    keys: dict[str, Any],
    tmp_path: Path,
    away_at: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    away_at(0, 1)
    words = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
    assert main(["compare", *words, "--methods", "dpo,orpo"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "penchant: monitor_reward judged no point: reward score failed" in said
    assert "--resume has the trained points judged without another step" in said
    recorded = json.loads((tmp_path / "c" / "compare.json").read_text())
    assert recorded["recommended"] is None
    assert all(one["unjudged"] and one["measured"]["implicit"] for one in recorded["points"])
    for method in ("dpo", "orpo"):
        assert (tmp_path / "c" / method / "checkpoints" / "step-2").exists()


def test_a_judge_that_fails_on_the_start_is_an_error_before_a_step_is_taken(
    keys: dict[str, Any], away: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away.touch()
    step = "penchant.training.step.Step.take"
    monkeypatch.setattr(step, lambda *_: pytest.fail("a step was taken"))
    with pytest.raises(RewardError, match="the judge is away; so did every other of 8 samples"):
        penchant.compare(["dpo"], **keys)
