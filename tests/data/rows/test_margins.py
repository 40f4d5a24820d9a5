"""How clear a preference was, from whichever columns say so."""

from __future__ import annotations

import pytest

from penchant.data.rows.pairs import to_pair
from penchant.data.rows.row import RowError

PAIR = {"prompt": "Hi", "chosen": "good", "rejected": "bad"}
VOTED = {"prompt": "Hi", "completion_a": "one", "completion_b": "two", "label": "b"}


def convert(row):
    return to_pair(row, None, "f:1")


def refusal(row):
    with pytest.raises(RowError) as caught:
        convert(row)
    return caught.value


@pytest.mark.parametrize(
    ("columns", "margin"),
    [
        ({}, None),
        ({"margin": None}, None),
        ({"margin": 2}, 2.0),
        ({"margin": 0.25}, 0.25),
        ({"margin": 0}, 0.0),
        ({"score_chosen": 8.5, "score_rejected": 6}, 2.5),
        ({"chosen_rating": 4, "rejected_rating": 4}, 0.0),
        ({"margin": 1, "score_chosen": 8, "score_rejected": 6}, 1.0),
        ({"score_chosen": 8}, None),
        ({"score_chosen": 8, "score_rejected": None}, None),
        ({"score_chosen": 8, "rejected_rating": 6}, None),
    ],
)
def test_margin_is_the_column_or_the_difference_of_the_ratings(columns, margin):
    pair = convert({**PAIR, **columns})
    assert pair.margin == margin
    assert pair.margin is None or isinstance(pair.margin, float)


def test_labelled_rows_and_chats_have_margins_too():
    assert convert({**VOTED, "margin": 3}).margin == 3.0
    chats = {
        side: [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": side}]
        for side in ("chosen", "rejected")
    }
    assert convert({**chats, "margin": 3}).margin == 3.0


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"margin": -0.5}, "'margin' is -0.5"),
        ({"score_chosen": 3, "score_rejected": 4}, "'score_chosen' is 3 and 'score_rejected' 4"),
    ],
)
def test_negative_margin_is_refused_with_the_fix(columns, told):
    error = refusal({**PAIR, **columns})
    assert error.reason == "negative margin"
    assert told in error.detail
    assert "swap the completions" in error.detail


@pytest.mark.parametrize(
    "value", ["2", True, [1.0], float("nan"), float("inf"), 10**400], ids=lambda v: str(v)[:5]
)
@pytest.mark.parametrize("field", ["margin", "score_chosen"])
def test_margin_that_is_no_number_is_refused_with_field_value_and_fix(field, value):
    error = refusal({**PAIR, "score_rejected": 1, field: value})
    assert error.reason == "wrong type"
    assert f"'{field}' must be a finite number, or null" in error.detail
    assert repr(value)[:5] in error.detail


def test_tie_is_left_out_whatever_its_margin():
    assert convert({**VOTED, "label": "tie", "margin": -1}) is None


@pytest.mark.parametrize(
    ("votes", "agreement"),
    [
        (["b", "b", "b"], 1.0),
        (["b", "B", " a ", "tie"], 0.5),
        (["a"], 0.0),
        ([], None),
        (None, None),
        (["b", "c"], None),
        (["b", None], None),
        (["b", 2], None),
        (12, None),
        ("b", None),
    ],
)
def test_agreement_is_the_share_of_votes_equal_to_the_label(votes, agreement):
    assert convert({**VOTED, "votes": votes}).agreement == agreement


def test_votes_without_a_label_agree_with_nothing():
    assert convert({**PAIR, "votes": ["a", "a"]}).agreement is None


@pytest.mark.parametrize(
    ("value", "agreement"),
    [(0.75, 0.75), (1, 1.0), (None, None), ("high", None), (0, None), (1.5, None), (True, None)],
)
def test_an_agreement_column_beside_any_pair_is_the_agreement(value, agreement):
    assert convert({**PAIR, "agreement": value}).agreement == agreement
