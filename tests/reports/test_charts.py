"""Charts: places of marks by arithmetic, readable ticks."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobileclip.reports.charts import heatmap, interval_chart, line_chart, nice_ticks, tick_label


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_nice_ticks__cover_the_range_in_equal_steps(low, span):
    ticks = nice_ticks(low, low + span, count=4)
    step = ticks[1] - ticks[0]
    assert ticks[0] <= low + 1e-6 * step
    assert ticks[-1] >= low + span - 1e-6 * step
    assert 2 <= len(ticks) <= 7
    assert all(b - a == pytest.approx(step, rel=1e-6) for a, b in pairwise(ticks))


def test_nice_ticks__by_hand():
    assert nice_ticks(0, 0.37, count=4) == [0, 0.1, 0.2, 0.3, 0.4]
    assert nice_ticks(0, 0, count=4)[0] == 0
    assert len(nice_ticks(5, 5, count=4)) >= 2


def test_tick_label__short():
    assert tick_label(0.25, percent=True) == "25%"
    assert tick_label(0.005, percent=True) == "0.5%"
    assert tick_label(25_000) == "25k"
    assert tick_label(1500) == "1,500"


def test_line_chart__ends_of_the_axis():
    made = line_chart({"student": [(0, 0.0), (100, 0.5), (200, 1.0)]}, title="R", x_label="samples", percent=True)
    points = re.search(r'points="([^"]+)"', made)[1]
    assert points == "44.0,180.0 187.0,95.0 330.0,10.0"
    assert "student: 50.0% at 100" in made


def test_line_chart__one_constant_series_has_a_height():
    assert "nan" not in line_chart({"control": [(1, 2.0), (2, 2.0)]}, title="L", x_label="s")


def test_interval_chart__positions_are_shares_of_the_common_scale():
    made = interval_chart([("R", {"student": (0.2, 0.1, 0.4)}, {"chance": 0.05})])
    assert 'class="dot student" style="left:50.00%"' in made
    assert 'class="whisker student" style="left:25.00%;width:calc(100.00% - 25.00%)"' in made
    assert 'class="level chance" style="left:12.50%"' in made


def test_interval_chart__all_zero():
    assert "nan" not in interval_chart([("R", {"student": (0.0, 0.0, 0.0)}, {})])


def test_heatmap__percent_of_the_row():
    made = heatmap(["<a>", "b"], [[3, 1], [0, 0]], title="t")
    assert "&lt;a&gt; taken for b: 1 of 4" in made
    assert re.findall(r"<td[^>]*>(\d*)</td>", made) == ["75", "25", "", ""]
