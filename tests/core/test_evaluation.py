"""The numbers of an evaluation under the names that a run directory gives them."""

from __future__ import annotations

from penchant.core.evaluation import Evaluation


def test_metrics_use_the_names_of_the_run_directory_and_come_back():
    whole = Evaluation(3, 0.6, 0.5, 0.1, 0.2, 0.1, 0.7, -9.0, -8.0, 0.01, 2.0)
    metrics = whole.metrics()
    assert metrics["reward/accuracy"] == 0.5
    assert metrics["reward/margin"] == 0.1
    assert metrics["logprob/chosen"] == -9.0
    assert metrics["kl"] == 0.01
    assert Evaluation.from_metrics(metrics | {"learning_rate": 1.0}) == whole
    without = Evaluation(3, 0.6, 0.5, 0.1, 0.2, 0.1, 0.7, -9.0, -8.0, None, None)
    assert "kl" not in without.metrics()
    assert Evaluation.from_metrics(without.metrics()) == without


def test_what_a_kind_of_model_does_not_have_is_left_out_and_comes_back_as_none():
    scored = Evaluation(3, 0.6, 0.5, 0.1, 0.2, 0.1, calibration_error=0.2, score_mean=0.3)
    metrics = scored.metrics()
    assert metrics["calibration_error"] == 0.2
    assert metrics["score_mean"] == 0.3
    assert not any(name.startswith("logprob/") for name in metrics)
    assert "score_std" not in metrics
    assert Evaluation.from_metrics(metrics) == scored
