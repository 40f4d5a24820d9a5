"""Attention over a packed row: each kernel against the rule written out as a dense mask."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import flex_attention

from penchant.data.batch import Group, pack
from penchant.models import attention, attention_gpu, segments
from penchant.models.attention import packed_attention
from penchant.models.scoring import Scorer, ScoringPlan
from penchant.models.segments import FULL, LayerRule, Reach, SegmentTable

MODULE = torch.nn.Module()


def allowed(batch, reach=FULL):
    """`[T, T]`: who may attend to whom, worked out token by token from what the layout means."""
    length = batch.input_ids.shape[1]
    mask = torch.zeros(length, length, dtype=torch.bool)
    positions = batch.position_ids[0].tolist()
    for group in batch.segments:
        prompt = range(group.start, group.prompt_end)
        for own in (prompt, *(range(*completion) for completion in group.completions)):
            for query in own:
                for key in (*prompt, *own):
                    at, of = positions[query], positions[key]
                    near = reach.window is None or at - of < reach.window
                    same = reach.chunk is None or at // reach.chunk == of // reach.chunk
                    mask[query, key] = of <= at and near and same
    return mask


def naive(q, k, v, mask, rule):
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = (q @ k.transpose(-1, -2)) * rule.scale
    if rule.cap:
        scores = rule.cap * (scores / rule.cap).tanh()
    scores = scores.masked_fill(~mask, -torch.inf)
    if rule.sinks is not None:
        sinks = rule.sinks.view(1, -1, 1, 1).expand(1, -1, scores.shape[2], 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = scores.softmax(-1)[..., : k.shape[2]]
    return (weights @ v).transpose(1, 2)


def made(batch, kv_heads=2, value_dim=8):
    generator = torch.Generator().manual_seed(0)
    length = batch.input_ids.shape[1]
    sizes = [(4, 8), (kv_heads, 8), (kv_heads, value_dim)]
    return [
        torch.randn(1, h, length, d, generator=generator, dtype=torch.float64).requires_grad_()
        for h, d in sizes
    ]


def on_cpu(q, k, v, table, rule):
    return packed_attention(
        MODULE,
        *(q, k, v, None if rule.reach == FULL else rule.reach),
        scaling=rule.scale,
        segments=table,
        softcap=rule.cap,
        s_aux=rule.sinks,
    )[0]


def assert_as_dense(batch, kernel, rule, *, kv_heads=2, value_dim=8):
    """Values and gradients of q, k, v and the sinks."""
    inputs = made(batch, kv_heads, value_dim)
    result = kernel(*inputs, SegmentTable(batch.segments, "sdpa"), rule)
    expected = naive(*inputs, allowed(batch, rule.reach), rule)
    assert result.shape == (1, batch.input_ids.shape[1], 4, value_dim)
    torch.testing.assert_close(result, expected)
    inputs += [] if rule.sinks is None else [rule.sinks]
    factors = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(result, inputs, factors),
        torch.autograd.grad(expected, inputs, factors),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def sinks():
    return torch.tensor([-1.0, 0.0, 1.0, 3.0], dtype=torch.float64, requires_grad=True)


RULES = {
    "full": (FULL, None, False),
    "capped": (FULL, 1.5, False),
    "sinks": (FULL, None, True),
    "capped with sinks": (FULL, 1.5, True),
    "window of 3": (Reach(window=3), None, False),
    "window of 1": (Reach(window=1), None, False),
    "window and sinks": (Reach(window=4), None, True),
    "capped window": (Reach(window=6), 1.5, False),
    "chunks": (Reach(chunk=4), None, False),
}


@pytest.mark.parametrize("kernel", [on_cpu, attention_gpu.sdpa], ids=["cpu", "other"])
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("kv_heads", [4, 1])
def test_values_and_gradients_equal_those_of_a_dense_mask(groups, kernel, kv_heads, name):
    reach, cap, with_sinks = RULES[name]
    rule = LayerRule(reach, 0.7, cap, sinks() if with_sinks else None)
    assert_as_dense(pack(groups), kernel, rule, kv_heads=kv_heads)


@pytest.mark.parametrize("cap", [None, 1.5])
@pytest.mark.parametrize("value_dim", [4, 12])
def test_values_may_be_of_another_size_than_keys(groups, value_dim, cap):
    """Latent attention: DeepSeek V3 has keys of 192 and values of 128."""
    assert_as_dense(pack(groups), on_cpu, LayerRule(FULL, 0.7, cap), value_dim=value_dim)


def test_gradient_of_sinks_in_bf16_is_summed_over_pieces_without_rounding():
    """Terms of one sign in many pieces: rounded one by one, small ones would be lost."""
    batch = pack([Group([1] * 4, ([2] * 8, [3] * 8))] * 60)
    inputs = [x.detach().bfloat16().abs() for x in made(batch)]

    def gradient(dtype):
        own = sinks().detach().to(dtype).requires_grad_()
        table, rule = SegmentTable(batch.segments, "sdpa"), LayerRule(FULL, 0.25, None, own)
        result = on_cpu(*(x.to(dtype) for x in inputs), table, rule)
        return torch.autograd.grad(result, own, torch.ones_like(result))[0].double()

    torch.testing.assert_close(
        gradient(torch.bfloat16), gradient(torch.float64), rtol=5e-3, atol=0.0
    )


LENGTHS = st.lists(
    st.tuples(st.integers(1, 20), st.lists(st.integers(1, 20), min_size=1, max_size=4)),
    min_size=1,
    max_size=3,
)
REACHES = st.one_of(
    st.just(FULL),
    st.integers(1, 45).map(lambda size: Reach(window=size)),
    st.integers(1, 45).map(lambda size: Reach(chunk=size)),
)


def laid_out(lengths, factor=1):
    return pack(
        [Group([1] * p * factor, tuple([2] * c * factor for c in own)) for p, own in lengths]
    )


@settings(max_examples=40, deadline=None)
@given(LENGTHS, REACHES, st.sampled_from([None, 1.5]), st.sampled_from([2, 64]))
def test_any_lengths_and_windows_equal_a_dense_mask(lengths, reach, cap, block):
    """Small blocks put their borders into prompts, into completions and where these meet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "BLOCK", block)
        assert_as_dense(laid_out(lengths), on_cpu, LayerRule(reach, 0.7, cap, sinks()))


