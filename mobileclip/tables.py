"""Rows as rich tables for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table

Rows = Sequence[Mapping[str, Any]]


def render(rows: Rows, *, title: str = "") -> Table:
    """One column per key of the first row; `passed` as yes or no."""
    table = Table(title=title or None)
    names = list(rows[0]) if rows else []
    for name in names:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*[_cell(row.get(name, "")) for name in names])
    return table


def render_all(parts: Mapping[str, Rows]) -> Group:
    """Several tables, each under its name; empty ones are left out."""
    return Group(*[render(rows, title=name) for name, rows in parts.items() if rows])


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "[green]yes[/green]" if value else "[red]no[/red]"
    return str(value).replace("[", "\\[")
