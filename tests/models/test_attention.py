"""Attention over a packed row: each kernel against the rule written out as a dense mask."""

from __future__ import annotations

import pytest
import torch

from penchant.data.batch import pack
from penchant.models import attention
from penchant.models.attention import SegmentTable, packed_attention, packed_mask_rule
from penchant.models.scoring import Scorer, ScoringPlan

MODULE = torch.nn.Module()


def allowed(batch):
    """`[T, T]`: who may attend to whom, worked out token by token from what the layout means."""
    length = batch.input_ids.shape[1]
    mask = torch.zeros(length, length, dtype=torch.bool)
    for group in batch.segments:
        prompt = range(group.start, group.prompt_end)
        for own in (prompt, *(range(*completion) for completion in group.completions)):
            for query in own:
                for key in (*prompt, *own):
                    mask[query, key] = key <= query
    return mask


def naive(q, k, v, mask, scale):
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = (q @ k.transpose(-1, -2)) * (scale or q.shape[-1] ** -0.5)
    return (scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v).transpose(1, 2)


def made(batch, kv_heads=2, value_dim=8):
    generator = torch.Generator().manual_seed(0)
    length = batch.input_ids.shape[1]
    sizes = [(4, 8), (kv_heads, 8), (kv_heads, value_dim)]
    return [
        torch.randn(1, h, length, d, generator=generator, dtype=torch.float64).requires_grad_()
        for h, d in sizes
    ]


def sliced(q, k, v, table, scale):
    return attention._sliced(q, k, v, table, scale)


def on_cpu(q, k, v, table, scale):
    return packed_attention(MODULE, q, k, v, None, scaling=scale, segments=table)[0]


@pytest.mark.parametrize("kernel", [on_cpu, sliced], ids=["segments", "sliced"])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_values_and_gradients_equal_those_of_a_dense_mask(groups, kernel, kv_heads, scale):
    batch = pack(groups)
    q, k, v = made(batch, kv_heads)
    found = kernel(q, k, v, SegmentTable(batch.segments, "sdpa"), scale)
    expected = naive(q, k, v, allowed(batch), scale)
    assert found.shape == (1, batch.input_ids.shape[1], 4, 8)
    torch.testing.assert_close(found, expected)
    factors = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, (q, k, v), factors),
        torch.autograd.grad(expected, (q, k, v), factors),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_flex_attention_equals_segment_by_segment(groups):
    batch = pack(groups)
    with torch.no_grad():
        q, k, v = (x.float() for x in made(batch))
        flex, segments = (
            packed_attention(
                MODULE, q, k, v, None, scaling=0.7, segments=SegmentTable(batch.segments, kernel)
            )[0]
            for kernel in ("flex", "sdpa")
        )
    torch.testing.assert_close(flex, segments, rtol=1e-5, atol=1e-6)


def test_the_block_mask_rule_is_the_dense_mask(groups):
    batch = pack(groups)
    length = batch.input_ids.shape[1]
    rule = packed_mask_rule(batch.segments, length, torch.device("cpu"))
    query, key = torch.arange(length).unsqueeze(1), torch.arange(length).unsqueeze(0)
    assert torch.equal(rule(torch.tensor(0), torch.tensor(0), query, key), allowed(batch))


@pytest.mark.parametrize("kernel", ["sdpa", "flex"])
def test_the_other_completion_and_the_other_pairs_cannot_be_seen(groups, make_model, kernel):
    scorer = Scorer(make_model(), 0)
    scorer.use(ScoringPlan(packed=True, fused_head=True, kernel=kernel))
    before = scorer.batch(groups)
    others = [
        type(group)(group.prompt, (first, *([90 - t for t in c] for c in rest)))
        for group, (first, *rest) in ((g, g.completions) for g in groups)
    ]
    others[-1] = type(groups[-1])([50, 51, 52], groups[-1].completions)
    after = scorer.batch(others)
    first_of_a_group = torch.tensor([0, 2, 4])
    same = torch.isin(before.segment_index, first_of_a_group)
    with torch.no_grad():
        changed = (scorer(before) - scorer(after)).abs()
    assert changed[same].max() <= 1e-6
    assert changed[~same].max() > 0.1


@pytest.mark.parametrize("options", [{"dropout": 0.1}, {"softcap": 20.0}])
def test_what_the_kernels_lack_is_refused_and_not_left_out(groups, options):
    batch = pack(groups)
    q, k, v = made(batch)
    with pytest.raises(ValueError, match="neither attention dropout nor soft-capping"):
        packed_attention(
            MODULE, q, k, v, None, segments=SegmentTable(batch.segments, "sdpa"), **options
        )


def test_memory_of_backward_does_not_grow_with_the_square_of_the_number_of_groups(groups):
    """Slices of q outside of one autograd function would each get a full-size gradient."""

    def allocated(count):
        batch = pack([groups[0]] * count)
        q, k, v = made(batch)
        out = on_cpu(q, k, v, SegmentTable(batch.segments, "sdpa"), None)
        with torch.profiler.profile(profile_memory=True) as profile:
            torch.autograd.grad(out.sum(), (q, k, v))
        sizes = [event.self_cpu_memory_usage for event in profile.events()]
        return sum(size for size in sizes if size > 0)

    assert allocated(64) < 1.5 * 8 * allocated(8)


def test_registering_twice_keeps_one_attention_that_transformers_knows():
    from transformers import AttentionInterface

    attention.register()
    attention.register()
    assert AttentionInterface()[attention.NAME] is packed_attention


def test_masks_are_built_once_for_equal_shapes():
    table = SegmentTable((), "sdpa")
    like = torch.zeros(1)
    assert table.mask(3, 2, like) is table.mask(3, 2, like)
    assert table.mask(3, 2, like).tolist() == [[0, 0, 0, 0, -torch.inf], [0, 0, 0, 0, 0]]
    assert table.mask(3, 2, like.double()).dtype == torch.float64
