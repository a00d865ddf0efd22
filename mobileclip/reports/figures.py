"""Figures as PNG bytes: the same numbers give the same bytes (no date, no software version inside)."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib.figure import Figure

INK, ACCENT, MUTED = "#1f2933", "#0b6e99", "#9aa5b1"


def to_png(figure: Figure) -> bytes:
    """A figure's PNG, stripped of everything that changes from run to run."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120, metadata={"Software": None})
    return stream.getvalue()


def new_figure(*, width: float = 6.4, height: float = 3.6) -> tuple[Figure, Any]:
    """A figure in the project's style with one axes; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)
    return figure, axes


def save_histogram(values: Sequence[float], *, mark: float, label: str) -> bytes:
    """Histogram with a vertical line at `mark`."""
    figure, axes = new_figure()
    axes.hist(values, bins=50, color=ACCENT)
    axes.axvline(mark, color=INK, linewidth=1.2, linestyle="--")
    axes.annotate(
        f"cut {mark:.3f}", (mark, axes.get_ylim()[1]), xytext=(4, -10), textcoords="offset points", fontsize=9
    )
    axes.set_xlabel(label)
    axes.set_ylabel("pairs")
    return to_png(figure)


def save_curves(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, x: str, y: str, log_x: bool = False
) -> bytes:
    """Lines by label, each (x values, y values)."""
    figure, axes = new_figure()
    for label, (xs, ys) in curves.items():
        axes.plot(xs, ys, marker="o", markersize=3, linewidth=1.6, label=label)
    if log_x:
        axes.set_xscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(frameon=False, fontsize=9)
    return to_png(figure)


def save_bars(bars: Mapping[str, tuple[float, float]], *, label: str) -> bytes:
    """Horizontal bars by name, each (value, half width of its interval), the first on top; the axis starts at 0."""
    figure, axes = new_figure(height=1.0 + 0.34 * len(bars))
    names = list(bars)[::-1]
    values, errors = zip(*(bars[name] for name in names), strict=True)
    axes.barh(range(len(names)), values, xerr=errors, color=ACCENT, ecolor=INK, capsize=3, height=0.6)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel(label)
    return to_png(figure)


def draw_lengths(lengths: dict[int, int]) -> bytes:
    """Bar chart of caption lengths as PNG."""
    figure, axes = new_figure()
    axes.bar(list(lengths), list(lengths.values()), color=ACCENT, width=0.8)
    axes.set_xlabel("Words per caption", color=INK)
    axes.set_ylabel("Captions", color=INK)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.get_major_locator().set_params(integer=True)
    return to_png(figure)
