"""The result table for the terminal: student against control, with intervals, chance and majority beside each score."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

_SHOWN = {
    "retrieval/i2t/r1": "image → text R@1",
    "retrieval/i2t/r10": "image → text R@10",
    "retrieval/t2i/r1": "text → image R@1",
    "retrieval/t2i/r10": "text → image R@10",
}


def result_table(results: Mapping[str, Any]) -> Table:
    """`results.json` of evaluate as a table; shares in percent.

    Args:
        results: With `scopes`, each a name, a value and a table of metrics.
    """
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        title=f"split '{results['split']}', {results['samples']} pictures, {results['confidence']:.0%} intervals",
    )
    shares = {"slice", "metric", "verdict"}
    for name in ("slice", "metric", "student", "plain CLIP", "difference", "verdict", "chance", "majority"):
        table.add_column(name, justify="left" if name in shares else "right", no_wrap=True)
    for scope in results["scopes"]:
        label = f"{results['slice_field']}={scope['value']}" if scope["name"] else "all"
        for metric, row in scope["metrics"].items():
            name = _SHOWN.get(metric) or (f"{metric.split('/')[1]} top-1" if metric.endswith("/top1") else "")
            if name:
                table.add_row(label, name, *_cells(row))
                label = ""
        table.add_section()
    return table


def _cells(row: Mapping[str, Any]) -> list[str]:
    delta = row.get("delta", {})
    return [
        _interval(row.get("student")),
        _interval(row.get("control")),
        _interval(delta, sign="+") if delta else "",
        str(delta.get("verdict", "")),
        _percent(row.get("chance")),
        _percent(row.get("majority")),
    ]


def _interval(cell: Mapping[str, Any] | None, *, sign: str = "") -> str:
    if not cell:
        return ""
    return f"{100 * cell['value']:{sign}.1f} [{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
