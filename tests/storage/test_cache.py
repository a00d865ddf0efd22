"""The cache of downloads: private, checked at first use, bounded, and never without what a process uses."""

import gc
import hashlib
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mobileclip import storage
from mobileclip.errors import ConfigError, StorageError
from mobileclip.storage import cache
from tests import s3 as server

ROOT = Path(__file__).parents[2]
SIZE = 1000


@pytest.fixture
def base(tmp_path, monkeypatch, request) -> str:
    server.use(monkeypatch, XDG_CACHE_HOME=str(tmp_path / "xdg"), MOBILECLIP_CACHE_GB=str(3.5 * SIZE / 1e9))
    monkeypatch.delenv("MOBILECLIP_CACHE", raising=False)
    return server.bucket(f"c-{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:20]}")


def _object(base: str, letter: str) -> tuple[str, str, bytes]:
    data = letter.encode() * SIZE
    storage.write_bytes(storage.join(base, letter), data)
    return storage.join(base, letter), hashlib.sha256(data).hexdigest(), data


def _held(root: Path) -> set[str]:
    return {path.name[-1] for path in root.glob("??/*")}


def test_the_folder_is_the_users_own(base, tmp_path, monkeypatch):
    assert cache.folder() == (tmp_path / "xdg" / "mobileclip").resolve()
    assert cache.folder().stat().st_mode & 0o777 == 0o700
    cache.folder().chmod(0o777)
    assert cache.folder().stat().st_mode & 0o777 == 0o700
    (tmp_path / "else").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mobileclip").symlink_to(tmp_path / "else")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    with pytest.raises(StorageError, match=r"^storage: the cache '.*/other/mobileclip' is not yours, want a folder"):
        cache.folder()


@pytest.mark.parametrize("text", ["much", "-1", "nan", "inf"])
def test_another_bound_is_refused(monkeypatch, text):
    monkeypatch.setenv("MOBILECLIP_CACHE_GB", text)
    with pytest.raises(ConfigError, match=rf"^MOBILECLIP_CACHE_GB: got '{text}', want a number of gigabytes\.$"):
        cache.limit()


def test_what_lies_there_is_hashed_at_its_first_use(base, monkeypatch):
    uri, digest, data = _object(base, "a")
    path = storage.local_copy(uri, sha256=digest)
    Path(path).write_bytes(b"b" * SIZE)  # by another process, say
    monkeypatch.setattr(cache, "_checked", set())  # what a new process knows
    assert storage.local_copy(uri, sha256=digest).read_bytes() == data


def test_what_was_used_longest_ago_goes_first(base):
    objects = {letter: _object(base, letter) for letter in "abcd"}
    for age, letter in enumerate("cab"):
        path = storage.local_copy(objects[letter][0], sha256=objects[letter][1])
        os.utime(path, (1000 + age, 1000 + age))
    del path
    gc.collect()
    storage.local_copy(objects["c"][0], sha256=objects["c"][1])  # used again
    gc.collect()
    storage.local_copy(objects["d"][0], sha256=objects["d"][1])
    assert _held(cache.folder()) == {"c", "b", "d"}


def test_what_is_in_use_stays_though_the_bound_is_passed(base):
    objects = {letter: _object(base, letter) for letter in "abcdefg"}
    used = {letter: storage.local_copy(objects[letter][0], sha256=objects[letter][1]) for letter in "abcde"}
    assert _held(cache.folder()) == set("abcde")
    with used["a"].open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        del used["b"], used["c"], used["d"]
        gc.collect()
        storage.local_copy(objects["f"][0], sha256=objects["f"][1])
        assert mapped[:] == objects["a"][2]
    assert _held(cache.folder()) == set("aef")


HOLD = """
import os, sys
from mobileclip import storage
path = storage.local_copy(sys.argv[1], sha256=sys.argv[2])
print("held", flush=True)
sys.stdin.read()
"""


def test_what_another_process_uses_stays_until_it_is_killed(base):
    objects = {letter: _object(base, letter) for letter in "abcdefg"}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, *objects["a"][:2]], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    for letter in "bcde":
        storage.local_copy(objects[letter][0], sha256=objects[letter][1])
        gc.collect()
    assert "a" in _held(cache.folder())
    process.kill()
    process.wait()
    storage.local_copy(objects["f"][0], sha256=objects["f"][1])
    assert _held(cache.folder()) == set("def")
