"""Charts are drawings in which every value stands where its axis says."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from penchant.reporting.charts import Axis, as_svg, ticks
from penchant.reporting.curves import Line, Panel


def line(name: str, values: list[float], style: int = 0) -> Line:
    return Line(name, [float(n) for n in range(1, len(values) + 1)], values, values, values, style)


def drawn(panel: Panel) -> ElementTree.Element:
    """The drawing, which a parser of XML reads."""
    return ElementTree.fromstring(as_svg(panel))


def labels(drawing: ElementTree.Element) -> list[tuple[str, float, float]]:
    return [
        (one.text or "", float(one.get("x", "")), float(one.get("y", "")))
        for one in drawing.iter("text")
    ]


def curve(drawing: ElementTree.Element, number: int = 0) -> list[tuple[float, float]]:
    """The points of a curve: the strokes in its colour, the one of the legend left out."""
    strokes = [one for one in drawing.iter("path") if "series" in one.get("stroke", "")]
    paths = [one.get("d", "") for one in strokes if "h" not in one.get("d", "")]
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.-]+) ([\d.-]+)", paths[number])]


@pytest.mark.parametrize(
    ("low", "high", "whole", "expected"),
    [
        (-0.05, 1.05, False, ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0.95, 1.05, True, ["1"]),
        (0, 13, True, ["0", "5", "10"]),
        (0, 3.1, True, ["0", "1", "2", "3"]),
        (0.6, 0.73, False, ["0.600", "0.625", "0.650", "0.675", "0.700", "0.725"]),
        (0, 1.1e-5, False, ["0", "2e-06", "4e-06", "6e-06", "8e-06", "1e-05"]),
        (-11000, 500, False, ["-10,000", "-8,000", "-6,000", "-4,000", "-2,000", "0"]),
        (0, 2.2e6, False, ["0", "500,000", "1M", "1.5M", "2M"]),
    ],
)
def test_ticks_are_round(low: float, high: float, whole: bool, expected: list[str]) -> None:
    found = ticks(low, high, 6, whole)
    assert [label for _, label in found] == expected
    assert all(low - 1e-9 <= value <= high + 1e-9 for value, _ in found)


@pytest.mark.parametrize("values", [[0.7, 0.5, 0.6], [3.0], [0.0, 0.0], [1e-12, 2e-12], [-1e9, 7]])
def test_a_value_stands_where_the_labels_of_its_axis_say(values: list[float]) -> None:
    drawing = drawn(Panel("Loss", "loss", [line("loss", values)]))
    points = curve(drawing)
    assert len(points) == len(values)
    upward = [one for one in labels(drawing) if one[1] < points[0][0] and one[0] != "loss"]
    scale = [(float(text.replace(",", "").replace("M", "e6")), y - 3) for text, _, y in upward]
    assert len(scale) > 1
    (low, at_low), (high, at_high) = scale[0], scale[-1]
    for value, (_, y) in zip(values, points, strict=True):
        expected = at_low + (value - low) / (high - low) * (at_high - at_low)
        assert y == pytest.approx(expected, abs=0.6)
    assert all(0 < x < 317 and 0 < y < 202 for x, y in points)


def test_what_is_compared_with_is_drawn_where_it_is_near() -> None:
    near = as_svg(Panel("Win rate", "share", [line("w", [0.4, 0.6])], mark=(0.5, "a draw")))
    assert "0.5: a draw" in near
    far = as_svg(Panel("Win rate", "share", [line("w", [70.0, 71.0])], mark=(0.5, "a draw")))
    assert "a draw" not in far
    assert "healthy, 1 to 10" in as_svg(Panel("KL", "nats", [line("kl", [0, 2])], band=(1, 10)))


def test_curves_differ_in_colour_dashes_and_marks_and_names_are_escaped() -> None:
    lines = [line(f"<b>{n}&", [n, n + 1.0], style=n) for n in range(6)]
    drawing = drawn(Panel('"Diversity"', "share", lines))
    assert [text for text, *_ in labels(drawing)][:6] == [f"<b>{n}&" for n in range(6)]
    strokes = [one for one in drawing.iter("path") if "series" in one.get("stroke", "")]
    assert len({(one.get("stroke"), one.get("stroke-dasharray")) for one in strokes}) == 6
    assert drawing.get("aria-label") == '"Diversity"'


def test_a_long_name_is_wrapped_in_the_legend_and_leaves_the_curves_their_room() -> None:
    long = " ".join(f"word{n}" for n in range(30))
    texts = [one[0] for one in labels(drawn(Panel("Loss", "loss", [line(long, [1, 2])] * 2)))]
    assert " ".join(texts).count(long) == 2
    short = curve(drawn(Panel("Loss", "loss", [line("a", [1, 2]), line("b", [1, 2])])))
    tall = curve(drawn(Panel("Loss", "loss", [line(long, [1, 2])] * 2)))
    assert tall[0][1] - tall[1][1] >= (short[0][1] - short[1][1]) * 0.9


def test_extremes_are_shaded_and_lie_within_the_axes() -> None:
    shaded = Line("loss", [1.0, 2.0], [1.0, 1.0], [0.0, 0.5], [2.0, 9.0])
    drawing = drawn(Panel("Loss", "loss", [shaded]))
    (shade,) = [one for one in drawing.iter("path") if one.get("opacity") == ".18"]
    heights = [float(y) for _, y in re.findall(r"([\d.]+) ([\d.]+)", shade.get("d", ""))]
    assert len(heights) == 4 and min(heights) > 0 and max(heights) < 174


def test_an_axis_is_linear_between_its_ends() -> None:
    axis = Axis(10, 30, 100, 0)
    assert [axis.at(value) for value in (10, 15, 30)] == [100, 75, 0]
