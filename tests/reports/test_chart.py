"""Charts: well-formed, readable by screen readers, equal bytes for equal data, round numbers, spikes that stay."""

import math
import re
import time
from xml.etree import ElementTree

import pytest

from pretrain.reports import page
from pretrain.reports.chart import (
    Axis,
    Bar,
    Histogram,
    Line,
    Look,
    bar_chart,
    histogram,
    line_chart,
    short,
    stacked_bar,
)
from pretrain.reports.series import BINS, Series

HOSTILE = '<script>alert("a")</script>\x1b[31m\u202e&'


def drawn(text: str) -> ElementTree.Element:
    """Parse a drawing and check what each must have: a size, a title and a description that it points to."""
    root = ElementTree.fromstring(text)
    assert root.attrib["role"] == "img"
    assert re.fullmatch(r"0 0 \d+ \d+", root.attrib["viewBox"])
    title, about = root[0], root[1]
    assert (title.tag, about.tag) == ("title", "desc")
    assert root.attrib["aria-labelledby"].split() == [title.attrib["id"], about.attrib["id"]]
    assert title.text
    assert about.text
    return root


def words(root: ElementTree.Element) -> list[str]:
    return [each.text or "" for each in root.iter("text")]


def curve(*values: float) -> Series:
    return Series.of((float(step), value) for step, value in enumerate(values))


def test_curves_have_names_with_their_newest_values_at_their_ends() -> None:
    lines = [Line("training", curve(5, 4, 3)), Line("validation", curve(5, 4.5, 3.01), dots=True)]
    text = line_chart(lines, Look("Loss", marks=[(1, "resumed")]))
    root = drawn(text)
    assert {"training 3", "validation 3.01", "resumed", "step"} <= set(words(root))
    assert "training: from 5 to 3 at 2, lowest 3, highest 5" in str(root[1].text)
    heights = [float(each.attrib["y"]) for each in root.iter("text") if each.attrib.get("class") == "label"]
    assert abs(heights[0] - heights[1]) >= 15  # they do not cover each other
    assert text == line_chart(lines, Look("Loss", marks=[(1, "resumed")]))
    assert len([each for each in root.iter("circle") if each.attrib["r"] == "4"]) == 3


def test_gray_curves_have_no_names() -> None:
    root = drawn(line_chart([Line("others", curve(1, 2), quiet=True), Line("this", curve(1, 3))], Look("Loss")))
    assert not [word for word in words(root) if "others" in word]


@pytest.mark.parametrize(
    ("low", "high", "is_log", "expected"),
    [
        (0.0, 10.0, False, [0, 2, 4, 6, 8, 10]), (0.13, 0.97, False, [0.2, 0.4, 0.6, 0.8]),
        (-5.0, 5.0, False, [-4, -2, 0, 2, 4]), (1.0, 1000.0, True, [1, 10, 100, 1000]),
        (0.002, 0.05, True, [0.003, 0.01, 0.03]), (0.0, 1e9, False, [0, 2e8, 4e8, 6e8, 8e8, 1e9]),
    ],
)  # fmt: skip
def test_axes_have_round_numbers(low: float, high: float, is_log: bool, expected: list[float]) -> None:
    axis = Axis(low, high, 0.0, 100.0, is_log)
    assert axis.ticks(5 if not is_log else 4) == pytest.approx(expected)
    assert all(-1e-9 <= axis(value) <= 100 + 1e-9 for value in expected)


def test_an_axis_is_logarithmic_where_values_differ_much() -> None:
    assert {"0.1", "1", "10", "100"} <= set(words(drawn(line_chart([Line("a", curve(100, 0.1))], Look("Norm")))))
    assert "50" in words(drawn(line_chart([Line("a", curve(100, 0.1))], Look("Norm", log_y=False))))


def test_values_all_equal_none_or_not_finite() -> None:
    drawn(line_chart([Line("a", curve(2, 2, 2))], Look("Constant")))
    drawn(line_chart([Line("a", curve(0))], Look("One")))
    assert line_chart([], Look("None")) == line_chart([Line("a", Series())], Look("None")) == ""
    series = curve(math.nan, 1, math.inf, 2, -math.inf)
    assert series.left_out == 3
    assert "nan" not in line_chart([Line("a", series)], Look("Some"))
    assert (
        bar_chart([], Look("None")) == stacked_bar([], Look("None")) == histogram(Histogram([], []), Look("None")) == ""
    )


