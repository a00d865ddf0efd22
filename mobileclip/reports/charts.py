"""Charts of the report as markup: colors come from the page's style sheet, so they follow dark and light."""

import math
from collections.abc import Mapping, Sequence

from mobileclip.reports.html_elements import Markup, element, join

Points = list[tuple[float, float]]

_WIDTH, _HEIGHT = 340, 222
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 10, 42


def line_chart(curves: Mapping[str, Points], *, title: str, x_label: str, percent: bool = False) -> Markup:
    """Lines by series name (`student`, `control`: also their CSS class), as one figure with a caption.

    Args:
        curves: Points of each series.
        title: What is drawn.
        x_label: Name of the horizontal axis.
        percent: Whether values are shares to be shown in percent.
    """
    xs = [x for points in curves.values() for x, _ in points]
    ys = [y for points in curves.values() for _, y in points]
    x_ticks = nice_ticks(0.0, max(xs), count=4)
    y_ticks = nice_ticks(0.0 if percent else min(ys), max(ys), count=4)
    x_high, y_low, y_high = max(*xs, 1e-12), y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (_WIDTH - _LEFT - _RIGHT) * x / x_high
        up = (y - y_low) / (y_high - y_low)
        return round(across, 1), round(_HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * up, 1)

    parts = [_y_tick(value, place(0, value)[1], percent=percent) for value in y_ticks]
    parts += [_x_tick(value, place(value, y_low)[0]) for value in x_ticks if value <= x_high]
    for name, points in curves.items():
        path = " ".join("{},{}".format(*place(x, y)) for x, y in points)
        parts.append(element("polyline", points=path, class_=f"series {name}"))
        for x, y in points if len(points) <= 30 else points[-1:]:
            across, down = place(x, y)
            parts.append(
                element(
                    "g",
                    element("title", f"{name}: {tick_label(y, percent=percent, fine=True)} at {x:,.0f}"),
                    element("circle", cx=across, cy=down, r=2.4),
                    class_=f"point {name}",
                )
            )
    parts.append(element("text", x_label, x=_WIDTH - _RIGHT, y=_HEIGHT - 2, text_anchor="end"))
    svg = element("svg", parts, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=title, class_="chart")
    return element("figure", element("figcaption", element("b", title)), svg)


def interval_chart(rows: Sequence[tuple[str, Mapping[str, tuple[float, float, float]], Mapping[str, float]]]) -> Markup:
    """Dots with whiskers on one common scale that starts at zero.

    Args:
        rows: Label, (value, low, high) by series name, and reference levels by name, all shares 0 to 1.
    """
    values = [v for _, series, levels in rows for v in [*(h for _, _, h in series.values()), *levels.values()]]
    ticks = nice_ticks(0.0, min(max(values), 1.0), count=5)
    high = min(ticks[-1], 1.0)
    ticks = [tick for tick in ticks if tick <= high + 1e-9]

    def position(value: float) -> str:
        return f"{100 * min(max(value / high, 0.0), 1.0):.2f}%"

    grid = [element("i", class_="grid", style=f"left:{position(tick)}") for tick in ticks]
    body = []
    for label, series, levels in rows:
        marks = [
            element("i", class_=f"level {name}", style=f"left:{position(value)}", title=f"{name} {percent_text(value)}")
            for name, value in levels.items()
        ]
        for name, (value, low, upper) in series.items():
            title = f"{name} {percent_text(value)} ({percent_text(low)} to {percent_text(upper)})"
            width = f"calc({position(upper)} - {position(low)})"
            marks.append(element("i", class_=f"whisker {name}", style=f"left:{position(low)};width:{width}"))
            marks.append(element("i", class_=f"dot {name}", style=f"left:{position(value)}", title=title))
        body.append(join(element("div", label, class_="name"), element("div", grid, marks, class_="track")))
    axis = [element("span", percent_text(t, digits=0), style=f"left:{position(t)}") for t in ticks]
    return element("div", body, element("div", class_="name"), element("div", axis, class_="axis"), class_="intervals")


def heatmap(labels: Sequence[str], counts: Sequence[Sequence[int]], *, title: str) -> Markup:
    """A confusion matrix: rows are true classes in percent of the row, columns predictions by number."""
    head = element("tr", element("th", ""), [element("th", i + 1, scope="col") for i in range(len(labels))])
    body = []
    for index, (label, row) in enumerate(zip(labels, counts, strict=True)):
        total = sum(row)
        name = element("th", element("span", index + 1, class_="index"), label, scope="row")
        cells = [
            _heat_cell(count, total, f"{label} taken for {labels[column]}: {count} of {total}", index == column)
            for column, count in enumerate(row)
        ]
        body.append(element("tr", name, cells))
    table = element("table", element("thead", head), element("tbody", body), class_="heat")
    return element("figure", element("figcaption", element("b", title)), element("div", table, class_="scroll"))


def legend(names: Mapping[str, str]) -> Markup:
    """Series names by CSS class."""
    items = [element("span", element("i", class_=f"key {name}"), label) for name, label in names.items()]
    return element("p", items, class_="legend")


def nice_ticks(low: float, high: float, *, count: int) -> list[float]:
    """Round numbers that cover [low, high], about `count` steps, at least two ticks."""
    span = high - low if high > low else max(abs(high), 1e-9)
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [round(index * step, 12) for index in range(first, last + 1)]


def percent_text(value: float, *, digits: int = 1) -> str:
    """A share as percent."""
    return f"{100 * value:.{digits}f}%"


def tick_label(value: float, *, percent: bool = False, fine: bool = False) -> str:
    """A short number for an axis."""
    if percent:
        return percent_text(value, digits=1 if fine or 0 < value < 0.01 else 0)
    if abs(value) >= 10_000:
        return f"{value / 1000:,.0f}k"
    return f"{value:,.4g}"


def _y_tick(value: float, down: float, *, percent: bool) -> Markup:
    return join(
        element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=down, y2=down, class_="grid"),
        element("text", tick_label(value, percent=percent), x=_LEFT - 6, y=down + 4, text_anchor="end"),
    )


def _x_tick(value: float, across: float) -> Markup:
    anchor = "start" if value == 0 else "end" if across > _WIDTH - 30 else "middle"
    return element("text", tick_label(value), x=across, y=_HEIGHT - _BOTTOM + 18, text_anchor=anchor)


def _heat_cell(count: int, total: int, title: str, diagonal: bool) -> Markup:
    share = count / total if total else 0.0
    names = ["strong" if share > 0.65 else "", "own" if diagonal else ""]
    classes = " ".join(name for name in names if name) or None
    return element("td", f"{100 * share:.0f}" if count else "", style=f"--v:{share:.3f}", class_=classes, title=title)
