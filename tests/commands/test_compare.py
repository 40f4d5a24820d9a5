"""Methods by one yardstick: the figures are those of the models, and chance is called chance."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import penchant
from penchant.cli.main import main
from penchant.commands.compare_plan import plan
from penchant.commands.comparison import Compared, conclude
from penchant.commands.yardstick import Measured, StartReference, Yardstick
from penchant.core.errors import ConfigError, TrainingError
from penchant.data.batch import Group
from penchant.models.scoring import Scorer

GROUPS = [Group([5, 6, 7], ([8, 9, 2], [10, 2])), Group([5, 11], ([12, 2], [13, 14, 15, 2]))]


def measured(right: int, *, kl: float, of: int = 200) -> Measured:
    """A model that ranks the first `right` of so many pairs right, each of its own prompt."""
    order = list(range(of))
    random.Random(right).shuffle(order)
    ranks = [1.0 if order[i] < right else 0.0 for i in range(of)]
    prompts = [str(i) for i in range(of)]
    answers = ["a", "b"]
    return Measured(prompts, ranks, ranks, answers, [kl, kl], [3.0, 3.0], [], [], [])


def compared(name: str, one: Measured | None) -> Compared:
    return Compared(name, {}, Path(name), one, error=None if one else "diverged")


def test_what_chance_may_have_ordered_is_said_to_be_so_and_the_nearest_is_taken() -> None:
    start = measured(100, kl=0.0)
    points = [compared("a", measured(150, kl=9)), compared("b", measured(146, kl=3)),
              compared("c", measured(90, kl=1)), compared("d", None)]  # fmt: skip
    judged, best, chosen, reason = conclude("implicit", start, points)
    assert (best, chosen) == (0, 1)
    assert judged[1].behind is not None and judged[1].behind.by_chance
    assert judged[2].behind is not None and judged[2].behind.low > 0
    assert judged[2].behind.mean == pytest.approx(0.3)
    assert "2 of 3 points cannot be told apart from the best" in reason
    assert "nearest to the start. It differs from the start: +0.230" in reason


def test_points_that_differ_on_five_pairs_of_many_are_not_told_apart() -> None:
    """All five one way: p = 2 / 32, though no resample in twenty turns the mean around."""
    start, better = measured(100, kl=0.0), measured(100, kl=2.0)
    five = [i for i, rank in enumerate(better.implicit) if not rank][:5]
    better.implicit[:] = [1.0 if i in five else rank for i, rank in enumerate(better.implicit)]
    points = [compared("a", better), compared("b", measured(100, kl=1.0))]
    judged, best, chosen, reason = conclude("implicit", start, points)
    assert (best, chosen) == (0, 1)
    assert judged[1].behind is not None and judged[1].behind.low > 0
    assert "the 2 points cannot be told apart" in reason
    assert "It cannot be told apart from the start" in reason
    apart = conclude("implicit", start, points[:1])[3]
    assert "start: +0.025 [" in apart and "not equal on 5 of 200 prompts, p = 0.062" in apart


def test_points_that_could_not_be_judged_are_counted_where_the_judge_decides() -> None:
    judged = measured(100, kl=1)
    judged.reward[:], judged.win_rate[:] = [1.0, 2.0], [1.0, 0.5]
    points = [compared("a", judged), compared("b", measured(120, kl=1)), compared("c", None)]
    _, best, chosen, reason = conclude("win_rate", judged, points)
    assert (best, chosen) == (0, 0)
    assert "1 of 1 points cannot be told apart from the best; 1 point could not be judged" in reason
    assert "judged" not in conclude("implicit", judged, points)[3]


def test_points_that_all_failed_leave_nothing_to_recommend() -> None:
    assert conclude("raw", measured(1, kl=0), [compared("a", None)])[1:] == (
        None, None, "every point failed",
    )  # fmt: skip


def test_one_model_asked_twice_differs_by_nothing() -> None:
    one = measured(120, kl=1)
    difference = one.ahead(one, "implicit")
    assert difference is not None and (difference.low, difference.high) == (0, 0)


def test_the_start_stands_in_for_a_second_model(make_model: Any) -> None:
    policy, start = Scorer(make_model(), 0), Scorer(make_model(), 0)
    trained = dict(policy.named_parameters())
    weights = {name: one.detach().clone() for name, one in trained.items()}
    with torch.no_grad():
        for parameter in trained.values():
            parameter.mul_(1.3)
        changed = {name: one.detach().clone() for name, one in trained.items()}
        batch = policy.batch(GROUPS)
        reference = StartReference(policy, trained, weights)
        expected = torch.zeros(4).index_add(0, batch.segment_index, start(batch))
        torch.testing.assert_close(reference.sums(GROUPS, batch), expected)
    for name, parameter in trained.items():
        torch.testing.assert_close(parameter.detach(), changed[name], rtol=0, atol=0)


@pytest.mark.slow
def test_every_figure_is_the_models_own(
    tiny_keys: dict[str, Any], held_out_file: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    keys = {**tiny_keys, "eval_data": held_out_file, "output": tmp_path / "c"}
    keys |= {"max_steps": 4, "cache_dir": tmp_path / "cache"}
    words = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
    words += ["--methods", "dpo,ipo,kto,simpo", "--dpo.beta", "0.03,0.3", "--num_answers", "8",
              "--monitor_reward", "length:3"]  # fmt: skip
    assert main(["compare", *words, "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["yardstick"] == "win_rate"
    names = ["dpo,beta=0.03", "dpo,beta=0.3", "ipo", "kto", "simpo"]
    assert [Path(one["output"]).name for one in found["points"]] == names
    for one in found["points"]:
        own = penchant.evaluate(
            model=one["output"], data=held_out_file, reference=tiny_keys["model"], method="dpo"
        )
        assert one["measured"]["implicit"]["mean"] == pytest.approx(own.accuracy)
        assert one["measured"]["raw"]["mean"] == pytest.approx(own.logprob_accuracy)
        assert one["measured"]["kl"]["mean"] > 0
        assert one["measured"]["win_rate"]["num_prompts"] == 8
    assert found["start"]["implicit"]["mean"] == found["start"]["win_rate"]["mean"] == 0.5
    # The log-probs that DPO's reference was asked for serve its second point, and IPO.
    assert re.findall(r"reference cache .*: (\d+) completions scored now", err) == ["48", "0"]
    assert (tmp_path / "c" / "compare.png").stat().st_size > 10_000

    before = (tmp_path / "c" / "ipo" / "summary.json").stat().st_mtime_ns
    assert main(["compare", *words]) == 1
    assert "--resume to go on" in capsys.readouterr().err
    assert main(["compare", *words, "--resume"]) == 0
    assert (tmp_path / "c" / "ipo" / "summary.json").stat().st_mtime_ns == before
    shown = capsys.readouterr().out
    assert "yardstick: win_rate, the share of prompts" in shown


def test_all_weights_are_compared_too(
    tiny_keys: dict[str, Any], held_out_file: Path, tmp_path: Path
) -> None:
    keys = {**tiny_keys, "eval_data": str(held_out_file), "max_steps": 2, "lora_r": 0}

    def compare(num_answers: int, **more: Any) -> Any:
        more |= {"output": tmp_path / "c", "num_answers": num_answers}
        return penchant.compare(["dpo", "orpo"], **{**keys, **more})

    found = compare(4)
    assert found.yardstick == "implicit" and found.recommended is not None
    for one in found.points:
        assert one.measured is not None
        assert any(one.measured.kl) and not one.measured.reward
    of_orpo = tmp_path / "c" / "orpo" / "yardstick.json"
    of_orpo.unlink()  # and no checkpoint is left: the point is trained again
    assert compare(4, resume=True).points[1].measured == found.points[1].measured
    for others in ({"num_answers": 3}, {"num_answers": 4, "max_new_tokens": 5}):
        with pytest.raises(TrainingError, match=r"start/yardstick.json holds .* then, \d now"):
            compare(**others, resume=True)
    of_orpo.unlink()
    of_start = tmp_path / "c" / "start" / "yardstick.json"
    of_start.write_text(json.dumps({**json.loads(of_start.read_text()), "asked": {}}))
    with pytest.raises(TrainingError, match="held-out pairs differ"):
        compare(3, resume=True)


def test_a_point_that_was_not_measured_is_measured_from_its_last_checkpoint(
    tiny_keys: dict[str, Any],
    held_out_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = {**tiny_keys, "eval_data": str(held_out_file), "max_steps": 2, "lora_r": 4}

    def compare(name: str, **more: Any) -> Any:
        return penchant.compare(["dpo"], **keys, **more, output=tmp_path / name, num_answers=4)

    def short_of_memory(_: Yardstick) -> Measured:
        raise TrainingError("out of memory while answers were measured")

    whole = compare("whole").points[0]
    with monkeypatch.context() as patch:
        patch.setattr(Yardstick, "measure", short_of_memory)
        with pytest.raises(TrainingError, match="out of memory while answers were measured"):
            compare("c")
    run = tmp_path / "c" / "dpo"
    assert (run / "point.json").exists() and (run / "checkpoints" / "step-2").exists()
    step = "penchant.training.step.Step.take"
    monkeypatch.setattr(step, lambda *_: pytest.fail("a step was taken again"))
    (point,) = compare("c", resume=True).points
    assert point.measured == whole.measured is not None
    assert not (run / "checkpoints").exists()


def test_answers_that_cannot_be_judged_are_left_out(
    tiny_keys: dict[str, Any],
    held_out_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As where a judge is cut off at max_tokens, or refuses one text."""
    file = tmp_path / "rewards.py"
    file.write_text(
        "def judge(completions, prompts, **_):\n"
        "    return [None if '25' in p else len(c) for p, c in zip(prompts, completions)]\n"
    )
    keys = {**tiny_keys, "eval_data": str(held_out_file), "max_steps": 2, "lora_r": 4}
    keys |= {"output": tmp_path / "c", "monitor_reward": f"{file}:judge"}
    found = penchant.compare(["dpo"], **keys)
    assert "1 of 8 answers have no reward and are left out" in capsys.readouterr().err
    again = penchant.compare(["dpo"], **keys, resume=True)
    for one in (found, again):
        assert (one.yardstick, one.recommended) == ("win_rate", 0)
        for measured in (one.start, one.points[0].measured):
            assert measured is not None
            assert sum(map(math.isnan, measured.reward)) == 1
            rate = measured.interval("win_rate")
            assert rate is not None and rate.num_prompts == 7


