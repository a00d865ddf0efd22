"""Tables fit the terminal: nothing is cut off at any width, and piped output is as wide as it needs."""

from collections import Counter

import pytest
from rich.table import Table

from mobileclip.cli import tables

ROWS = [
    {
        "time": "2026-01-02 03:04:05", "version": "12", "action": "promoted", "by": "someone@example.org",
        "why": "the retrieval score rose by two points on the held-out images", "digest": "a" * 64,
    },
    {
        "time": "2026-02-02 03:04:05", "version": "13", "action": "refused", "by": "another@example.org",
        "why": "float16 text program over its budget", "digest": "b" * 64,
    },
]  # fmt: skip


def _letters(text: str) -> Counter[str]:
    return Counter(character for character in text if character.isalnum())


@pytest.mark.parametrize("width", [200, 120, 100, 80, 60, 40])
def test_nothing_is_cut_off_at_any_width(width):
    text = tables.text(tables.render(ROWS, title="history"), width=width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in text
    shown = [value[:12] if name == "digest" else value for row in ROWS for name, value in row.items()]
    assert _letters("".join(["history", *ROWS[0], *shown])) <= _letters(text)


def test_a_narrow_terminal_shows_a_wide_table_row_by_row():
    table = Table("model", *[f"column {index}" for index in range(12)], box=None)
    table.add_row("MobileCLIP-S0", *[f"value-{index}" for index in range(11)], "")
    lines = [line.rstrip() for line in tables.text(table, width=80).splitlines() if line.strip()]
    assert lines[0] == "model      MobileCLIP-S0"
    assert lines[11] == "column 10  value-10"
    assert len(lines) == 12  # the empty cell is left out


def test_a_table_that_fits_stays_one_line_a_row():
    text = tables.text(tables.render([{"a": "x y z", "b": True}]), width=80)
    assert "x y z" in text
    assert "yes" in text


def test_piped_output_is_as_wide_as_the_table(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    table = Table("name", "text", box=None)
    table.add_row("x", "word " * 60)
    tables.show(table)
    assert len(capsys.readouterr().out.splitlines()) == 2
