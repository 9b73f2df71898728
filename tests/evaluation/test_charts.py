import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onerec.evaluation.charts import Bar, Series, bar_chart, format_tick, line_chart, nice_ticks


def test_ticks_are_round_and_inside():
    assert nice_ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert nice_ticks(0.013, 0.046) == pytest.approx([0.02, 0.03, 0.04])
    assert nice_ticks(-7, 3) == [-6, -4, -2, 0, 2]


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_stay_in_range(low, width):
    ticks = nice_ticks(low, low + width)
    assert 1 <= len(ticks) <= 8
    assert all(low - 1e-6 * width <= tick <= low + width * (1 + 1e-6) for tick in ticks)


def test_numbers_are_short():
    numbers = [0, 0.05, 0.0001, 1.5, 350, 20_000, 2_831_000]
    assert [format_tick(number) for number in numbers] == ["0", "0.05", "0.0001", "1.5", "350", "20k", "2.83M"]


def test_lines_go_through_their_points():
    svg = line_chart([Series("a", [(0, 0), (10, 1)]), Series("b", [(5, 0.5)])], "step", "loss")
    points = ET.fromstring(svg).findall(".//{*}polyline")
    (x0, y0), (x1, y1) = (map(float, point.split(",")) for point in points[0].get("points").split())
    middle_x, middle_y = map(float, points[1].get("points").split(","))
    assert x0 < x1
    assert y0 > y1
    assert (middle_x, middle_y) == (pytest.approx((x0 + x1) / 2, abs=0.1), pytest.approx((y0 + y1) / 2, abs=0.1))


def test_a_logarithmic_axis():
    svg = line_chart([Series("a", [(1, 5), (10, 4), (100, 3)])], "code", "items", logarithmic_x=True)
    xs = [float(p.split(",")[0]) for p in ET.fromstring(svg).find(".//{*}polyline").get("points").split()]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.1)


def test_flat_lines_and_bars_of_zero_are_drawn():
    assert "polyline" in line_chart([Series("a", [(1, 2.0), (2, 2.0)])], "x", "y")
    assert "rect" in bar_chart([Bar("none", 0.0)], "recall")


def test_names_are_escaped():
    for chart in (
        line_chart([Series("<a>", [(0, 1)]), Series("b", [(0, 1)])], "x&", "y"),
        bar_chart([Bar("<a>", 1)], "r"),
    ):
        assert "<a>" not in chart
        ET.fromstring(chart)


def test_bars_are_to_scale_with_whiskers():
    svg = ET.fromstring(bar_chart([Bar("a", 0.2, (0.1, 0.4)), Bar("b", 0.1)], "recall"))
    widths = [float(rect.get("width")) for rect in svg.findall(".//{*}rect")]
    assert widths[0] == pytest.approx(2 * widths[1], rel=1e-2)
    whisker = svg.find(".//{*}line")
    span = float(whisker.get("x2")) - float(whisker.get("x1"))
    assert span == pytest.approx(1.5 * widths[0], rel=1e-2)


def test_nothing_gives_no_chart():
    assert line_chart([], "x", "y") == bar_chart([], "r") == line_chart([Series("a", [])], "x", "y") == ""
