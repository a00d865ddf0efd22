"""The command line as a program: start, completion, suggestions, options of several words, JSON, quiet."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from mobileclip.__main__ import main
from mobileclip.cli.app import cli
from mobileclip.cli.options import Words
from mobileclip.cli.registry import COMMANDS, GROUPS, ROWS

ROOT = Path(__file__).parents[2]


def _python(script: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True,
        env={**os.environ, **environment},
    )  # fmt: skip
    return done.stdout


def test_the_overview_loads_nothing_but_the_table_of_commands():
    """Its time depends on the machine; what it imports does not."""
    heavy = {"click", "rich", "pydantic", "yaml", "tqdm", "multiprocessing", "numpy", "logging"}
    script = "import sys; from mobileclip.__main__ import main; main([]); main(['--version']); print(*sys.modules)"
    assert not heavy & set(_python(script).splitlines()[-1].split())


def test_a_command_loads_its_own_module_alone():
    script = "import sys; from mobileclip.__main__ import main; main(['history', '--help']); print(*sys.modules)"
    loaded = set(_python(script).splitlines()[-1].split())
    others = {row.target.split(":")[0] for row in COMMANDS if row.target} - {"versions", "app"}
    assert not {f"mobileclip.cli.{name}" for name in others} & loaded


@pytest.mark.parametrize("row", COMMANDS, ids=lambda row: row.name)
def test_every_row_is_a_command_with_help_in_a_known_group(row):
    assert row.group in GROUPS
    command = cli.get_command(click.Context(cli), row.name)
    assert command.name == row.name
    assert command.help[0].isupper()
    assert all(p.help for p in command.params if isinstance(p, click.Option))
    assert len(ROWS) == len(COMMANDS)


def _completed(line: str) -> list[str]:
    script = "from mobileclip.__main__ import main; main()"
    told = _python(script, _MOBILECLIP_COMPLETE="bash_complete", COMP_WORDS=line, COMP_CWORD=str(line.count(" ")))
    return [entry.partition(",")[2] for entry in told.splitlines()]


def test_a_shell_completes_commands_options_choices_and_keys_of_a_section():
    assert _completed("mobileclip di") == ["distill"]
    assert _completed("mobileclip run --s") == ["--source"]
    assert _completed("mobileclip run --to pr") == ["prepare", "promote"]
    assert _completed("mobileclip distill --config.training.st") == ["--config.training.steps"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell(shell, capsys):
    assert main(["completion", shell]) == 0
    assert "_MOBILECLIP_COMPLETE" in capsys.readouterr().out


def test_an_option_that_is_almost_right(capsys):
    assert main(["history", "--jsn", "x"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: No such option '--jsn'. Did you mean '--json'?"


def test_options_take_several_words_or_are_repeated():
    seen = {}

    @click.command(cls=Words)
    @click.argument("names", nargs=-1)
    @click.option("--formats", multiple=True, default=["onnx"])
    @click.option("--threads", multiple=True, type=int)
    @click.option("--out", default="")
    def work(**given):
        seen.update(given)

    for line in (
        "a b --formats x y --threads 1 2 --out o",
        "a b --formats x --formats y --threads 1 --threads 2 --out o",
    ):
        work.main(line.split(), standalone_mode=False)
        assert seen == {"names": ("a", "b"), "formats": ("x", "y"), "threads": (1, 2), "out": "o"}
    work.main(["--out", "o", "a"], standalone_mode=False)
    assert seen == {"names": ("a",), "formats": ("onnx",), "threads": (), "out": "o"}


def test_models_and_plan_as_json(capsys):
    assert main(["plan", "--samples", "1000000", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert main(["models", "--json"]) == 0
    rows = {row["model"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["MobileCLIP2-S0"]["size"] == 256


def test_quiet_leaves_results_and_warnings(capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    (tmp_path / "p.yaml").write_text("filter: {min_score: 0.5}")
    level = logging.getLogger().level
    try:
        assert main(["params", str(tmp_path / "p.yaml"), "--short", "--quiet"]) == 0
        assert logging.getLogger().level == logging.WARNING
    finally:
        logging.getLogger().setLevel(level)
        os.environ.pop("TQDM_DISABLE", None)
    said = capsys.readouterr()
    assert said.err == ""
    assert "min_score: 0.5" in said.out
