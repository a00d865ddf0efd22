"""Words and numbers of the report: names of models and metrics, values with their units."""

from typing import Any

from mobileclip.evaluation.scores import CONTROL, STUDENT
from mobileclip.reports.charts import percent_text

NAMES = {STUDENT: "Student", CONTROL: "Plain-CLIP control"}
SHORT_NAMES = {STUDENT: "Student", CONTROL: "Control"}

_MINUS = "−"
SIDES = {"i2t": "image to text", "t2i": "text to image", "mean": "mean of both directions"}
_MEASURES = {
    "median_rank": "Median rank (lower is better)",
    "top1": "Top-1 accuracy",
    "top5": "Top-5 accuracy",
    "mean_per_class": "Mean per class",
    "worst_class": "Worst class",
    "worst_slice": "Worst slice",
    "ece": "Calibration error (lower is better)",
    "accuracy": "Right caption before wrong ones",
}
_KINDS = {
    "zero_shot": "Zero-shot",
    "linear_probe": "Linear probe",
    "knn": "Nearest neighbors",
    "composition": "Composition",
}


def metric_label(metric: str) -> tuple[str, str]:
    """Task and measure of a metric name in words: `retrieval/i2t/r1` is `Retrieval, image to text`, `Recall at 1`."""
    kind, task, measure = metric.split("/", maxsplit=2)
    if kind == "robustness":
        title = "all corruptions" if task == "mean" else task.replace("_", " ")
        return f"Corrupted pictures, {title}", "Mean" if task == "mean" else f"Headline, severity {measure[1:]}"
    if kind == "resolution":
        return "Other input sizes", f"Headline at {task} pixels"
    if kind == "retrieval":
        name = f"Recall at {measure[1:]}" if measure[1:].isdigit() else _MEASURES[measure]
        return f"Retrieval, {SIDES[task]}", name
    return f"{_KINDS[kind]}, {task}", _MEASURES[measure]


def is_rank(metric: str) -> bool:
    """Whether the metric counts places instead of shares."""
    return metric.endswith("median_rank")


def value_text(metric: str, value: float | None) -> str:
    """A value with its unit."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if is_rank(metric) else percent_text(value)


def range_text(metric: str, row: dict[str, Any]) -> str:
    """An interval of a value."""
    low, high = value_text(metric, row["low"]), value_text(metric, row["high"])
    return f"{low.removesuffix('%')} to {high}"


def delta_text(metric: str, value: float) -> str:
    """A signed difference: percentage points without a unit, or places."""
    text = f"{value:+,.0f}" if is_rank(metric) else f"{100 * value:+.1f}"
    return text.replace("-", _MINUS) if float(text.replace(",", "")) else text[1:]


def delta_range_text(metric: str, row: dict[str, Any]) -> str:
    """An interval of a difference."""
    return f"{delta_text(metric, row['low'])} to {delta_text(metric, row['high'])}"
