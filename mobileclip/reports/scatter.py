"""Accuracy over latency as the papers draw it: dots with whiskers on a logarithmic axis, as markup."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mobileclip.reports.charts import nice_ticks, percent_text
from mobileclip.reports.html_elements import Markup, element

_WIDTH, _HEIGHT = 460, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 14, 44
_LETTER, _LINE = 7.8, 16.0  # of the larger type on a phone, where the drawing shrinks
_STEPS = (1, 2, 5)

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Dot:
    """One model.

    Attributes:
        name: Label beside the dot.
        x: Latency in milliseconds, above 0.
        y: Score, 0 to 1.
        low: Lower end of its interval; equal to `y` where there is none.
        high: Upper end.
        kind: CSS class that colors it.
        text: What a pointer over it shows.
    """

    name: str
    x: float
    y: float
    low: float
    high: float
    kind: str
    text: str


def scatter_chart(dots: Sequence[Dot], *, title: str, note: str, x_label: str) -> Markup:
    """Dots as one figure with a caption.

    Args:
        dots: At least one.
        title: What is drawn.
        note: How it was measured.
        x_label: Name of the horizontal axis.
    """
    x_ticks = log_ticks(min(dot.x for dot in dots), max(dot.x for dot in dots))
    y_ticks = nice_ticks(min(dot.low for dot in dots), min(1.0, max(dot.high for dot in dots)), count=4)
    span_x = math.log(x_ticks[-1] / x_ticks[0])
    span_y = y_ticks[-1] - y_ticks[0]

    def place(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (_WIDTH - _LEFT - _RIGHT) * math.log(x / x_ticks[0]) / span_x
        return round(across, 1), round(_HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * (y - y_ticks[0]) / span_y, 1)

    parts: list[Markup] = []
    for tick in y_ticks:
        down = place(x_ticks[0], tick)[1]
        parts.append(element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=down, y2=down, class_="grid"))
        digits = 0 if span_y >= 0.05 else 1
        parts.append(element("text", percent_text(tick, digits=digits), x=_LEFT - 6, y=down + 4, text_anchor="end"))
    for tick in x_ticks:
        across = place(tick, y_ticks[0])[0]
        parts.append(element("text", f"{tick:g}", x=across, y=_HEIGHT - _BOTTOM + 18, text_anchor="middle"))
    taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in (place(dot.x, dot.y) for dot in dots)]
    for dot in dots:
        parts.append(_mark(dot, place(dot.x, dot.y), place(dot.x, dot.low)[1], place(dot.x, dot.high)[1]))
        label = _label(dot, place(dot.x, dot.y), taken)
        if label:
            parts.append(label)
    parts.append(element("text", x_label, x=_WIDTH - _RIGHT, y=_HEIGHT - 4, text_anchor="end"))
    svg = element("svg", parts, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=title, class_="chart dots")
    return element("figure", element("figcaption", element("b", title), " ", note), svg)


def log_ticks(low: float, high: float) -> list[float]:
    """Numbers 1, 2 and 5 times powers of ten that cover [low, high]; at least two."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    ticks = [step * 10.0**power for power in range(first - 1, last + 1) for step in _STEPS]
    start = max(index for index, tick in enumerate(ticks) if tick <= low * (1 + 1e-9))
    stop = min(index for index, tick in enumerate(ticks) if tick >= high * (1 - 1e-9))
    return ticks[start : max(stop, start + 1) + 1]


def _mark(dot: Dot, at: tuple[float, float], low: float, high: float) -> Markup:
    bar = element("line", x1=at[0], x2=at[0], y1=low, y2=high, class_="bar") if dot.high > dot.low else None
    circle = element("circle", cx=at[0], cy=at[1], r=4.2)
    return element("g", element("title", dot.text), bar, circle, class_=f"dot-mark {dot.kind}")


def _label(dot: Dot, at: tuple[float, float], taken: list[Box]) -> Markup | None:
    """The name where it covers neither dot nor other name; left out where there is no such place."""
    width = _LETTER * len(dot.name) + 2
    x, y = at
    beside = [(x + 8, y), (x - 8 - width, y), (x - width / 2, y - 13), (x - width / 2, y + 13)]
    for left, middle in [*beside, (x + 6, y - 10), (x + 6, y + 11)]:
        box = (left - 2, middle - _LINE / 2, left + width + 2, middle + _LINE / 2)
        inside = box[0] >= _LEFT and box[2] <= _WIDTH and box[1] >= 0 and box[3] <= _HEIGHT - _BOTTOM + 4
        if inside and not any(_overlap(box, other) for other in taken):
            taken.append(box)
            return element("text", dot.name, x=round(left, 1), y=round(middle + 4, 1), class_=f"name {dot.kind}")
    return None


def _overlap(first: Box, second: Box) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]
