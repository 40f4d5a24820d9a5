"""The two layouts: where every token stands, and which position predicts which token."""

from __future__ import annotations

import pytest
import torch

from penchant.data.batch import Group, Segments, pack, pack_repeated, pad

FIRST = Group([10, 11, 12], ([20, 21], [30]))
SECOND = Group([13], ([40, 41, 42], [50, 51]))


def test_packed_row_holds_each_prompt_once_and_restarts_positions_at_its_end():
    """Worked by hand.

    index      0  1  2 | 3  4 | 5 | 6 | 7  8  9 | 10 11
    token     10 11 12 |20 21 |30 |13 |40 41 42 | 50 51
    position   0  1  2 | 3  4 | 3 | 0 | 1  2  3 |  1  2

    20 and 30 are predicted at the prompt's end (2), 21 at 20 (3); 40 and 50 at 6, 41 at 7, 42 at
    8, and 51 at 10.
    """
    batch = pack([FIRST, SECOND])
    assert batch.input_ids.tolist() == [[10, 11, 12, 20, 21, 30, 13, 40, 41, 42, 50, 51]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 0, 1, 2, 3, 1, 2]]
    assert batch.attention_mask is None
    assert batch.segments == (
        Segments(0, 3, ((3, 5), (5, 6))),
        Segments(6, 7, ((7, 10), (10, 12))),
    )
    assert [segments.end for segments in batch.segments] == [6, 12]
    assert batch.predictors.tolist() == [2, 3, 2, 6, 7, 8, 6, 10]
    assert batch.targets.tolist() == [20, 21, 30, 40, 41, 42, 50, 51]
    assert batch.segment_index.tolist() == [0, 0, 1, 2, 2, 2, 3, 3]
    assert batch.completion_lengths.tolist() == [2, 1, 3, 2]
    assert batch.num_tokens == 12


def test_scored_prompts_are_segments_behind_the_last_completion():
    """Worked by hand, on the row above: 11 is predicted at 0, 12 at 1, and nothing predicts 13.

    Padded, rows are 5 wide, and the first row of a prompt is where it is scored.
    """
    groups = [FIRST, SECOND, Group([14, 15], ([60],))]
    plain, packed = pack(groups), pack(groups, with_prompts=True)
    assert packed.predictors.tolist() == [*plain.predictors.tolist(), 0, 1, 12]
    assert packed.targets.tolist() == [*plain.targets.tolist(), 11, 12, 15]
    assert packed.segment_index.tolist() == [*plain.segment_index.tolist(), 5, 5, 7]
    assert packed.segment_lengths.tolist() == [2, 1, 3, 2, 1, 2, 0, 1]
    assert packed.completion_lengths.tolist() == plain.segment_lengths.tolist() == [2, 1, 3, 2, 1]
    assert packed.prompt_lengths.tolist() == [2, 0, 1]
    assert plain.prompt_lengths.tolist() == []

    padded = pad(groups, pad_token_id=99, with_prompts=True)
    unscored = pad(groups, pad_token_id=99).predictors.tolist()
    assert padded.predictors.tolist() == [*unscored, 0, 1, 20]
    assert padded.targets.tolist() == packed.targets.tolist()
    assert padded.segment_index.tolist() == packed.segment_index.tolist()


def test_ends_are_the_last_tokens_of_the_completions():
    """In the row of 12 at 4, 5, 9 and 11; padded, in rows of 5, at 4, 3, 3 and 2."""
    for with_prompts in (False, True):
        packed = pack([FIRST, SECOND], with_prompts=with_prompts)
        assert packed.ends.tolist() == [4, 5, 9, 11]
        assert packed.input_ids.flatten()[packed.ends].tolist() == [21, 30, 42, 51]
        padded = pad([FIRST, SECOND], pad_token_id=99, with_prompts=with_prompts)
        assert padded.ends.tolist() == [4, 5 + 3, 10 + 3, 15 + 2]
        assert padded.input_ids.flatten()[padded.ends].tolist() == [21, 30, 42, 51]


def test_padded_rows_hold_one_completion_each_behind_its_own_prompt():
    """Rows of width 5: 10 11 12 20 21 / 10 11 12 30 p / 13 40 41 42 p / 13 50 51 p p."""
    batch = pad([FIRST, SECOND], pad_token_id=99)
    assert batch.input_ids.tolist() == [
        [10, 11, 12, 20, 21],
        [10, 11, 12, 30, 99],
        [13, 40, 41, 42, 99],
        [13, 50, 51, 99, 99],
    ]
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [
        [1, 1, 1, 1, 1],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 0, 0],
    ]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4]] * 4
    assert batch.segments is None
    assert batch.predictors.tolist() == [2, 3, 5 + 2, 10, 11, 12, 15, 16]
    assert batch.num_tokens == 16


def test_a_padding_token_inside_a_completion_is_still_predicted():
    batch = pad([Group([1], ([99, 2], [99]))], pad_token_id=99)
    assert batch.targets.tolist() == [99, 2, 99]
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]


def test_both_layouts_number_and_order_the_completions_alike(groups):
    packed, padded = pack(groups), pad(groups, 0)
    assert packed.targets.tolist() == padded.targets.tolist()
    assert packed.segment_index.tolist() == padded.segment_index.tolist()
    assert packed.completion_lengths.tolist() == padded.completion_lengths.tolist()
    assert packed.num_tokens == sum(group.num_tokens for group in groups)


def test_repeated_prompts_stand_in_one_row_and_positions_restart_at_each():
    groups = [Group([1, 3], ([4], [5, 2])), Group([6], ([7, 2],))]
    batch = pack_repeated(groups, with_prompts=True)
    assert batch.layout == "repeated"
    assert batch.input_ids.tolist() == [[1, 3, 4, 1, 3, 5, 2, 6, 7, 2]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 3, 0, 1, 2]]
    # The completions, then the prompts' own tokens in their first copies.
    assert batch.predictors.tolist() == [1, 4, 5, 7, 8, 0]
    assert batch.targets.tolist() == [4, 5, 2, 7, 2, 3]
    assert batch.ends.tolist() == [2, 6, 9]
    assert batch.num_tokens == 10
    shared = pack(groups, with_prompts=True)
    assert shared.targets.tolist() == batch.targets.tolist()
    assert shared.segment_index.tolist() == batch.segment_index.tolist()


def test_every_predictor_is_the_token_before_its_target_in_its_own_text(groups):
    before = [
        token
        for g in groups
        for c in g.completions
        for token in ([*g.prompt, *c][-len(c) - 1 : -1])
    ]
    for batch in (pack(groups), pack_repeated(groups), pad(groups, 0)):
        assert batch.input_ids.flatten()[batch.predictors].tolist() == before
    prompts = [token for g in groups for token in g.prompt[:-1]]
    for batch in (
        pack(groups, with_prompts=True),
        pack_repeated(groups, with_prompts=True),
        pad(groups, 0, with_prompts=True),
    ):
        assert batch.input_ids.flatten()[batch.predictors].tolist() == before + prompts


def test_moving_a_batch_keeps_everything_but_the_device():
    moved = pack([FIRST]).to("meta")
    assert moved.input_ids.device.type == moved.predictors.device.type == "meta"
    assert moved.attention_mask is None
    assert moved.segments == pack([FIRST]).segments
    assert moved.targets.dtype == torch.long


@pytest.mark.parametrize("group", [Group([], ([1],)), Group([1], ([2], [])), Group([1], ())])
def test_an_empty_prompt_or_completion_never_reaches_the_model(group):
    with pytest.raises(AssertionError):
        pack([group])
    with pytest.raises(AssertionError):
        pad([group], 0)