def test_an_adapter_that_took_something_out_of_its_base_is_held_against_its_start(
    tiny_keys: dict[str, Any], held_out_file: Path, tmp_path: Path
) -> None:
    keys = {**tiny_keys, "eval_data": str(held_out_file), "max_steps": 2, "lora_r": 4}
    keys |= {"peft": {"init_lora_weights": "pissa"}, "output": tmp_path / "c", "num_answers": 4}
    found = penchant.compare(["orpo"], **keys)
    assert found.start.kl == pytest.approx([0.0] * len(found.start.kl), abs=1e-4)
    (point,) = found.points
    assert point.measured is not None and any(abs(nats) > 1e-3 for nats in point.measured.kl)


def test_points_that_go_further_are_measured_again(
    tiny_keys: dict[str, Any], held_out_file: Path, tmp_path: Path
) -> None:
    keys = {**tiny_keys, "eval_data": str(held_out_file), "output": tmp_path / "c", "lora_r": 4}
    first = penchant.compare(["orpo"], **keys, max_steps=2, num_answers=2)
    again = penchant.compare(["orpo"], **keys, max_steps=6, num_answers=2, resume=True)
    (before,), (after,) = first.points, again.points
    assert before.measured is not None and after.measured is not None
    assert before.measured.answers and before.measured.kl != after.measured.kl
    assert json.loads((after.output / "summary.json").read_text())["steps"] == 6


