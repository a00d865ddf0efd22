"""What a run says where there is no terminal: a pod's log tells how far it is."""

import os
import subprocess
import sys
from pathlib import Path

from mobileclip.config import Params
from mobileclip.config.params_file import render

ROOT = Path(__file__).parents[2]


def _stderr(folder: Path, *command: str) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MOBILECLIP_TRACKING": "off"}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return done.stderr.splitlines()


def test_our_lines_are_logged_and_those_of_the_root_logger_are_not(tmp_path):
    program = (
        "import logging\n"
        "from mobileclip.__main__ import main\n"
        "main(['completion', 'bash'])\n"
        "logging.info('noise')\n"
        "logging.warning('a warning')\n"
        "for name in ('mobileclip.training.loop', 'mlflow.x'):\n"
        "    logging.getLogger(name).info('said by %s', name)\n"
    )
    assert _stderr(tmp_path, "-c", program) == ["WARNING a warning", "INFO said by mobileclip.training.loop"]


def test_a_stage_says_which_it_is_and_reports_its_shards(tmp_path, tiny_source):
    (tmp_path / "params.yaml").write_text(render(Params()))
    lines = _stderr(tmp_path, "-m", "mobileclip", "prepare", "--out", "out", "--source", str(tiny_source))
    assert lines[0] == "INFO stage 1 of 11: prepare"
