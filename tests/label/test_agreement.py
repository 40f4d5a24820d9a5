"""Agreement is what the literature gives for its own examples."""

from __future__ import annotations

import pytest

from penchant.label.agreement import measure_agreement


def by_unit(*observers: str) -> list[list[str]]:
    return [[value for value in unit if value != "."] for unit in zip(*observers, strict=True)]


def test_alpha_of_two_observers_is_krippendorffs():
    """Krippendorff (2011), section A: Meg and Owen on 10 articles, alpha 0.095."""
    found = measure_agreement(by_unit("0100000010", "1110010000"))
    assert found.alpha == pytest.approx(0.095, abs=5e-4)
    assert found.share == 0.6


def test_alpha_with_many_observers_and_missing_answers_is_krippendorffs():
    """Krippendorff (2011), section C: four observers, 12 units, one of one answer: 0.743."""
    found = measure_agreement(
        by_unit("123321412...", "1233224125.3", ".3332342251.", "12332441251.")
    )
    assert found.alpha == pytest.approx(0.743, abs=5e-4)
    assert found.items == 11


def test_alpha_of_equal_answers_is_one_and_of_a_single_kind_undefined():
    assert measure_agreement([["a", "a"], ["b", "b"]]).alpha == 1
    same = measure_agreement([["a", "a"], ["a", "a"]])
    assert (same.share, same.alpha) == (1, None)
    assert "not defined" in str(same)


def test_single_answers_tell_nothing():
    found = measure_agreement([["a"], ["b"], []])
    assert (found.items, found.share, found.alpha) == (0, None, None)
    assert "no item has two answers" in str(found)
