"""What `publish` writes, read by DVC itself: pulled, found clean, and committed again to the same digests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mobileclip import storage
from mobileclip.__main__ import main
from mobileclip.errors import DataError, StorageError
from mobileclip.storage.dvc_remote import publish
from tests import s3

FILES = {
    "manifest.json": b'{"shards": []}\n',
    "train-00000.tar": bytes(range(256)) * 64,
    "coca/train-00000.safetensors": b"\x00" * 1000,
    "coca/same-as-manifest.json": b'{"shards": []}\n',
    "Zürich/ä b.txt": b"text",
    "empty": b"",
}


def write_files(folder: str) -> str:
    for name, data in FILES.items():
        storage.write_bytes(storage.join(folder, name), data)
    return folder


@pytest.fixture(autouse=True)
def _s3(monkeypatch):
    s3.use(monkeypatch)
    yield
    storage.s3.connect.cache_clear()


class Clone:
    """A git repository with DVC in it."""

    def __init__(self, folder: Path, remote: str) -> None:
        self.folder = folder
        folder.mkdir()
        self.run("git", "init", "-q")
        self.dvc("init", "-q")
        self.dvc("remote", "add", "-d", "-q", "team", remote)
        if storage.is_s3(remote):
            self.dvc("remote", "modify", "-q", "team", "endpointurl", s3.endpoint())

    def dvc(self, *arguments: str) -> str:
        return self.run(str(Path(sys.executable).parent / "dvc"), *arguments)

    def run(self, *command: str) -> str:
        environment = {**os.environ, **s3.environment(), "DVC_NO_ANALYTICS": "1"}
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.mark.parametrize("place", ["local", "s3"])
def test_dvc_pulls_what_was_published_and_commits_the_same_digests(place, tmp_path):
    """Once through the command line from a local folder, once from a prefix in S3 to another one."""
    source = write_files(s3.bucket("pod") + "/run/prepare" if place == "s3" else str(tmp_path / "run" / "prepare"))
    remote = s3.bucket("dvc-remote") + "/project" if place == "s3" else str(tmp_path / "remote")
    clone = Clone(tmp_path / "clone", remote)
    assert main(["publish", source, "--remote", remote, "--pointers", str(clone.folder)]) == 0
    pointer = (clone.folder / "prepare.dvc").read_bytes()
    clone.dvc("pull", "-q")
    pulled = {p.relative_to(clone.folder / "prepare").as_posix() for p in (clone.folder / "prepare").rglob("*.*")}
    assert pulled >= {name for name in FILES if "." in name}
    assert {name: (clone.folder / "prepare" / name).read_bytes() for name in FILES} == FILES
    assert "up to date" in clone.dvc("status")
    assert "in sync" in clone.dvc("status", "-c")
    clone.dvc("add", "-q", "prepare")
    assert yaml.safe_load((clone.folder / "prepare.dvc").read_bytes()) == yaml.safe_load(pointer)


def test_a_second_time_nothing_is_sent(tmp_path):
    source, remote = write_files(str(tmp_path / "prepare")), str(tmp_path / "remote")
    first = publish(source, remote=remote)
    assert (first.files, first.size, first.sent) == (len(FILES), sum(map(len, FILES.values())), len(FILES))
    (tmp_path / "prepare" / "half.tmp").write_bytes(b"being written")
    seen: list[str] = []
    assert publish(source, remote=remote, progress=seen.append) == type(first)(**{**vars(first), "sent": 0})
    assert sorted(seen) == sorted(FILES)


def test_a_killed_publish_shows_no_list(tmp_path):
    """The list is written last: where a file cannot be sent, the folder is unknown to the remote."""
    source, remote = write_files(str(tmp_path / "prepare")), tmp_path / "remote"
    md5 = publish(source, remote=str(tmp_path / "whole")).md5
    remote.mkdir()
    (remote / "files").write_text("in the way")
    with pytest.raises(StorageError, match="files"):
        publish(source, remote=str(remote))
    (remote / "files").unlink()
    assert not storage.exists(storage.join(str(remote), "files", "md5", md5[:2], md5[2:]))


def test_what_dvc_would_not_count_is_refused(tmp_path, capsys):
    storage.write_bytes(tmp_path / "data" / "inner" / ".dvcignore", b"*.tar\n")
    with pytest.raises(DataError, match=r"inner/\.dvcignore.*DVC ignores"):
        publish(str(tmp_path / "data"), remote=str(tmp_path / "remote"))
    assert main(["publish", str(tmp_path / "none"), "--remote", str(tmp_path / "remote")]) == 2
    assert "no file in" in capsys.readouterr().err
    assert main(["publish", "s3://pod/x", "--remote", str(tmp_path / "remote")]) == 2
    assert "--pointers" in capsys.readouterr().err
