"""KTO by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from penchant.methods.inputs import LabelInputs
from penchant.methods.kto import KTO, KTOOptions, kto_loss, weight_advice

# Log-ratios: -10 - -12 = 2, -7 - -6 = -1, -3 - -5 = 2.
INPUTS = LabelInputs(
    completion=torch.tensor([-10.0, -7.0, -3.0]),
    ref_completion=torch.tensor([-12.0, -6.0, -5.0]),
    completion_len=torch.tensor([5, 3, 2]),
    desirable=torch.tensor([True, False, False]),
    kl=torch.tensor(0.5),
)


def loss(inputs=INPUTS, **options):
    return kto_loss(inputs, KTOOptions(beta=0.5, **options))


def near(found, expected):
    torch.testing.assert_close(
        found, torch.tensor(expected), rtol=0, atol=1e-6, equal_nan=True, check_dtype=False
    )


def test_loss_by_hand():
    """Log-ratios beyond the KL: 1.5, -1.5, 1.5; with bad ones negated 1.5, 1.5, -1.5.

    1 - sigmoid(0.5 * 1.5) = 1 / (1 + e^0.75) = 0.3208213, twice; 1 - sigmoid(-0.75) = 0.6791787.
    """
    near(loss().per_example, [0.3208213, 0.3208213, 0.6791787])


def test_weights_by_hand():
    """2 * 0.3208213 = 0.6416426; 3 * 0.3208213 = 0.9624639; 3 * 0.6791787 = 2.0375361."""
    found = loss(desirable_weight=2.0, undesirable_weight=3.0)
    near(found.per_example, [0.6416426, 0.9624639, 2.0375361])


def test_apo_zero_unpaired_by_hand():
    """1 - sigmoid(0.5 * 2) = 0.2689414; sigmoid(-0.5) = 0.3775407; sigmoid(1) = 0.7310586."""
    near(loss(loss_type="apo_zero_unpaired").per_example, [0.2689414, 0.3775407, 0.7310586])


def test_apo_zero_unpaired_neither_reads_nor_reports_nor_asks_for_a_kl():
    unknown = replace(INPUTS, kl=torch.tensor(torch.nan))
    found = loss(unknown, loss_type="apo_zero_unpaired")
    assert found.per_example.isfinite().all()
    assert "kl" not in found.metrics
    assert not KTO.needs(KTOOptions(loss_type="apo_zero_unpaired")).mismatches
    assert KTO.needs(KTOOptions()).mismatches


def test_gradient_by_hand():
    """beta sigmoid (1 - sigmoid) = 0.5 * 0.3208213 * 0.6791787 = 0.1089475 in all three.

    A step against it raises desirable completions and lowers undesirable ones.
    """
    completion = INPUTS.completion.clone().requires_grad_()
    loss(replace(INPUTS, completion=completion)).per_example.sum().backward()
    near(completion.grad, [-0.1089475, 0.1089475, 0.1089475])


def test_metrics_say_nothing_of_examples_of_the_other_label():
    metrics, nan = loss().metrics, torch.nan
    near(metrics["reward/chosen"], [1.0, nan, nan])
    near(metrics["reward/rejected"], [nan, -0.5, 1.0])
    near(metrics["logprob/chosen"], [-10.0, nan, nan])
    near(metrics["logprob/rejected"], [nan, -7.0, -3.0])
    near(metrics["kl"], [0.5, 0.5, 0.5])


def test_balanced_weights_need_no_advice():
    assert weight_advice(50, 50, 1.0, 1.0) is None
    assert weight_advice(4, 3, 1.0, 1.0) is None
    assert weight_advice(300, 100, 1.0, 3.0) is None


def test_unbalanced_weights_are_told_both_ways_out():
    """1 * 200 : 1 * 100 = 2. Desirable: 100 / 200 times 1 to 4/3; undesirable: 2 over 4/3 to 1."""
    advice = weight_advice(200, 100, 1.0, 1.0)
    assert advice is not None
    assert "1 * 200 : 1 * 100 = 2, outside 1:1 to 4:3" in advice
    assert "desirable_weight to 0.5 to 0.667 or undesirable_weight to 1.5 to 2, not both" in advice


@pytest.mark.parametrize("num_desirable", [1, 7, 100, 33333])
@pytest.mark.parametrize("num_undesirable", [1, 3, 997, 20000])
def test_following_the_advice_to_its_ends_silences_it(num_desirable, num_undesirable):
    advice = weight_advice(num_desirable, num_undesirable, 1.0, 1.0)
    if advice is None:
        return
    desirable, undesirable = _intervals(advice)
    for weight in desirable:
        assert weight_advice(num_desirable, num_undesirable, weight, 1.0) is None
    for weight in undesirable:
        assert weight_advice(num_desirable, num_undesirable, 1.0, weight) is None


def _intervals(advice):
    words = advice.replace(",", "").split("either set ")[1].split()
    numbers = [float(word) for word in words if word[0].isdigit()]
    return numbers[:2], numbers[2:]


def test_data_of_one_kind_is_said_to_teach_nothing():
    assert "no example is undesirable" in weight_advice(10, 0, 1.0, 1.0)
    assert "no example is desirable" in weight_advice(0, 10, 1.0, 1.0)


@pytest.mark.parametrize(
    "options",
    [{"beta": 0}, {"desirable_weight": 0}, {"undesirable_weight": -1}, {"loss_type": "sigmoid"}],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ValidationError):
        KTOOptions(**options)
