"""Tables for the terminal: as wide as they are where the output goes elsewhere, never wider than a terminal."""

import io
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from mobileclip.config import Section

_DIGEST = re.compile(r"[0-9a-f]{32,64}")
_WIDE = 1000
_READABLE = 18
"""Narrowest that a folded column gets; where that does not suffice, a table is shown row by row."""
_FOLDED = 3

Rows = Sequence[Mapping[str, Any]]


def render(rows: Rows, *, title: str = "") -> Table:
    """One column per key of the first row; booleans as yes or no, digests shortened."""
    names = list(rows[0]) if rows else []
    table = Table(*names, title=title or None)
    for row in rows:
        table.add_row(*[_cell(row.get(name, "")) for name in names])
    return table


def keys(section: Section) -> Table:
    """Every key of a section with type, value and meaning."""
    from mobileclip.config.params_file import describe

    table = Table("key", "type", "value", "meaning", box=None, pad_edge=False)
    for row in describe(section):
        table.add_row(*(escape(cell) for cell in row))
    return table


def metrics(name: str, values: Mapping[str, float]) -> Table:
    """A stage's numbers."""
    table = Table(name, "", box=None)
    for key, value in values.items():
        table.add_row(key, f"{value:.6g}")
    return table


def show(*parts: RenderableType) -> None:
    """Print tables, each fitted to the terminal; piped, each is as wide as it needs."""
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=_WIDE)
    for part in parts:
        console.print(fit(part, console))


def text(*parts: RenderableType, width: int | None = None) -> str:
    """Tables as text, fitted to a width [characters]; default: the terminal's."""
    out = io.StringIO()
    console = Console(file=out, width=width or max(Console().width, 80))
    for part in parts:
        console.print(fit(part, console))
    return out.getvalue()


def fit(part: RenderableType, console: Console) -> RenderableType:
    """A table that no column of which is cut off or squeezed to nothing.

    As it is where it fits; else with its widest columns folded; else row by row, one line per cell. Anything else is
    returned as it came.
    """
    if isinstance(part, Group):
        return Group(*(fit(each, console) for each in part.renderables))
    if not isinstance(part, Table):
        return part
    wide = console.options.update(width=_WIDE, max_width=_WIDE)
    natural = Measurement.get(console, wide, part).maximum
    for column in part.columns:
        column.no_wrap = True
    if natural <= console.width:
        return part
    widths = [_width(console, [column.header, *column.cells]) for column in part.columns]
    widest = sorted(range(len(widths)), key=lambda index: -widths[index])
    for count in range(1, _FOLDED + 1):
        chosen = widest[:count]
        least = natural - sum(max(0, widths[index] - _READABLE) for index in chosen)
        if least <= console.width:
            for column in (part.columns[index] for index in chosen):
                column.no_wrap, column.overflow, column.min_width = False, "fold", _READABLE
            return part
    return _row_by_row(part)


def _row_by_row(table: Table) -> RenderableType:
    """Each row as lines `column  value`; empty cells are left out."""
    names = [str(column.header) for column in table.columns]
    cells = [list(column.cells) for column in table.columns]
    blocks: list[RenderableType] = [Text(str(table.title), style="italic")] if table.title else []
    for row in zip(*cells, strict=True):
        block = Table.grid(padding=(0, 2))
        block.add_column(no_wrap=True, style="bold")
        block.add_column(overflow="fold")
        for name, cell in zip(names, row, strict=True):
            if str(cell):
                block.add_row(name, cell)
        blocks += [block, ""]
    return Group(*blocks, *([Text(str(table.caption))] if table.caption else []))


def _width(console: Console, cells: Sequence[RenderableType]) -> int:
    options = console.options.update(width=_WIDE, max_width=_WIDE)
    return max(Measurement.get(console, options, cell).maximum for cell in cells)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "[green]yes[/green]" if value else "[red]no[/red]"
    written = str(value)
    return escape(written[:12] if _DIGEST.fullmatch(written) else written)