KEYS = {"model": "m", "data": "d", "train_fraction": 0.5, "output": "c"}


def test_an_option_is_of_the_methods_that_have_it() -> None:
    points = plan(
        ["dpo", "simpo"], {"beta": [0.1, 0.3], "simpo.beta": [2]}, {**KEYS, "gamma": 0.4},
        None,
    )  # fmt: skip
    named = [(one.config.output.name, one.config.options.beta) for one in points]
    assert named == [("dpo,beta=0.1", 0.1), ("dpo,beta=0.3", 0.3), ("simpo,beta=2", 2.0)]
    assert points[2].config.options.gamma == 0.4


@pytest.mark.parametrize(
    ("methods", "vary", "keys", "message"),
    [
        (["dpo", "grpo"], {}, {}, "grpo learns no policy from pairs"),
        (["dpo", "dpo"], {}, {}, "give each once"),
        (["kto"], {}, {}, "penchant sweep"),
        (["dp"], {}, {}, "did you mean dpo"),
        (["dpo"], {"max_length": [64, 128]}, {}, "max_length cannot differ between points"),
        (["dpo"], {"strict": [True, False]}, {}, "strict cannot differ between points"),
        (["dpo"], {}, {"orpo.beta": 1}, "orpo.beta is of no method that is compared"),
        (["dpo", "ipo"], {}, {"bta": 1}, "bta"),
        (["dpo"], {}, {"train_fraction": None}, "set train_fraction or eval_data"),
    ],
    ids=["samples", "twice", "labels", "unknown", "fixed", "reads", "foreign", "key", "held-out"],
)
def test_what_could_not_be_compared_is_refused(
    methods: list[str], vary: Any, keys: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(methods, vary, {**KEYS, **keys}, None)


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = SimpleNamespace(num_processes=2)
    monkeypatch.setattr("penchant.commands.compare.make_accelerator", lambda _: launched)
    with pytest.raises(ConfigError, match="2 were launched; start it without a launcher"):
        penchant.compare(["dpo"], {}, **KEYS)


@pytest.mark.parametrize("number", [0, -1])
def test_a_comparison_without_answers_is_refused(number: int) -> None:
    message = f"num_answers must be at least 1, got {number}; set num_answers"
    with pytest.raises(ConfigError, match=message):
        penchant.compare(["dpo"], {}, num_answers=number, **KEYS)
