"""A missing extra is told with the line that installs it."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mobileclip.cli.install_hint import install_line

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("module", "extra"),
    [("torch", "train"), ("open_clip.model", "train"), ("onnxruntime", "export"), ("mlflow", "tracking")],
)
def test_names_the_extra_that_has_it(module, extra):
    assert install_line(module) == f"pip install 'mobileclip-pipelines[{extra}]'"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(item.replace("_torch", "").startswith(module.split(".")[0]) for item in extras[extra])


def test_what_no_extra_has_is_not_guessed():
    assert install_line("antigravity2") == ""
    assert install_line("") == ""


def test_a_command_without_its_extra_ends_in_one_sentence():
    script = "import sys; sys.modules['torch'] = None; from mobileclip.__main__ import main; sys.exit(main(['models']))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    sentence = "error: 'torch' is not installed, models needs it: pip install 'mobileclip-pipelines[train]'.\n"
    assert (done.returncode, done.stderr) == (1, sentence)
