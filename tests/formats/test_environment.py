"""An exporter in an environment of its own: made once, found again, spoken to by files."""

import json
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
