"""AOT by hand, and over divided batches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import logsigmoid

from penchant.methods import PairInputs
from penchant.methods.aot import AOT, AOTOptions, aot_loss


def test_paired_loss_by_hand(worked):
    """Policy margins -1 and -3, the reference's -4 and -1: sorted -3, -1 against -4, -1.

    The first pair is second: 0.5 (-1 + 1) = 0; the second is first: 0.5 (-3 + 4) = 0.5.
    """
    losses, chosen, rejected = worked("aot", beta=0.5)
    assert losses == [0.693147, 0.474077]
    assert chosen == [-0.25, -0.188770]
    assert rejected == [0.25, 0.188770]


def test_unpaired_loss_by_hand(worked):
    """Chosen 2 and -1 sorted -1, 2; rejected -1 and 1 as they stand: differences 0 and 3 - 2 = 1.

    The first pair's chosen is second and its rejected first: gradients of 0.5 and of 0.
    """
    losses, chosen, rejected = worked("aot", beta=0.5, paired=False)
    assert losses == [0.474077, 0.693147]
    assert chosen == [-0.188770, -0.25]
    assert rejected == [0.25, 0.188770]


def test_smoothed_loss_by_hand(worked):
    """0.693147 + 0.2 * 0 and 0.474077 + 0.2 * 0.5."""
    losses, _, _ = worked("aot", beta=0.5, label_smoothing=0.2)
    assert losses == [0.693147, 0.574077]


def rounded(seed, pairs=12):
    """Whole nats, so that many of the log-ratios are equal."""
    generator = torch.Generator().manual_seed(seed)
    sums = torch.randint(-9, -5, (4, pairs), generator=generator).double()
    lengths = torch.full((pairs,), 3)
    return PairInputs(*sums.unbind(), lengths, lengths, mean_chosen_len=3.0)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("size", [1, 5, 12])
def test_ties_count_as_in_a_sorted_batch_however_it_is_divided(paired, size):
    batch, options = rounded(0), AOTOptions(beta=0.7, paired=paired)
    if paired:
        sides = batch.chosen - batch.rejected, batch.ref_chosen - batch.ref_rejected
    else:
        sides = batch.log_ratios()
    better, worse = (side.sort().values for side in sides)
    expected = -logsigmoid(0.7 * (better - worse)).sum()

    found = torch.zeros(())
    for some in torch.arange(12).split(size):
        tensors = {k: v[some] for k, v in vars(batch).items() if isinstance(v, torch.Tensor)}
        found = found + aot_loss(replace(batch, **tensors, batch=batch), options).per_example.sum()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("paired", [True, False])
def test_a_second_pass_that_rounds_otherwise_finds_the_same_ranks(pairs, paired):
    options = AOTOptions(beta=0.5, paired=paired)
    for offset in (-1e-5, 1e-5):
        again = replace(pairs, chosen=pairs.chosen + offset, batch=pairs)
        torch.testing.assert_close(
            aot_loss(again, options).per_example,
            aot_loss(pairs, options).per_example,
            rtol=0,
            atol=1e-4,
        )


def test_it_asks_for_the_whole_batch_and_refuses_weights():
    needs = AOT.needs(AOTOptions(ld_alpha=0.5))
    assert needs.whole_batch
    assert needs.tail_weight == 0.5
    with pytest.raises(ValidationError):
        AOTOptions(use_weighting=True)
