"""The verdict says what became of a run, by its numbers and in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from penchant.reporting.reading import Run
from penchant.reporting.verdict import judge


def _run(metrics: list[dict[str, Any]], **more: Any) -> Run:
    defaults: dict[str, Any] = {
        "summary": {"steps": 100, "train_seconds": 95.0}, "config": {"method": "dpo"},
    }  # fmt: skip
    return Run(Path("run"), "run", metrics=metrics, **{**defaults, **more})


def _accuracies(before: float, after: float, **last: float) -> list[dict[str, Any]]:
    return [
        {"step": 0, "eval/reward/accuracy": before},
        {"step": 100, "eval/reward/accuracy": after, **last},
    ]


def _finding(name: str, **more: Any) -> dict[str, Any]:
    what = {"what": "distinct-2 fell to 0.1"}
    return {"step": 60, "id": name, "severity": "error", **what, **more}


def test_a_healthy_run_is_sound_and_names_its_gain() -> None:
    verdict = judge(_run(_accuracies(0.5, 0.9, **{"monitor/kl_sequence": 4.0})))
    assert verdict.kind == "sound"
    assert "accuracy rose from 0.5 to 0.9" in verdict.outcome
    assert "4 nats" in verdict.outcome and "within the healthy band" in verdict.outcome
    assert verdict.state == "The run finished 100 steps in 1 min 35 s, and no error or warning was found."  # noqa: E501  # fmt: skip


def test_a_hacked_reward_outweighs_a_rising_one() -> None:
    metrics = [{"step": n, "reward/mean": n / 100, "kl/sequence": n / 2} for n in range(1, 101)]
    verdict = judge(_run(metrics, findings=[_finding("reward-hacking")]))
    assert verdict.kind == "failed"
    assert verdict.outcome.startswith("The reward was hacked (step 60): distinct-2 fell")


def test_a_danger_that_was_mended_is_a_doubt_and_not_a_failure() -> None:
    found = _finding("reward-hacking", action="KL coefficient 0.05 to 0.2")
    metrics = [{"step": n, "reward/mean": n / 100, "kl/sequence": 6.0} for n in range(1, 101)]
    verdict = judge(_run(metrics, findings=[found]))
    assert verdict.kind == "doubtful"
    assert "KL coefficient 0.05 to 0.2" in verdict.outcome and "6 nats" in verdict.outcome


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [(0.62, 0.62, "did not learn"), (0.62, 0.5, "got worse"), (0.5, 0.504, "did not learn")],
)
def test_held_out_accuracy_that_does_not_rise_is_a_failure(
    before: float, after: float, words: str
) -> None:
    verdict = judge(_run(_accuracies(before, after)))
    assert verdict.kind == "failed" and words in verdict.outcome


@pytest.mark.parametrize(("kl", "kind"), [(0.1, "doubtful"), (12.0, "doubtful"), (30.0, "failed")])
def test_kl_out_of_its_band_is_told_though_no_guard_ran(kl: float, kind: str) -> None:
    verdict = judge(_run(_accuracies(0.5, 0.9, **{"monitor/kl_sequence": kl})))
    assert verdict.kind == kind and f"{kl:g} nats" in verdict.outcome


def test_a_run_that_a_guard_stopped_says_why() -> None:
    summary = {"steps": 40, "train_seconds": 9.0, "stopped": "collapse"}
    verdict = judge(_run(_accuracies(0.5, 0.9), summary=summary))
    assert verdict.kind == "doubtful" and "stopped at step 100: collapse" in verdict.state


def test_a_killed_run_is_unfinished_and_names_its_last_step() -> None:
    verdict = judge(_run(_accuracies(0.5, 0.9), summary=None))
    assert verdict.kind == "unfinished" and "did not finish" in verdict.state
    assert "last logged step is 100" in verdict.state


def test_a_run_that_broke_down_is_failed_though_it_is_unfinished() -> None:
    verdict = judge(_run([{"step": 1, "loss": 0.7}], summary=None, findings=[
        {"step": 2, "id": "not-finite", "severity": "error", "what": "the loss"},
    ]))  # fmt: skip
    assert verdict.kind == "failed" and "broke down (step 2): the loss" in verdict.outcome


def test_nothing_logged_is_unknown() -> None:
    assert judge(_run([])).kind == "unknown"


def _evaluated(before: float, after: float, pairs: int, **more: tuple[float, float]) -> list[Any]:
    """Held-out evaluations before and after a run."""
    records = []
    for step, accuracy, i in ((0, before, 0), (100, after, 1)):
        own = {f"eval/{name.replace('_', '/')}": values[i] for name, values in more.items()}
        records.append(
            {"step": step, "eval/num_examples": pairs, "eval/reward/accuracy": accuracy, **own}
        )
    return records


def test_one_pair_of_sixty_is_no_sound_progress() -> None:
    verdict = judge(_run(_evaluated(30 / 60, 31 / 60, 60)))
    assert verdict.kind == "doubtful"
    assert "cannot be told apart from chance" in verdict.outcome and "± 0.065" in verdict.outcome
    assert judge(_run(_evaluated(30 / 60, 45 / 60, 60))).kind == "sound"


@pytest.mark.parametrize(
    ("right", "pairs", "kind"),
    [(4, 4, "doubtful"), (5, 5, "doubtful"), (6, 6, "sound"), (7, 8, "doubtful"), (8, 9, "sound")],
)
def test_a_few_pairs_are_judged_as_by_the_sign_test(right: int, pairs: int, kind: str) -> None:
    """Two-sided p: 1/8, 1/16, 1/32, 18/256, 20/512."""
    after = {"step": 100, "eval/num_examples": pairs, "eval/reward/accuracy": right / pairs}
    assert judge(_run([after])).kind == kind


def test_a_run_that_starts_at_its_reference_is_held_against_a_coin() -> None:
    """A point of a sweep is evaluated once, after training."""
    after = {"step": 100, "eval/num_examples": 100, "eval/reward/accuracy": 0.55}
    verdict = judge(_run([after]))
    assert verdict.kind == "doubtful" and "chance" in verdict.outcome
    assert "held-out accuracy rose from 0.5 to 0.55 ± 0.05" in verdict.outcome
    assert judge(_run([{**after, "eval/reward/accuracy": 0.8}])).kind == "sound"
    for config in ({"method": "simpo"}, {"method": "dpo", "reference_model": "other"}):
        assert judge(_run([after], config=config)).kind == "unknown", "it started elsewhere"
    alone = {"steps": 100, "train_seconds": 95.0, "reference": None}
    mpo = judge(_run([after], config={"method": "mpo"}, summary=alone))
    assert mpo.kind == "unknown", "its losses had no reference"


def test_training_figures_that_got_no_better_are_no_sound_run() -> None:
    falling = [{"step": n, "reward/accuracy": 0.5 - n / 100, "loss": 0.7 - n / 100}
               for n in range(1, 21)]  # fmt: skip
    verdict = judge(_run(falling))
    assert verdict.kind == "doubtful"
    assert "nothing shows that the run helped: training accuracy fell" in verdict.outcome.lower()
    losses = [{"step": n, "loss": 0.7 - n / 100} for n in range(1, 21)]
    assert judge(_run(losses)).kind == "sound", "a loss gets better as it falls"


def test_answers_that_were_collected_once_tell_nothing_and_why() -> None:
    once = [{"step": n, "iteration": 1.0, "reward/mean": 0.25, "loss": 0.1 * n} for n in (1, 2, 3)]
    verdict = judge(_run(once, config={"method": "ppo"}))
    assert verdict.kind == "unknown" and "collected once" in verdict.outcome


def test_rewards_that_compare_answers_with_each_other_say_nothing_of_the_run() -> None:
    """Its loss does not either; a reward that is not trained on does."""
    steps = [{"step": n, "iteration": n, "reward/std": 0.4, "loss": 0.7 / n} for n in (1, 2, 3, 4)]
    run = {"method": "online_dpo"}
    verdict = judge(_run(steps, config=run))
    assert verdict.kind == "unknown" and "set monitor_reward" in verdict.outcome
    watched = [{**one, "monitor/held_out_reward": 0.1 * one["step"]} for one in steps]
    assert "Held-out reward rose from 0.1 to 0.4" in judge(_run(watched, config=run)).outcome


def test_a_falling_margin_is_said_beside_a_rising_accuracy() -> None:
    verdict = judge(_run(_evaluated(0.5, 0.8, 400, reward_margin=(0.4, 0.1))))
    assert verdict.kind == "doubtful"
    assert "held-out margin fell from 0.4 to 0.1" in verdict.outcome
