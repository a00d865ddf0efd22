"""The registry's commands as a user meets them when something is wrong: one sentence, exit code 2, nothing written."""

import pytest

from mobileclip.__main__ import main
from mobileclip.config import Params
from mobileclip.config.params_file import render
from mobileclip.promotion import registry
from tests import mlflow_server, students

NOWHERE = "http://user:secret@127.0.0.1:1"
COMMANDS = {
    "history": ["history", "nobody"],
    "explain": ["explain", "nobody"],
    "rollback": ["rollback", "nobody", "--why", "it fails"],
    "trace": ["trace", "models:/nobody@champion"],
    "devices": ["devices", "nobody", "results.device.json"],
}


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch, tmp_path):
    mlflow_server.forget_settings(monkeypatch)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.chdir(tmp_path)


def fails(arguments, capsys):
    """The one sentence on stderr."""
    assert main(arguments) == 2
    said = capsys.readouterr()
    (line,) = [line for line in said.err.splitlines() if line]
    assert line.startswith("error: ")
    assert said.out == ""
    return line


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_server_out_of_reach(command, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
    line = fails(command, capsys)
    assert "MLFLOW_TRACKING_URI is 'http://127.0.0.1:1'" in line
    assert "want a store that answers." in line
    assert "secret" not in line


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("history", "'nobody' has no promotion history, want the name of a registered student"),
        ("explain", "'nobody' has no version 'champion' and no other, want the name of a registered student"),
        ("rollback", "'nobody' has had 0 champion(s), want an earlier one"),
        ("trace", "'nobody' has no version 'champion' and no other"),
        ("devices", "'nobody' has no version 'champion' and no other"),
    ],
)
def test_a_model_that_nobody_registered(command, words, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url())
    assert words in fails(COMMANDS[command], capsys)
    quoted = [word.replace("nobody", "it's") for word in COMMANDS[command]]
    assert "it's" in fails(quoted, capsys)


def test_promote_without_its_registry_or_inputs_writes_nothing(capsys, monkeypatch, tmp_path):
    (tmp_path / "params.yaml").write_text(render(Params()))
    folders = {name: str(path) for name, path in students.world().folders("good").items()}

    def promote(**changes):
        inputs = [word for name, path in (folders | changes).items() for word in (f"--{name}", path)]
        return fails(["promote", "--out", str(tmp_path / "out"), *inputs], capsys)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
    assert "want a store that answers" in promote()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url())
    assert "nothing-here" in promote(student=str(tmp_path / "nothing-here"))
    assert "no 'results.json'" in promote(evaluation=folders["programs"])
    assert not (tmp_path / "out").exists()


def test_the_versions_there_are_are_named(capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url())
    where = registry.connect("some-versions")
    where.ensure()
    for _ in range(2):
        where.create("s3://models/x", {"a": "b"})
    where.point("champion", 2)
    assert "no version '7', want one of 1, 2, champion." in fails(["explain", "some-versions", "7"], capsys)
    assert "no version 'best', want one of" in fails(["explain", "some-versions", "best"], capsys)