@settings(max_examples=40, deadline=None)
@given(LENGTHS, REACHES)
def test_pieces_hold_every_query_once_and_no_key_that_none_of_them_sees(lengths, reach):
    batch = laid_out(lengths)
    rule = allowed(batch, reach)
    at = 0
    for piece in SegmentTable(batch.segments, "sdpa").pieces(reach, 7):
        assert piece.begin == at
        at = piece.end
        keys = torch.cat([torch.arange(*pair) for pair in piece.ranges])
        seen = rule[piece.begin : piece.end].any(0).nonzero().squeeze(1)
        assert keys.tolist() == seen.tolist()
    assert at == batch.input_ids.shape[1]


@settings(max_examples=30, deadline=None)
@given(LENGTHS, REACHES, st.integers(1, 30))
def test_blocks_that_flex_attention_leaves_out_or_takes_whole_are_right(lengths, reach, factor):
    batch = laid_out(lengths, factor)
    if reach.window:
        reach = Reach(window=reach.window * factor)
    rule = allowed_fast(batch, reach)
    seen, whole = attention_gpu.tiles(SegmentTable(batch.segments, "flex"), reach)
    size = attention_gpu.TILE
    edge = -len(rule) % size
    padded = torch.nn.functional.pad(rule, (0, edge, 0, edge), value=False)
    blocks = padded.unflatten(0, (-1, size)).unflatten(2, (-1, size)).int()
    assert torch.equal(seen, blocks.amax((1, 3)).bool())
    # Not whole where the block's queries are of several segments: those keep their mask.
    assert not (whole & ~blocks.amin((1, 3)).bool()).any()


def test_blocks_far_from_every_border_are_taken_whole():
    size = attention_gpu.TILE
    table = SegmentTable(laid_out([(2, [2, 1])], size).segments, "flex")
    seen, whole = attention_gpu.tiles(table, Reach(window=3 * size))
    assert seen.tolist() == [
        [True, False, False, False, False],
        [True, True, False, False, False],
        [True, True, True, False, False],
        [True, True, True, True, False],  # the oldest keys are out of sight of the last queries
        [True, True, False, False, True],
    ]
    assert whole.tolist() == [
        [False, False, False, False, False],
        [True, False, False, False, False],
        [True, True, False, False, False],
        [False, True, True, False, False],
        [True, True, False, False, False],
    ]


def allowed_fast(batch, reach):
    """`allowed`, by the rule that FlexAttention evaluates, itself compared with it below."""
    length = batch.input_ids.shape[1]
    rule = attention_gpu.mask_rule(SegmentTable(batch.segments, "flex"), reach, torch.device("cpu"))
    at = torch.arange(length)
    return rule(torch.tensor(0), torch.tensor(0), at.unsqueeze(1), at.unsqueeze(0))


