"""What is compared is the whole row, without what was known of its preference."""

from __future__ import annotations

from typing import Any

import pytest

from penchant.data.opening import Sources
from penchant.data.records import Data, Pair
from penchant.label.reading import read_comparisons

ROW = {"prompt": "p", "completion_a": "one", "completion_b": "two"}
SIDES = {"prompt": "p", "chosen": "one", "rejected": "two"}


def read(*rows: dict[str, Any]) -> Data[Pair]:
    return read_comparisons(Sources.of(list(rows)))


@pytest.mark.parametrize("row", [ROW, SIDES], ids=["unlabelled", "preferred"])
@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("system", "Be brief.", "system beside the prompt"),
        ("system_prompt", "Be brief.", "system_prompt beside the prompt"),
        ("history", [["Who?", "Tim."]], "history beside the prompt"),
        ("input", "a text to rewrite", "input beside the prompt"),
        ("context", "what is known", "context beside the prompt"),
        ("documents", ["what is known"], "documents beside the prompt"),
        ("images", ["a.png"], "images, sound or video"),
    ],
)
def test_no_part_of_the_prompt_is_hidden_from_who_compares(row, column, value, reason):
    data = read(row, {**row, column: value})
    assert len(data.records) == 1
    assert [(one.where, one.reason) for one in data.refused] == [("list:2", reason)]
    told = data.refused[0].detail
    assert column in told
    assert "completion_a" not in row or "penchant data convert" not in told, "it reads no such row"


def test_what_says_which_answer_is_better_is_not_read():
    """Values that training refuses are none of labelling's business."""
    ratings = {"margin": -1, "agreement": 0.9, "score_chosen": 1, "score_rejected": "?"}
    rows = [{**ROW, "label": "b", "votes": ["b", "b"], **ratings}, {**ROW, "label": "nonsense"}]
    data = read(*rows, {**ROW, "label": None})
    assert not data.refused
    for pair in data.records:
        assert (pair.chosen, pair.rejected) == ("one", "two")
        assert pair.margin is None and pair.agreement is None


def test_tools_reach_the_prompt_that_is_shown():
    tools = [{"type": "function", "function": {"name": "f"}}]
    chat = {**SIDES, "prompt": [{"role": "user", "content": "p"}], "tools": tools}
    (pair,) = read(chat).records
    assert pair.prompt == ({"role": "user", "content": "p", "tools": tools},)
