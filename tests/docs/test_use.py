"""Every Python block of docs/use.md and of the bundle's page runs, in the order of the page."""

import re
import shlex
from pathlib import Path

import click
import numpy as np
import pytest

from mobileclip.cli.registry import ROWS
from tests.exports import exported
from tests.search.photos import fill

ROOT = Path(__file__).parents[2]


@pytest.fixture
def given(tmp_path):
    fill(tmp_path)
    found = exported()
    names = {"bundle": found.bundle, "student": found.checkpoint, "folder": tmp_path}
    return {**names, "photo": tmp_path / "00.png", "another": tmp_path / "Ferien" / "Zürich ö.jpg"}


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)


def test_the_page_runs(given, capsys):
    code = blocks("use.md")
    assert len(code) == 4
    for block in code:
        exec(compile(block, "docs/use.md", "exec"), given)
    assert capsys.readouterr().out == "image: no file 'nothing.jpg'.\n"
    assert given["images"].shape == given["texts"].shape == (2, exported().clip.embed_dim)
    np.testing.assert_allclose(given["shares"].sum(1), 1, atol=1e-5)
    assert given["done"].embedded == 9
    assert given["best"].is_file()


def test_the_page_of_the_bundle_runs(given):
    (block,) = blocks("bundle.md")
    exec(compile(block.replace('"mobileclip-STUDENT-1.2.0.zip"', "bundle"), "docs/bundle.md", "exec"), given)
    assert given["scores"].shape == (1, 2)


@pytest.mark.parametrize("page", ["use.md"])
def test_commands_are_those_of_the_command_line(page):
    """Every command of the page parses: names, options and how many words they take."""
    from importlib import import_module

    lines = re.findall(r"^    mobileclip (.+)$", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) == 7
    for line in lines:
        name, *words = shlex.split(line, comments=True)
        module, _, attribute = ROWS[name].target.partition(":")
        command: click.Command = getattr(import_module(f"mobileclip.cli.{module}"), attribute)
        command.make_context(name, words)