@settings(max_examples=30, deadline=None)
@given(LENGTHS, REACHES)
def test_the_rule_of_flex_attention_is_the_dense_mask(lengths, reach):
    batch = laid_out(lengths)
    assert torch.equal(allowed_fast(batch, reach), allowed(batch, reach))


@settings(max_examples=30, deadline=None)
@given(LENGTHS, REACHES)
def test_the_sequences_of_varlen_attention_see_what_the_dense_mask_says(lengths, reach):
    """Its rule: causal, aligned with the last key of each sequence, `window - 1` keys back."""
    batch = laid_out(lengths)
    at = attention_gpu.lengths(SegmentTable(batch.segments, "varlen"), reach, torch.device("cpu"))
    length = batch.input_ids.shape[1]
    result = torch.zeros(length, length)
    bounds = zip(
        at.query_starts.tolist(),
        at.query_starts.tolist()[1:],
        at.key_starts.tolist(),
        at.key_starts.tolist()[1:],
        strict=False,
    )
    for begin, end, first, last in bounds:
        assert end - begin <= at.most_queries
        assert last - first <= at.most_keys
        for query in range(begin, end):
            newest = last - (end - query)
            oldest = first if reach.window is None else max(first, newest - reach.window + 1)
            result[query, at.keys[oldest : newest + 1]] = 1
    assert torch.equal(result.bool(), allowed(batch, reach))


def assert_flex_as_on_cpu(name):
    reach, cap, with_sinks = RULES[name]
    if reach.window:
        reach = Reach(window=40 * reach.window)
    if reach.chunk:
        reach = Reach(chunk=40 * reach.chunk)
    batch = laid_out([(160, [90, 130]), (1, [200])])
    with torch.no_grad():
        q, k, v = (x.float() for x in made(batch))
        rule = LayerRule(reach, 0.7, cap, sinks().float() if with_sinks else None)
        flex, pieces = (
            kernel(q, k, v, SegmentTable(batch.segments, "sdpa"), rule)
            for kernel in (attention_gpu.flex, on_cpu)
        )
    torch.testing.assert_close(flex, pieces, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", RULES)
def test_flex_attention_equals_the_kernels_of_the_cpu(name):
    """In several blocks, some of them left out and some whole; forward alone runs on the CPU."""
    assert_flex_as_on_cpu(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if not rule[2]])
def test_flex_attention_compiled_as_for_a_gpu_equals_the_kernels_of_the_cpu(name, monkeypatch):
    """Rules of masks and scores go through the compiler, here to C++; forward alone.

    Its logsumexp, which sinks need, is not compiled for a CPU.
    """
    compiled = torch.compile(
        flex_attention, dynamic=False
    )  # sizes unknown fail in torch 2.13's C++
    monkeypatch.setattr(attention_gpu, "_flex_kernel", lambda on_gpu: compiled)
    assert_flex_as_on_cpu(name)


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


def test_dropout_is_refused_and_not_left_out(groups):
    batch = pack(groups)
    q, k, v = made(batch)
    table = SegmentTable(batch.segments, "sdpa")
    with pytest.raises(ValueError, match="no attention dropout"):
        packed_attention(MODULE, q, k, v, None, segments=table, dropout=0.1)


@pytest.mark.parametrize("options", [{"softcap": 20.0}, {"s_aux": torch.zeros(4)}])
def test_varlen_attention_refuses_what_it_lacks(groups, options):
    batch = pack(groups)
    table = SegmentTable(batch.segments, "varlen")
    with pytest.raises(ValueError, match="neither capped scores nor sinks"):
        packed_attention(MODULE, *made(batch), None, segments=table, **options)


def test_memory_of_backward_does_not_grow_with_the_square_of_the_number_of_groups(groups):
    """Slices of q outside of one autograd function would each get a full-size gradient."""

    def allocated(count):
        batch = pack([groups[0]] * count)
        q, k, v = made(batch)
        out = on_cpu(q, k, v, SegmentTable(batch.segments, "sdpa"), LayerRule(FULL, 0.7))
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


def test_masks_of_all_lengths_are_corners_of_one(groups):
    batch = pack(groups)
    table = SegmentTable(batch.segments, "sdpa")
    like = torch.zeros(1, dtype=torch.float64)
    masked = [piece for piece in table.pieces(FULL) if not piece.is_causal(FULL)]
    masks = [table.mask(piece, FULL, like) for piece in masked]
    assert len({mask.untyped_storage().data_ptr() for mask in masks}) == 1
    assert masks[0].dtype == torch.float64
    # Three tokens after a prompt of five.
    hidden = [[6, 7], [7], []]
    for row, later in zip(masks[0].tolist(), hidden, strict=True):
        assert row == [-torch.inf if key in later else 0.0 for key in range(8)]
