"""Accuracy over latency: axes, whiskers, labels that do not cover each other, and the published figures."""

import re

import pytest

from mobileclip.reports.published_figures import MODELS
from mobileclip.reports.scatter import Dot, log_ticks, scatter_chart


def dot(name, x, y, spread=0.0, kind="student"):
    return Dot(name, x, y, y - spread, y + spread, kind, f"{name} <shown>")


def numbers(markup, element, *names):
    """Attributes of every element of that name."""
    tags = re.findall(rf"<{element} [^>]*>", markup)
    return [tuple(float(re.search(rf' {n}="([-\d.]+)"', tag)[1]) for n in names) for tag in tags]


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [(1.5, 65, [1, 2, 5, 10, 20, 50, 100]), (2, 2, [2, 5]), (0.4, 0.9, [0.2, 0.5, 1]), (1, 10, [1, 2, 5, 10])],
)
def test_ticks_cover_the_range(low, high, wanted):
    assert log_ticks(low, high) == pytest.approx(wanted)


def test_equal_ratios_are_equal_distances():
    chart = scatter_chart([dot("a", 1, 0.2), dot("b", 4, 0.3), dot("c", 16, 0.4)], title="t", note="n", x_label="ms")
    (ax, ay), (bx, by), (cx, cy) = numbers(chart, "circle", "cx", "cy")
    assert bx - ax == pytest.approx(cx - bx, abs=0.11)
    assert ay > by > cy
    assert ay - by == pytest.approx(by - cy, abs=0.11)


def test_whiskers_span_the_interval_and_text_is_escaped():
    chart = scatter_chart([dot("<b>", 1, 0.5, 0.1), dot("x", 3, 0.6)], title="t", note="n", x_label="ms")
    bars = [tag for tag in re.findall(r"<line [^>]*>", chart) if 'class="bar"' in tag]
    assert len(bars) == 1
    assert "<b>" not in re.sub(r"<figcaption>.*?</figcaption>", "", chart)
    assert "&lt;b&gt;" in chart


def test_published_models_are_on_the_chart_and_no_two_names_overlap():
    dots = [dot(m.name, m.latency_ms, m.top1, kind="published") for m in MODELS]
    chart = scatter_chart(dots, title="t", note="n", x_label="ms")
    names = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" class="name published">([^<]+)</text>', chart)
    assert len(names) >= 10
    boxes = [(float(x), float(y), float(x) + 6.4 * len(name)) for x, y, name in names]
    for i, (left, y, right) in enumerate(boxes):
        for other_left, other_y, other_right in boxes[:i]:
            assert right <= other_left or other_right <= left or abs(y - other_y) >= 12.9


def test_published_figures_are_the_papers():
    found = {(m.family, m.name): m for m in MODELS}
    assert len(found) == len(MODELS) == 14
    s0 = found["MobileCLIP2", "S0"]
    assert (s0.latency_ms, s0.top1, s0.average) == (pytest.approx(4.8), 0.715, 0.597)
    assert found["MobileCLIP", "S4"].average == max(m.average for m in MODELS)
