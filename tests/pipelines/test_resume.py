"""A local pipeline run that is killed in the middle of its fan-out goes on where it was."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from mobileclip import manifest
from mobileclip.models import zoo
from mobileclip.models.replay import verify
from pipelines.run import ARTIFACTS
from tests.tiny_chain import params, write_params

ROOT = Path(__file__).parents[2]
GROUPS = 3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture
def command(tiny_source, tiny_teachers, tmp_path):
    """The command line of a run with models by name."""
    captioner = tmp_path / "captioner"
    zoo.save(str(captioner), zoo.create("tiny-coca"), license="MIT", card={})
    values = params()
    values["caption"]["model"] = f"local-dir:{captioner}"
    values["reinforce"]["teachers"] = [
        {"name": "first", "model": f"local-dir:{tiny_teachers}/first", "pretrained": "", "license": ""}
    ]
    file = write_params(tmp_path / "params.yaml", values)
    place = ["--root", str(tmp_path / "root"), "--source", str(tiny_source), "--groups", str(GROUPS)]
    return [sys.executable, "-m", "pipelines.run", "reinforce", "--local", "--params", str(file), *place]


@contextmanager
def started(command, log):
    """The running command, in a process group of its own that does not outlive the test."""
    environment = {**os.environ, "MOBILECLIP_TRACKING": "off", "MOBILECLIP_PROCESSES": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def executed(log):
    """Names of the tasks that a run started."""
    return re.findall(r"Executing task '(\S+)'", re.sub(r"\x1b\[[0-9;]*m", "", log.read_text()))


def finished(root):
    """Groups of reinforce that the runner's cache holds as done."""
    found = set()
    for entry in (root / ARTIFACTS / ".kfp_cache").glob("*.json"):
        part = json.loads(entry.read_text()).get("part")
        if part and "reinforce-group" in part["uri"]:
            found.add(part["metadata"]["group"])
    return found


def column_files(root):
    return {path: path.stat().st_mtime_ns for path in (root / "reinforce").rglob("*.safetensors")}


def test_only_unfinished_groups_run_after_a_kill(command, tmp_path):
    root, logs = tmp_path / "root", [tmp_path / "first.log", tmp_path / "second.log"]
    with started(command, logs[0]) as process:
        while not finished(root):
            assert process.poll() is None, logs[0].read_text()[-4000:]
            time.sleep(0.02)
    done, written = finished(root), column_files(root)
    assert 1 <= len(done) < GROUPS
    assert not (root / "reinforce" / "record.json").exists()

    with started(command, logs[1]) as process:
        assert process.wait() == 0, logs[1].read_text()[-6000:]
    again = executed(logs[1])
    assert again.count("reinforce-group") == GROUPS - len(done)
    assert not {"prepare", "caption", "caption-group"} & set(again)
    after = column_files(root)
    assert {path: after[path] for path in written} == written
    content = manifest.read(str(root / "reinforce"))
    assert content.teachers() == ["first"]
    verify(str(root / "reinforce"), samples=2)
