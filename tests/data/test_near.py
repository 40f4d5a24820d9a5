"""Records that nearly repeat an earlier one are counted, each among those that say the same."""

from __future__ import annotations

import pytest

from penchant.data.near import count_near_repeats
from penchant.data.records import Label, Pair

SAID = "a small boat with one red sail goes over the wide and quiet lake at dawn every day"
EDITED = f"then {SAID}"
OTHER = "nothing of that is so because nobody has seen boats on these waters since last spring"

pytest.importorskip("rensa")
pytest.importorskip("scipy")


def label(completion: str, desirable: bool) -> Label:
    return Label("Is it so?", completion, desirable, "here")


def test_a_light_edit_repeats_and_another_answer_does_not() -> None:
    pairs = [Pair("Is it so?", text, OTHER, "here") for text in (SAID, EDITED)]
    swapped = Pair("Is it so?", OTHER, SAID, "here")
    assert count_near_repeats([*pairs, swapped]).num == 1
    labels = [label(text, True) for text in (SAID, EDITED, OTHER)]
    found = count_near_repeats(labels)
    assert (found.num, found.total, found.noun) == (1, 3, "label")


@pytest.mark.parametrize("bad", [SAID, EDITED], ids=["judged both ways", "a light edit"])
def test_a_bad_answer_does_not_repeat_the_good_one(bad: str) -> None:
    """What tells the two apart is what such labels teach."""
    assert count_near_repeats([label(SAID, True), label(bad, False)]).num == 0


def test_verdicts_that_alternate_hide_no_repeat() -> None:
    edits = [label(f"{word} {SAID}", n % 2 == 0) for n, word in enumerate(("so", "then", "now"))]
    assert count_near_repeats([label(SAID, False), *edits]).num == 2
