"""Rows as rich tables for the terminal."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

_SHORT = 25  # a time stamp stays in one line
_DIGEST = re.compile(r"[0-9a-f]{32,64}")

Rows = Sequence[Mapping[str, Any]]


def render(rows: Rows, *, title: str = "") -> Table:
    """One column per key of the first row; booleans as yes or no, digests shortened."""
    table = Table(title=title or None)
    names = list(rows[0]) if rows else []
    for name in names:
        short = all(len(_cell(row.get(name, ""))) <= _SHORT for row in rows)
        table.add_column(name, overflow="fold", no_wrap=short)
    for row in rows:
        table.add_row(*[_cell(row.get(name, "")) for name in names])
    return table


def render_all(parts: Mapping[str, Rows]) -> Group:
    """Several tables, each under its name; empty ones are left out."""
    return Group(*[render(rows, title=name) for name, rows in parts.items() if rows])


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "[green]yes[/green]" if value else "[red]no[/red]"
    text = str(value)
    return escape(text[:12] if _DIGEST.fullmatch(text) else text)
