"""The suite for the terminal: what there is, what came of it, and what the average is worth."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

from mobileclip.evaluation.suite.tasks import CLASSES_FILE, TEMPLATES_FILE, Registry


def listing(tasks: Registry) -> Table:
    """Every task with its metric, its size, and where its data, class names and prompts come from."""
    table = Table("task", "main metric", "samples", "classes", "names and prompts", "source", box=box.SIMPLE_HEAD)
    for task in tasks.tasks:
        classes = names = "–"
        if task.kind == "classification":
            classes = str(task.classes or "any")
            names = "files of the folder" if task.layout == "webdataset" else task.layout
            names += f", {len(task.templates)} prompts in the registry" if task.templates else ""
        metric = task.main_metric if task.average else f"{task.main_metric or 'none'} (apart)"
        table.add_row(task.key, metric, f"{task.samples or 'any'}", classes, names, task.source or task.folder)
    table.caption = f"Files of the folder: {CLASSES_FILE} and {TEMPLATES_FILE}."
    return table


def render(summary: Mapping[str, Any]) -> Table:
    """Scores with intervals, then what is absent."""
    table = Table("task", "metric", "score", "interval", "samples", "", box=box.SIMPLE_HEAD)
    for row in summary["tasks"]:
        missing = row["value"] is None
        score, span = ("–", "–") if missing else (_percent(row["value"]), _span(row))
        note = "" if row["complete"] else "incomplete"
        table.add_row(row["key"], row["metric"], score, span, f"{row['samples']:,}", note)
    for row in summary["absent"]:
        table.add_row(row["key"], "", "", "", "", "absent")
    return table


def sentence(summary: Mapping[str, Any]) -> str:
    """The average in words, with what speaks against comparing it."""
    found, absent = summary["average"], len(summary["absent"])
    if found["value"] is None:
        return f"No task of the average could be scored; {absent} have no data."
    text = f"Average of {found['tasks']} tasks: {_percent(found['value'])} ({_span(found)})."
    if found["comparable"]:
        return (
            f"{text} These are all tasks of the suite, whole: the number compares with published ones. "
            "Images are read upright and on white, where open_clip leaves EXIF and transparency alone."
        )
    return f"{text} It does not compare with published averages: tasks are absent ({absent}), partial or other ones."


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _span(row: Mapping[str, Any]) -> str:
    return "–" if row["low"] is None else f"{_percent(row['low'])} to {_percent(row['high'])}"
