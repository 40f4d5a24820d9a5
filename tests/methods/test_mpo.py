"""Weighted sums of losses."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from penchant.methods import METHODS
from penchant.methods.mpo import MPO, MPOOptions


def test_the_sum_by_hand(worked):
    """DPO at beta 0.5: margins 3 and -2, so log(1 + e^-1.5) and log(1 + e^1), 0.4 of each.

    Supervised learning: 10 / 4.5 and 7 / 4.5, twice.
    """
    losses, chosen, rejected = worked("mpo", losses="dpo=0.4,sft=2", beta=0.5)
    assert losses == [0.4 * 0.2014133 + 20 / 4.5, 0.4 * 1.3132617 + 14 / 4.5]
    assert chosen == [-0.2 * 0.1824255 - 2 / 4.5, -0.2 * 0.7310586 - 2 / 4.5]
    assert rejected == [0.2 * 0.1824255, 0.2 * 0.7310586]


def test_each_loss_is_a_metric_and_the_first_gives_the_rewards(untrained):
    options = MPOOptions(losses={"simpo": 1.0, "dpo": 0.1}, beta=2.0)
    metrics = MPO.loss(untrained, options).metrics
    simpo = METHODS["simpo"]
    alone = simpo.loss(untrained, simpo.options(beta=2.0))
    assert metrics["reward/margin"].tolist() == alone.metrics["reward/margin"].tolist()
    assert metrics["loss/simpo"].tolist() == alone.per_example.tolist()
    assert metrics["loss/dpo"].tolist() == pytest.approx([0.6931472] * 2)


def test_another_beta_reaches_every_loss(untrained):
    options = MPOOptions(losses="dpo=1,ipo=1,sft=1", loss_options={"ipo": {"beta": 0.4}})
    assert [getattr(term.options, "beta", None) for term in options.terms] == [0.1, 0.4, None]
    raised = options.with_beta(0.2)
    assert [getattr(term.options, "beta", None) for term in raised.terms] == [0.2, 0.8, None]
    assert [getattr(term.options, "beta", None) for term in options.terms] == [0.1, 0.4, None]


@pytest.mark.parametrize(
    ("method", "keys", "beta"),
    [
        ("dpo", {"beta": 0.3}, 0.3),
        ("simpo", {}, None),
        ("mpo", {"losses": {"sft": 1, "dpo": 0.2}}, None),
        ("mpo", {"losses": {"simpo": 1, "dpo": 0.2}}, None),
        ("mpo", {"losses": {"dpo": 1, "sft": 1}, "loss_options": {"dpo": {"beta": 0.5}}}, 0.5),
    ],
)
def test_reported_rewards_are_multiples_of_the_first_loss_beta(method, keys, beta):
    spec = METHODS[method]
    assert spec.options(**keys).reported_beta(spec) == beta


def test_what_one_loss_needs_the_sum_needs():
    needs = MPO.needs(MPOOptions(losses="simpo=1,orpo=1"))
    assert needs.prompt
    assert not needs.reference
    assert not needs.whole_batch
    options = MPOOptions(losses="aot=1,dpo=1,sft=1", loss_options='{"aot": {"ld_alpha": 0.5}, '
                         '"dpo": {"ld_alpha": 0.5}}')  # fmt: skip
    needs = MPO.needs(options)
    assert needs.reference
    assert needs.whole_batch
    assert needs.tail_weight == 0.5


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"losses": "dpo"}, "write it as method=weight"),
        ({"losses": "dpo=1,sft=1, dpo =2"}, "dpo is named twice; give it one weight"),
        ({"losses": {}}, "at least 1 item"),
        ({"losses": "dpo=0"}, "dpo has weight 0.0; give a weight above 0"),
        ({"losses": "kto=1"}, "'kto' cannot be added; known are dpo, ipo, orpo"),
        ({"losses": "mpo=1"}, "'mpo' cannot be added"),
        ({"loss_options": {"dpo": {"loss_typ": 1}}}, "loss_options of dpo: loss_typ"),
        ({"loss_options": {"ipo": {}}}, "names ipo, which is not among the losses"),
        ({"loss_options": {"dpo": {"ld_alpha": 0.5}}}, "ld_alpha must be the same"),
    ],
)
def test_what_cannot_be_added_is_refused(keys, message):
    with pytest.raises(ValidationError, match=message):
        MPOOptions(**keys)
