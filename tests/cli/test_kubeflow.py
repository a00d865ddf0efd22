"""`mobileclip kubeflow`: the pipelines' commands behind the one command line, and what a wheel brings for them."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mobileclip.__main__ import main

ROOT = Path(__file__).parents[2]


def test_its_words_are_the_pipelines_own(capsys):
    assert main(["kubeflow", "sizes", "--groups", "0"]) == 2
    assert "groups: got 0" in capsys.readouterr().err
    assert main(["kubeflow", "--help"]) == 0
    assert "submit" in capsys.readouterr().out


def test_an_unknown_work_is_refused(capsys):
    assert main(["kubeflow", "submt"]) == 2
    assert "'submt' is not one of 'submit'" in capsys.readouterr().err


def test_the_wheel_holds_the_pipelines_and_their_sections():
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["mobileclip", "components", "pipelines"]
    assert wheel["force-include"] == {"params.yaml": "pipelines/params.yaml"}


@pytest.mark.parametrize("whose", ["ours", "both"])
def test_two_distributions_in_one_folder_are_told(tmp_path, whose):
    """Apple's package has the same import name: its modules lie beside ours where both are installed."""
    package = tmp_path / "mobileclip"
    package.mkdir()
    (package / "__init__.py").write_text((ROOT / "mobileclip" / "__init__.py").read_text())
    if whose == "both":
        (package / "modules").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", "import mobileclip"], cwd=tmp_path, env={"PATH": ""}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, "two distributions share this folder" in done.stderr) == (
        int(whose == "both"),
        whose == "both",
    )
