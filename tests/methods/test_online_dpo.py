"""Online DPO: pairs of sampled answers, by hand and beside the losses of pairs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from penchant.config.keys import load_config
from penchant.core.errors import ConfigError
from penchant.methods import METHODS, PairInputs
from penchant.methods.experience import Experience, RolloutInputs
from penchant.methods.online_dpo import ONLINE_DPO, OnlineDPOOptions

# Two pairs of answers: the second of the first pair is the better one, the first of the second.
INPUTS = RolloutInputs(
    logprobs=torch.tensor([-4.0, -3.0, -4.0, -6.0, -7.0, -4.0]),
    old_logprobs=torch.tensor([-4.0, -3.0, -4.0, -6.0, -7.0, -4.0]),
    ref_logprobs=torch.tensor([-4.0, -2.0, -6.0, -6.0, -6.0, -5.0]),
    advantages=torch.tensor([-1.0, -1.0, 1.0, 1.0, 1.0, -1.0]),
    lengths=torch.tensor([2, 2, 1, 1]),
    entropy=torch.ones(6),
)
# Chosen: -10 under the policy, -12 under the reference; rejected -7 and -6. Then -7, -6; -4, -5.
PAIRS = PairInputs(
    chosen=torch.tensor([-10.0, -7.0]),
    rejected=torch.tensor([-7.0, -4.0]),
    ref_chosen=torch.tensor([-12.0, -6.0]),
    ref_rejected=torch.tensor([-6.0, -5.0]),
    chosen_len=torch.tensor([2, 1]),
    rejected_len=torch.tensor([2, 1]),
)


def options(**changes):
    return OnlineDPOOptions(reward="r", **changes)


def test_the_best_and_the_worst_of_a_group_are_paired():
    """Of the three in group 0 the first and the last; group 1 is even; group 2 has two."""
    rows = torch.arange(8.0)
    experience = Experience(
        lengths=torch.tensor([1, 2, 1, 1, 1, 1, 1, 1]),
        group=torch.tensor([0, 0, 0, 1, 1, 1, 2, 2]),
        scores=torch.tensor([3.0, 1.0, 0.5, 2.0, 2.0, 2.0, -1.0, 4.0]),
        logprobs=torch.cat([rows, rows[:1]]),
    )
    found = ONLINE_DPO.advantages(experience, 0.0, options())
    assert found.advantages.tolist() == [1.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, -1.0, 1.0]
    assert found.kept.tolist() == [True, False, True, False, False, False, True, True]
    assert found.metrics == {
        "reward/zero_variance": pytest.approx(1 / 3),
        "reward/gap": pytest.approx((2.5 + 5.0) / 2),
    }


@pytest.mark.parametrize(
    ("losses", "beta"), [("dpo=1", 0.3), ("ipo=1", 0.2), ("dpo=0.5,sft=2", 0.3), ("simpo=1", 2.0)]
)
def test_the_loss_is_that_of_the_pairs(losses, beta):
    """A mean over answers is the mean over pairs, and so is its gradient."""
    logprobs = INPUTS.logprobs.clone().requires_grad_()
    found = ONLINE_DPO.loss(replace(INPUTS, logprobs=logprobs), options(losses=losses, beta=beta))
    mpo = METHODS["mpo"]
    chosen, rejected = (t.clone().requires_grad_() for t in (PAIRS.chosen, PAIRS.rejected))
    expected = mpo.loss(
        replace(PAIRS, chosen=chosen, rejected=rejected), mpo.options(losses=losses, beta=beta)
    )
    torch.testing.assert_close(found.per_example, expected.per_example.repeat_interleave(2))
    torch.testing.assert_close(
        found.metrics["reward/margin"], expected.metrics["reward/margin"].repeat_interleave(2)
    )
    found.per_example.mean().backward()
    expected.per_example.mean().backward()
    tokens = [rejected.grad[0]] * 2 + [chosen.grad[0]] * 2 + [chosen.grad[1], rejected.grad[1]]
    torch.testing.assert_close(logprobs.grad, torch.stack(tokens))


def test_pairs_may_come_in_any_order_and_division():
    whole = ONLINE_DPO.loss(replace(INPUTS, mean_good_len=1.5), options(losses="dpo=1,sft=1"))
    first, second = slice(0, 4), slice(4, 6)
    parts = []
    for tokens, answers in ((second, slice(2, 4)), (first, slice(0, 2))):
        names = ("logprobs", "old_logprobs", "ref_logprobs", "advantages", "entropy")
        part = replace(
            INPUTS, lengths=INPUTS.lengths[answers], mean_good_len=1.5,
            **{name: getattr(INPUTS, name)[tokens] for name in names},
        )  # fmt: skip
        parts.append(ONLINE_DPO.loss(part, options(losses="dpo=1,sft=1")).per_example)
    torch.testing.assert_close(torch.cat(parts[::-1]), whole.per_example)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"losses": "aot=1"}, "aot with these options needs more of a pair"),
        ({"losses": "orpo=1"}, "orpo with these options needs more"),
        ({"batch_size": 9}, "must be a multiple of num_generations"),
        ({"entropy_coef": 0.1}, "no entropy bonus"),
        ({"losses": "online_dpo=1"}, "cannot be added"),
    ],
)
def test_what_sampled_pairs_do_not_have_is_refused(keys, message):
    with pytest.raises(ValidationError, match=message):
        options(**keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"per_device_train_batch_size": 1}, "would divide one; set an even number"),
        ({"max_tokens_per_batch": 64}, "could divide; set per_device_train_batch_size"),
    ],
)
def test_a_pair_is_never_divided(keys, message):
    run = {"model": "M", "data": "D", "reward": "r", "max_prompt_length": 64, **keys}
    with pytest.raises(ConfigError, match=message):
        load_config("online_dpo", run)
