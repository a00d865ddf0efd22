"""Figures of an evaluation as PNG, for the tracking server and the README."""

from typing import Any

import numpy as np

from mobileclip.evaluation.scores import CONTROL, STUDENT
from mobileclip.reports.charts import percent_text
from mobileclip.reports.figures import INK, MUTED, new_figure, to_png
from mobileclip.reports.results import chart_row, main_metrics
from mobileclip.reports.text import NAMES

COLORS = {STUDENT: "#0b6e99", CONTROL: "#8a6a3b"}
_MATRIX_CLASSES = 30


def draw(results: dict[str, Any], history: list[dict[str, Any]]) -> dict[str, bytes]:
    """Every figure by file name without suffix."""
    found = {"results": _intervals(results)}
    for key in sorted({key for point in history for key in point if key.startswith("validation/")}):
        found[key.replace("/", "-")] = _curve(key, history)
    for field, task in results["classifications"].items():
        if len(task["classes"]) <= _MATRIX_CLASSES:
            found[f"confusion-{field}"] = _confusion(field, task)
    return found


def _intervals(results: dict[str, Any]) -> bytes:
    metrics = results["scopes"][0]["metrics"]
    names = [name for name in NAMES if name in metrics[results["headline"]]]
    rows = [chart_row(metric, metrics[metric], {n: NAMES[n] for n in names}) for metric in main_metrics(results)]
    figure, axes = new_figure(width=7.2, height=0.9 + 0.5 * len(rows))
    for place, (_, series, levels) in enumerate(rows):
        for offset, name in enumerate(names):
            value, low, high = (100 * v for v in series[name])
            y = place + 0.16 * (2 * offset - len(names) + 1)
            label = NAMES[name] if place == 0 else None
            axes.errorbar(
                [value], [y], xerr=[[max(value - low, 0)], [max(high - value, 0)]], fmt="o", markersize=5,
                color=COLORS[name], linewidth=1.8, label=label,
            )  # fmt: skip
        for style, (level, share) in zip((":", "--"), levels.items(), strict=False):
            text = level.capitalize() if place == 0 else None
            axes.vlines(100 * share, place - 0.34, place + 0.34, colors=MUTED, linestyles=style, label=text)
    axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel(f"Score in percent with {percent_text(results['confidence'], digits=0)} interval")
    axes.legend(frameon=False, fontsize=9, loc="best")
    return to_png(figure)


def _curve(key: str, history: list[dict[str, Any]]) -> bytes:
    figure, axes = new_figure()
    for name, color in COLORS.items():
        points = [(p["samples"], p[key]) for p in history if p["model"] == name and key in p]
        if points:
            xs, ys = zip(*points, strict=True)
            axes.plot(xs, ys, color=color, marker="o", markersize=3, linewidth=1.6, label=NAMES[name])
    axes.set_xlabel("Samples seen")
    axes.set_ylabel(key.removeprefix("validation/"))
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9)
    return to_png(figure)


def _confusion(field: str, task: dict[str, Any]) -> bytes:
    counts = np.array(task["models"][STUDENT]["confusion"], dtype=np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 2.6 + 0.36 * len(shares)
    figure, axes = new_figure(width=size + 0.8, height=size)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        if share > 0:
            color = "white" if share > 0.55 else INK
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(len(shares)), task["classes"], rotation=45, ha="right")
    axes.set_yticks(range(len(shares)), task["classes"])
    axes.set_xlabel("Predicted")
    axes.set_ylabel("True")
    axes.set_title(f"Student, zero-shot {field}: percent of the true class", fontsize=10, color=INK)
    return to_png(figure)
