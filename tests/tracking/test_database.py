"""MLflow's SQLite file under kills and many first users at once: real processes, killed at counted SQL statements."""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from mobileclip.errors import ConfigError
from mobileclip.tracking import runs as tracking
from tests import mlflow_server

ROOT = Path(__file__).parents[2]

# Forks after the imports, which cost far more than the work.
PROGRAM = """
import json, os, signal, sys, traceback
import mlflow.store.tracking.sqlalchemy_store  # what the first use of a database imports
from sqlalchemy import event
from sqlalchemy.engine import Engine
from mobileclip.tracking import runs as tracking
from mobileclip.promotion import log, registry

tracking.load_mlflow()

def start(folder, work, *, kill_at=0, gate=None):
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.makedirs(folder, exist_ok=True)
        os.chdir(folder)
        count = [0]
        def before(*_):
            count[0] += 1
            if count[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
        event.listen(Engine, "before_cursor_execute", before)
        if gate is not None:
            os.close(gate[1])
            os.read(gate[0], 1)  # returns for all at once when the parent closes its end
        work()
        with open("statements", "w") as file:
            file.write(str(count[0]))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)

def end(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def together(folder, work, many):
    gate = os.pipe()
    pids = [start(folder, work, gate=gate) for _ in range(many)]
    os.close(gate[1])
    return [end(pid) for pid in pids]

def stage():
    with tracking.stage_run("distill", {"a": 1}, {}) as tracker:
        tracker.log_metrics({"loss": 1.0})

def promotion():
    model = registry.connect("student")
    model.ensure()
    base = log.read(model)
    log.append(model, base, {"kind": log.PROMOTED, "version": model.create("s3://bucket/student", {})})
    log.settle(model)

def kills(number):
    assert end(start("whole", stage)) == 0
    statements = int(open("whole/statements").read())
    answers = []
    for index in range(number):
        at = 1 + index * (statements - 1) // (number - 1)
        killed = end(start(f"kill-{at}", stage, kill_at=at))
        answers.append([killed, end(start(f"kill-{at}", stage))])
    return answers

print(json.dumps(eval(sys.argv[1])))
"""


@pytest.fixture(autouse=True)
def _clean(monkeypatch, tmp_path):
    mlflow_server.forget_settings(monkeypatch)
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    monkeypatch.chdir(tmp_path)


def _ask(question: str) -> list[object]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, question], stdout=subprocess.PIPE, env=environment, check=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("number", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_a_kill_at_any_statement_leaves_a_folder_that_the_next_run_uses(number, tmp_path):
    assert _ask(f"kills({number})") == [[-9, 0]] * number
    for folder in tmp_path.glob("kill-*"):
        with sqlite3.connect(folder / "mlflow.db") as database:
            assert ("FINISHED",) in database.execute("SELECT status FROM runs").fetchall()
        assert {path.name for path in folder.iterdir()} == {"mlflow.db", "mlflow.db.lock", "statements"}


def test_processes_that_start_at_once_in_a_new_folder_share_one_database(tmp_path):
    assert _ask("together('new', stage, 4)") == [0] * 4
    with sqlite3.connect(tmp_path / "new" / "mlflow.db") as database:
        assert database.execute("SELECT name, status FROM runs").fetchall() == [("distill", "FINISHED")] * 4
        assert database.execute("SELECT count(*) FROM experiments").fetchone() == (2,)


def test_eight_first_promotions_at_once_all_reach_the_log(tmp_path, monkeypatch):
    assert _ask("together('new', promotion, 8)") == [0] * 8
    monkeypatch.chdir(tmp_path / "new")
    from mobileclip.promotion import log, registry

    found = log.read(registry.connect("student"))
    assert found.problems == []
    assert len(found.entries) == 8
    assert found.champion == registry.connect("student").alias("champion") != 0


class TestGivenFile:
    def test_a_half_made_one_is_named_with_what_to_do(self, tmp_path):
        with sqlite3.connect(tmp_path / "mlflow.db") as database:
            database.execute("CREATE TABLE experiments (experiment_id INTEGER)")
        before = (tmp_path / "mlflow.db").read_bytes()
        with pytest.raises(ConfigError, match=r"^tracking: '.*/mlflow\.db' is half-made .*, want it deleted; then run"):
            tracking.connect()
        assert (tmp_path / "mlflow.db").read_bytes() == before

    def test_another_file_is_named_and_left_alone(self, tmp_path):
        (tmp_path / "mlflow.db").write_text("my notes, " * 100)
        with pytest.raises(ConfigError, match=r"^tracking: '.*/mlflow\.db' is damaged or no SQLite database .*move it"):
            tracking.connect()
        assert (tmp_path / "mlflow.db").read_text() == "my notes, " * 100

    def test_an_empty_one_is_replaced(self, tmp_path):
        (tmp_path / "mlflow.db").touch()
        with tracking.stage_run("distill", {"a": 1}, {}) as tracker:
            tracker.log_metrics({"loss": 1.0})
        assert tracking.connect().get_run(tracker.run_id).info.status == "FINISHED"