@pytest.mark.slow
def test_a_million_points_are_thinned_and_a_spike_stays() -> None:
    start = time.monotonic()
    series = Series.of((float(step), 3 + (step % 7) / 10 + 97 * (step == 654_321)) for step in range(1_000_000))
    points = series.points()
    assert BINS / 2 <= len(points) <= BINS
    assert series.extremes() == (3, pytest.approx(100.0, abs=1))
    spike = max(points, key=lambda point: point.high)
    assert abs(spike.x - 654_321) < 1_000_000 / BINS * 2
    assert sum(point.mean for point in points) / len(points) == pytest.approx(3.3, abs=0.01)
    text = line_chart([Line("loss", series)], Look("Loss"))
    drawn(text)
    assert len(text) < 60_000
    assert 'class="band"' in text
    assert time.monotonic() - start < 60


def test_bars_a_waterfall_and_parts_of_a_whole() -> None:
    bars = [Bar("read", 10, "10"), Bar("duplicates", -4, "-4", start=10, color=1), Bar("kept", 6, "6")]
    root = drawn(bar_chart(bars, Look("Documents")))
    first, second, third = (
        (float(each.attrib["x"]), float(each.attrib["x"]) + float(each.attrib["width"])) for each in root.iter("rect")
    )
    assert second[1] == pytest.approx(first[1], abs=0.2)
    assert second[0] == pytest.approx(third[1], abs=0.2)
    root = drawn(stacked_bar([Bar("weights", 3, "3 GiB"), Bar("rest", 1, "1 GiB")], Look("Memory"), (5, "5 GiB")))
    assert {"75.0%", "25.0%", "3 GiB", "5 GiB"} <= set(words(root))


def test_a_histogram_has_its_thresholds() -> None:
    values = Histogram([1, 10, 100, 1000], [5, 0, 20], "documents")
    root = drawn(histogram(values, Look("Lengths", x="tokens", log_x=True, marks=[(256, "a row")])))
    assert "a row" in words(root)
    assert str(root[1].text) == "25 documents; most, 20, between 100 and 1000; a row."
    assert [title.text for each in root.iter("rect") for title in each] == ["1 to 10: 5", "100 to 1000: 20"]


def test_names_are_shown_as_text() -> None:
    look = Look(HOSTILE, x=HOSTILE, marks=[(1.0, HOSTILE)])
    for text in (
        line_chart([Line(HOSTILE, curve(1, 2), dots=True)], look),
        bar_chart([Bar(HOSTILE, 1, HOSTILE)], look),
        stacked_bar([Bar(HOSTILE, 1, HOSTILE)], look, (1, HOSTILE)),
        histogram(Histogram([1, 2], [1], HOSTILE), look),
    ):
        root = drawn(text)
        assert {each.tag for each in root.iter()} <= {"svg", "title", "desc", "text", "path", "g", "circle", "rect"}
        assert "\x1b" not in text
        assert "\u202e" not in text


def test_short_numbers() -> None:
    texts = {0.0: "0", 1234.0: "1234", 12_345.0: "12.35k", 2e6: "2M", 3e-5: "3e-5", 0.05: "0.05", -1.5e9: "-1.5G"}
    assert {value: short(value) for value in texts} == texts


def test_long_texts_are_cut_with_a_count() -> None:
    assert page.escaped("<" * 10, limit=4) == "&lt;&lt;&lt;&lt; [... 6 characters more]"


def test_a_logarithmic_axis_within_a_decade_has_ticks_at_doublings() -> None:
    lines = [Line("a", Series.of([(1.0, 2.0), (4.0, 1.0)]))]
    root = drawn(line_chart(lines, Look("Loss", x="passes", log_x=True)))
    assert {"1", "2", "4"} <= {element.text for element in root.iter() if element.tag.endswith("text")}
