"""An exporter in an environment of its own: made once, found again, spoken to by files."""

import json
import os
import sys

import pytest

from mobileclip.errors import ConfigError, ExportError
from mobileclip.formats import environment

ECHO = """
import json, os, sys
from pathlib import Path
folder = Path(sys.argv[1])
request = json.loads((folder / "request.json").read_text())
if request.get("fail"):
    raise ValueError("no such operation")
reply = {"asked": request, "path": sys.path, "secret": os.environ.get("AWS_SECRET_ACCESS_KEY", "")}
(folder / "reply.json").write_text(json.dumps(reply))
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An environment that holds nothing but the interpreter."""
    monkeypatch.setenv("MOBILECLIP_ENVIRONMENTS", str(tmp_path))
    folder = environment.folder("litert")
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    return folder


@pytest.fixture
def worker(tmp_path):
    path = tmp_path / "echo_worker.py"
    path.write_text(ECHO)
    return path


def test_unknown_environment():
    with pytest.raises(ConfigError, match=r"environment: got 'tflite', want one of coreai, litert\."):
        environment.make("tflite")


def test_unmade_environment_is_reported_with_the_command(place):
    with pytest.raises(ConfigError, match="make it with: mobileclip environment litert"):
        environment.python("litert")


def test_made_environment_is_not_made_again(place):
    (place / "ready").touch()
    assert environment.make("litert") == place
    assert environment.python("litert") == place / "bin" / "python"
    assert sorted(path.name for path in place.iterdir()) == ["bin", "ready"]


def test_other_requirements_are_another_environment(place, monkeypatch, tmp_path):
    other = tmp_path / "litert.txt"
    other.write_text("numpy==2.4.6\n")
    monkeypatch.setattr(environment, "requirements", lambda _: other)
    assert environment.folder("litert") != place


def test_worker_gets_files_and_no_secrets(place, worker, tmp_path, monkeypatch):
    (place / "ready").touch()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-pass-on")
    exchange = tmp_path / "exchange"
    exchange.mkdir()
    reply = environment.run("litert", worker, {"names": ["a", "b"]}, exchange)
    assert reply["asked"] == {"names": ["a", "b"]}
    assert reply["secret"] == ""
    assert str(tmp_path) not in reply["path"]
    assert json.loads((exchange / "request.json").read_text()) == {"names": ["a", "b"]}


def test_failed_worker_is_one_sentence(place, worker, tmp_path):
    (place / "ready").touch()
    with pytest.raises(ExportError, match="echo_worker: failed in its environment: ValueError: no such operation"):
        environment.run("litert", worker, {"fail": True}, tmp_path)


ANSWERS = """
import json, os, sys
replies = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
for line in sys.stdin:
    request = json.loads(line)
    print("what a library prints")
    if request.get("fail"):
        raise ValueError("no such operation")
    print(json.dumps({"pid": os.getpid(), "asked": request}), file=replies, flush=True)
"""


@pytest.fixture
def answering(place, tmp_path):
    (place / "ready").touch()
    path = tmp_path / "answering_worker.py"
    path.write_text(ANSWERS)
    return path


def test_one_worker_answers_all_requests_of_a_session(answering, tmp_path):
    with environment.session("litert", answering, tmp_path) as ask:
        replies = [ask({"number": number}) for number in range(3)]
    assert [reply["asked"]["number"] for reply in replies] == [0, 1, 2]
    assert len({reply["pid"] for reply in replies}) == 1
    assert not _is_alive(replies[0]["pid"])


def test_failed_request_of_a_session_is_one_sentence(answering, tmp_path):
    sentence = "answering_worker: failed in its environment: ValueError: no such operation"
    with environment.session("litert", answering, tmp_path) as ask:
        ask({})
        for _ in range(2):  # the worker has ended by the second time
            with pytest.raises(ExportError, match=sentence):
                ask({"fail": True})


def test_session_ends_with_the_work_that_asked(answering, tmp_path):
    session = environment.session("litert", answering, tmp_path)
    pid = session.__enter__()({})["pid"]
    assert _is_alive(pid)
    error = ExportError("over its budget")
    assert not session.__exit__(type(error), error, None)
    assert not _is_alive(pid)


def _is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
