"""SIGTERM, Ctrl-C and kills of real runs: all processes end, what is committed stays, the MLflow run says KILLED."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mobileclip.config import Params, Reinforce, TeacherRef, Views
from mobileclip.config.params_file import render

ROOT = Path(__file__).parents[1]
_PATIENCE_SECONDS = 180
_END_SECONDS = 10


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start a Python program in a folder of its own, as the leader of its process group."""
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "MOBILECLIP_")):
            monkeypatch.delenv(name)
    started: list[subprocess.Popen[str]] = []

    def begin(*command: str, **variables: str) -> "subprocess.Popen[str]":
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
        process = subprocess.Popen(
            [sys.executable, *command], cwd=tmp_path, env=environment, start_new_session=True, text=True,
            stdout=subprocess.PIPE, stderr=(tmp_path / "errors").open("w"),
        )  # fmt: skip
        started.append(process)
        return process

    yield begin
    for process in started:
        for pid in [process.pid, *_descendants(process.pid)]:
            if _lives(pid):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def _descendants(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    children = [int(child) for child in path.read_text().split()] if path.exists() else []
    return [found for child in children for found in (child, *_descendants(child))]


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _until(condition, seconds: float = _PATIENCE_SECONDS) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return bool(condition())


@pytest.fixture
def reinforcing(start, tiny_data, tiny_teachers, tmp_path):
    """A run of `mobileclip reinforce` that would take an hour, in two worker processes that compute."""

    def begin(**variables: str) -> tuple["subprocess.Popen[str]", list[int]]:
        section = Reinforce(
            views=Views(num_views=100_000), teachers=[TeacherRef(name="first", model="trained:first")], captions=[],
            batch_size=16,
        )  # fmt: skip
        (tmp_path / "params.yaml").write_text(render(Params(reinforce=section)))
        process = start(
            "-m", "mobileclip", "reinforce", "--out", "out", "--data", tiny_data, "--teachers", tiny_teachers,
            MOBILECLIP_PROCESSES="2", MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING="false", **variables,
        )  # fmt: skip
        assert _until(lambda: len(_descendants(process.pid)) == 2 or process.poll() is not None)
        assert process.poll() is None, (tmp_path / "errors").read_text()
        return process, _descendants(process.pid)

    return begin


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_tracked_run_ends_with_its_workers_and_is_marked_killed(reinforcing, tmp_path, number):
    process, workers = reinforcing()
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)  # as a terminal does
    assert process.wait(_END_SECONDS) == 128 + number
    assert not [pid for pid in workers if _lives(pid)]
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert database.execute("SELECT name, status FROM runs").fetchall() == [("reinforce", "KILLED")]
    assert "Traceback" not in (tmp_path / "errors").read_text()


def test_an_untracked_run_leaves_no_orphans(reinforcing):
    process, workers = reinforcing(MOBILECLIP_TRACKING="off")
    process.send_signal(signal.SIGTERM)
    assert process.wait(_END_SECONDS) == 128 + signal.SIGTERM
    assert not [pid for pid in workers if _lives(pid)]


def test_workers_end_with_a_parent_that_is_killed(reinforcing):
    process, workers = reinforcing(MOBILECLIP_TRACKING="off")
    process.kill()
    process.wait()
    assert _until(lambda: not [pid for pid in workers if _lives(pid)], _END_SECONDS)


STUCK = """
import os, sys, time
from mobileclip import parallel, stopping
stopping.GRACE_SECONDS = 0.5

def work(part, parts):
    print(os.getpid(), flush=True)
    while True:
        time.sleep(1)

with stopping.terminable(), stopping.last_words(lambda: open("last", "w").write("words")):
    try:
        os.environ["MOBILECLIP_PROCESSES"] = "2"
        parallel.run_forked(work, 2)
    finally:
        while True:
            try:
                time.sleep(1)
            except BaseException:  # as a library does that swallows all
                pass
"""


def test_a_process_that_does_not_unwind_is_ended_after_its_last_words(start, tmp_path):
    process = start("-c", STUCK)
    workers = [int(process.stdout.readline()) for _ in range(2)]
    process.send_signal(signal.SIGTERM)
    assert process.wait(_END_SECONDS) == 128 + signal.SIGTERM
    assert (tmp_path / "last").read_text() == "words"
    assert _until(lambda: not [pid for pid in workers if _lives(pid)], _END_SECONDS)


PASSED_ON = """
import subprocess, sys
from mobileclip import stopping
child = "import os, time; print(os.getpid(), flush=True); time.sleep(1000)"
work = {"waits": subprocess.check_call, "runs": stopping.run_program}[sys.argv[1]]
with stopping.terminable(pass_on=sys.argv[1] == "waits"):
    work([sys.executable, "-c", child])
"""


@pytest.mark.parametrize("how", ["waits", "runs"])
def test_a_program_that_is_run_is_told_to_end(start, how):
    process = start("-c", PASSED_ON, how)
    child = int(process.stdout.readline())
    process.send_signal(signal.SIGTERM)
    assert process.wait(_END_SECONDS) == 128 + signal.SIGTERM
    assert not _lives(child)
