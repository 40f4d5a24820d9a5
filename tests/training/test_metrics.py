"""Metrics of a step: means over what they speak of, and counts."""

from __future__ import annotations

import pytest
import torch

from penchant.training.accelerator import make_accelerator
from penchant.training.metrics import StepMetrics

NAN = float("nan")


@pytest.fixture
def accelerator():
    return make_accelerator("fp32")


def test_means_are_over_examples_and_not_over_micro_batches(accelerator):
    sums = StepMetrics()
    sums.add({"loss": torch.tensor([1.0, 2.0, 3.0])})
    sums.add({"loss": torch.tensor([10.0])})
    assert sums.means(accelerator) == {"loss": 4.0}


def test_examples_of_which_a_metric_says_nothing_do_not_count_for_it(accelerator):
    """A reward of the chosen is of the two desirable examples alone: (1 + 4) / 2."""
    sums = StepMetrics()
    sums.add({"chosen": torch.tensor([1.0, NAN, NAN]), "loss": torch.tensor([3.0, 4.0, 5.0])})
    sums.add({"chosen": torch.tensor([NAN, 4.0]), "loss": torch.tensor([6.0, 7.0])})
    assert sums.means(accelerator) == {"chosen": 2.5, "loss": 5.0}


def test_metric_that_says_something_of_no_example_is_left_out(accelerator):
    sums = StepMetrics()
    sums.add({"rejected": torch.tensor([NAN, NAN]), "loss": torch.tensor([0.0, 0.0])})
    assert sums.means(accelerator) == {"loss": 0.0}


def test_counts_are_summed_and_not_averaged(accelerator):
    sums = StepMetrics()
    for tokens in (120, 80):
        sums.add({"loss": torch.ones(4)})
        sums.count("tokens", tokens)
    assert sums.means(accelerator) == {"loss": 1.0, "tokens": 200.0}


def test_stand_ins_of_a_process_that_has_nothing_left_do_not_count(accelerator):
    sums = StepMetrics()
    sums.add({"loss": torch.tensor([1.0, 3.0])})
    sums.add({"loss": torch.tensor([100.0])}, weight=0.0)
    assert sums.means(accelerator) == {"loss": 2.0}


def test_many_small_values_beside_a_large_one_are_not_lost(accelerator):
    sums = StepMetrics()
    sums.add({"loss": torch.tensor([2.0**24])})
    for _ in range(64):
        sums.add({"loss": torch.ones(1)})  # each alone is lost when added to 2^24 in fp32
    assert sums.means(accelerator)["loss"] * 65 == pytest.approx(2**24 + 64, rel=1e-7)
