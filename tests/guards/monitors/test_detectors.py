"""Each detector on a history written out: found where it should be, silent where all is well."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from penchant.core.findings import Finding
from penchant.guards.monitors.acting import forget
from penchant.guards.monitors.detectors import all_detectors, detect
from penchant.guards.monitors.history import History, RunFacts

OFFLINE = RunFacts(num_steps=100, strength="beta", sft="rpo_alpha", beta=0.1)
ONLINE = RunFacts(num_steps=100, samples=True, strength="init_kl_coef")
REWARD_MODEL = RunFacts(num_steps=100, scores=True)


def records(step: int = 1, every: int = 1, **columns: Sequence[float]) -> list[dict[str, Any]]:
    """Records by column; `a__b` is the metric `a/b`."""
    named = {name.replace("__", "/"): values for name, values in columns.items()}
    count = len(next(iter(named.values())))
    return [
        {"step": step + i * every, **{name: values[i] for name, values in named.items()}}
        for i in range(count)
    ]


def found(rows: Iterable[dict[str, Any]], facts: RunFacts) -> dict[str, Finding]:
    return {one.id: one for one in detect(History(rows), facts)}


# Rewards and divergence of batches of answers: deviation 0.5, from 0.2 upwards.
RISING = {
    "iteration": [1, 2, 3, 4, 5, 6],
    "reward__mean": [0.2, 0.2, 0.25, 0.6, 0.9, 0.95],
    "reward__std": [0.5, 0.5, 0.5, 0.4, 0.2, 0.2],
}


def test_reward_that_rises_while_the_divergence_explodes_is_hacking() -> None:
    rows = records(**RISING, kl__sequence=[0.0, 1, 5, 18, 25, 40])
    one = found(rows, ONLINE)["reward-hacking"]
    assert one.evidence["kl"]["now"] == 25  # the median of the last three
    assert "init_kl_coef" in one.remedy
    assert "drift" in found(rows, ONLINE)
    assert found(records(**RISING, kl__sequence=[0.0, 1, 3, 5, 6, 6]), ONLINE) == {}


@pytest.mark.parametrize(
    ("metric", "before", "after"),
    [
        ("monitor__length", 20, 50),
        ("monitor__repetition", 0.05, 0.3),
        ("monitor__ref_perplexity", 8, 30),
        ("monitor__reward_disagreement", 0.2, 0.5),
        ("monitor__held_out_reward", 1.0, 0.2),
    ],
)
def test_reward_that_rises_while_something_else_speaks_against_it_is_hacking(
    metric: str, before: float, after: float
) -> None:
    def rows(now: float, reward: float) -> list[dict[str, Any]]:
        return records(
            step=0, every=10, monitor__reward=[0.1, reward], monitor__reward_std=[0.4, 0.4],
            monitor__held_out_reward_error=[0.1, 0.1], **{metric: [before, now]},
        )  # fmt: skip

    assert set(found(rows(after, 0.9), ONLINE)) == {"reward-hacking"}
    assert found(rows(after, 0.2), ONLINE) == {}, "the reward did not rise"
    assert found(rows(before, 0.9), ONLINE) == {}, "nothing speaks against it"


def test_drift_allows_for_the_error_of_the_estimate() -> None:
    def rows(error: float) -> list[dict[str, Any]]:
        return records(every=10, monitor__kl_sequence=[0.0, 17.0], monitor__kl_error=[0.0, error])

    assert set(found(rows(1.0), OFFLINE)) == {"drift"}
    assert found(rows(3.0), OFFLINE) == {}
    assert found(rows(1.0), replace(OFFLINE, taught=True)) == {}  # away from its start is the aim


def test_run_that_has_not_moved_by_its_middle_does_not_learn() -> None:
    def rows(kl: float, margin: float, until: int = 60) -> list[dict[str, Any]]:
        margins = [margin * i / until for i in range(until)]
        checks = records(0, until, monitor__kl_sequence=[0.0, kl], monitor__kl_error=[0.0, 0.0])
        return [*records(reward__margin=margins), *checks]

    assert set(found(rows(1e-6, 1e-6), OFFLINE)) == {"no-learning"}
    assert found(rows(1e-6, 1e-6, until=40), OFFLINE) == {}, "too early to tell"
    assert found(rows(0.8, 1e-6), OFFLINE) == {}
    assert found(rows(1e-6, 0.5), OFFLINE) == {}


def test_weights_that_were_put_back_lately_are_no_sign_of_not_learning() -> None:
    history = History(records(0, 60, monitor__kl_sequence=[0.0, 30.0]))
    forget(history, 0)
    assert list(detect(history, OFFLINE)) == []  # neither of the drift that is gone
    for record in records(reward__margin=[0.0] * 90):
        history.add({**record, "step": 60 + record["step"]})
    assert [one.id for one in detect(history, OFFLINE)] == ["no-learning"]


def test_answers_that_become_few_are_a_collapse() -> None:
    def rows(distinct: float, bleu: float, opening: float) -> list[dict[str, Any]]:
        return records(
            step=0, every=10, monitor__distinct_2=[0.8, distinct], monitor__self_bleu=[0.2, bleu],
            monitor__same_opening=[0.2, opening],
        )  # fmt: skip

    assert set(found(rows(0.4, 0.2, 0.2), OFFLINE)) == {"collapse"}
    assert set(found(rows(0.8, 0.7, 0.2), OFFLINE)) == {"collapse"}
    assert found(rows(0.7, 0.3, 1.0), OFFLINE) == {}, "an opening alone may be a style"


def test_chosen_answers_that_fall_are_explained_with_the_supervised_term() -> None:
    def rows(reward: float) -> list[dict[str, Any]]:
        return records(
            reward__chosen=[0.0] * 20 + [reward] * 20, reward__margin=[0.0] * 20 + [1.5] * 20,
            logprob__chosen=[-100.0] * 40,
        )  # fmt: skip

    one = found(rows(-2.0), OFFLINE)["falling-chosen"]
    assert (one.severity, one.evidence["chosen_nats"]) == ("note", pytest.approx(-20))
    assert "rpo_alpha" in one.remedy
    assert found(rows(-0.5), OFFLINE) == {}, "five nats are the price of moving apart"


def evaluated(accuracies: Sequence[float], losses: Sequence[float] = ()) -> list[dict[str, Any]]:
    losses = losses or [0.6] * len(accuracies)
    count = [400] * len(accuracies)
    rows = records(
        0, 10, eval__reward__accuracy=accuracies, eval__loss=losses, eval__num_examples=count
    )
    return [*rows, *records(reward__margin=[i / 10 for i in range(40)])]


@pytest.mark.parametrize(
    ("facts", "name"), [(OFFLINE, "over-fitting"), (REWARD_MODEL, "reward-model-past-best")]
)
def test_held_out_evaluations_that_get_worse_are_found(facts: RunFacts, name: str) -> None:
    one = found(evaluated([0.5, 0.7, 0.66, 0.64]), facts)[name]
    assert (one.evidence["best_step"], one.evidence["accuracy"]) == (10, 0.64)
    assert name in found(evaluated([0.5, 0.7, 0.7, 0.7, 0.7], [0.7, 0.5, 0.6, 0.7, 0.8]), facts)
    assert found(evaluated([0.5, 0.7, 0.66]), facts) == {}, "one evaluation may be chance"
    assert found(evaluated([0.5, 0.7, 0.69, 0.7]), facts) == {}


def test_value_loss_and_clipping_of_a_policy_that_moves_too_fast_are_found() -> None:
    rows = records(loss__value=[0.2] * 20 + [9.0] * 5, policy__clipfrac=[0.6] * 25)
    assert set(found(rows, ONLINE)) == {"value-loss-exploding", "clip-fraction-high"}
    assert found(records(loss__value=[5.0, 3, 2] * 10, policy__clipfrac=[0.2] * 30), ONLINE) == {}


def test_spikes_are_told_from_noise() -> None:
    calm = [0.69 + 0.02 * (i % 3) for i in range(60)]
    assert found(records(loss=calm), OFFLINE) == {}
    assert set(found(records(loss=[*calm, 4.0]), OFFLINE)) == {"loss-spike"}
    norms = [1.0 + 0.1 * (i % 5) for i in range(60)]
    assert found(records(grad_norm=[*norms, 50.0]), OFFLINE) == {}, "one is clipped and harmless"
    assert set(found(records(grad_norm=[*norms, 50, 40, 1, 60]), OFFLINE)) == {"gradient-spike"}


def test_records_with_nan_and_an_empty_history_are_taken() -> None:
    assert found([], OFFLINE) == {}
    nan = float("nan")
    rows = records(loss=[nan] * 60, kl__sequence=[nan] * 60, reward__mean=[nan] * 60)
    assert found(rows, ONLINE) == {}


def test_batch_trained_on_twice_enters_once() -> None:
    history = History(records(iteration=[1, 1, 2], reward__mean=[0.5, 0.5, 0.5], loss=[1, 2, 3]))
    assert history["reward/mean"].values == [0.5, 0.5]
    assert history["loss"].values == [1, 2, 3]


def test_detector_that_raises_is_a_finding_and_the_others_still_run() -> None:
    def broken(history: History, facts: RunFacts) -> Finding | None:
        raise ZeroDivisionError("no answers")

    rows = records(monitor__kl_sequence=[20.0], monitor__kl_error=[1.0])
    both = list(detect(History(rows), OFFLINE, detectors={"broken": broken, **all_detectors()}))
    assert [one.id for one in both] == ["detector-failed", "drift"]
    assert both[0].evidence == {"detector": "broken", "error": "ZeroDivisionError: no answers"}


def test_silenced_detectors_do_not_run() -> None:
    rows = records(monitor__kl_sequence=[20.0], monitor__kl_error=[1.0])
    assert list(detect(History(rows), OFFLINE, silenced={"drift"})) == []
