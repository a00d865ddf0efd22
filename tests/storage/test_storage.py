"""Local files and S3 behind one interface: the same tests on both, and a race of twelve writers."""

import concurrent.futures
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mobileclip import storage
from mobileclip.errors import DataError, IntegrityError
from tests import s3

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["local", "s3"])
def base(request, tmp_path, monkeypatch) -> str:
    """An empty folder or prefix."""
    if request.param == "local":
        return str(tmp_path / "base")
    s3.use(monkeypatch, MOBILECLIP_CACHE=str(tmp_path / "cache"))
    name = f"b-{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:20]}"
    return s3.bucket(name) + "/some/prefix"


def test_written_bytes_come_back_and_are_replaced_whole(base):
    uri = storage.join(base, "a/b.bin")
    assert not storage.exists(uri)
    for data in (b"", b"one", bytes(range(256)) * 5000):
        storage.write_bytes(uri, data)
        assert storage.read_bytes(uri) == data
        assert storage.exists(uri)
        assert storage.local_copy(uri).read_bytes() == data


def test_digests_are_checked(base):
    uri = storage.join(base, "a.bin")
    storage.write_bytes(uri, b"data")
    right = hashlib.sha256(b"data").hexdigest()
    assert storage.read_bytes(uri, sha256=right) == b"data"
    with pytest.raises(
        IntegrityError, match=rf"^{uri}: sha256 is {right}, want 00; the file is damaged or was replaced"
    ):
        storage.read_bytes(uri, sha256="00")


def test_what_is_not_there(base):
    uri = storage.join(base, "nothing.bin")
    with pytest.raises(DataError, match=rf"^data: no (file|object) '{uri}'\.$"):
        storage.read_bytes(uri)
    with pytest.raises(DataError, match=rf"^data: no (file|object) '{uri}'\.$"):
        storage.local_copy(uri)
    with pytest.raises(DataError, match=r"^data: (no folder|nothing below) '"):
        storage.local_dir(uri)
    assert storage.list_names(uri) == []


def test_list_names_and_local_dir(base):
    for name in ("b", "a", "sub/c", "sub/deep/d"):
        storage.write_bytes(storage.join(base, name), name.encode())
    assert storage.list_names(base) == ["a", "b", "sub"]
    storage.write_bytes(storage.join(base, "b"), b"longer")
    assert storage.list_sizes(base) == {"a": 1, "b": 6}
    assert storage.list_sizes(storage.join(base, "nothing")) == {}
    assert storage.tree_sizes(storage.join(base, "nothing")) == {}
    assert storage.tree_sizes(base).items() >= {"a": 1, "b": 6}.items()
    assert sorted(storage.tree_sizes(base)) == storage.list_files(base)
    storage.write_bytes(storage.join(base, "b"), b"b")
    folder = storage.local_dir(base)
    assert {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()} == {
        name: name for name in ("a", "b", "sub/c", "sub/deep/d")
    }


def test_delete(base):
    uri = storage.join(base, "a")
    storage.delete(uri)
    storage.write_bytes(uri, b"1")
    storage.delete(uri)
    assert not storage.exists(uri)


def test_put_if_absent_keeps_the_first(base):
    uri = storage.join(base, "once")
    assert storage.put_if_absent(uri, b"first")
    assert not storage.put_if_absent(uri, b"second")
    assert storage.read_bytes(uri) == b"first"
    assert storage.list_names(base) == ["once"]


def _put(uri: str, writer: int) -> bool:
    return storage.put_if_absent(uri, bytes([writer]) * 100_000)


def test_of_twelve_writers_one_wins(base):
    for turn in range(3):
        uri = storage.join(base, f"race-{turn}")
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            won = list(pool.map(lambda writer, uri=uri: _put(uri, writer), range(12)))
        assert sum(won) == 1
        assert storage.read_bytes(uri) == bytes([won.index(True)]) * 100_000


def test_a_cached_download_is_fetched_once_and_checked(tmp_path, monkeypatch):
    s3.use(monkeypatch, MOBILECLIP_CACHE=str(tmp_path / "cache"))
    uri = storage.join(s3.bucket("cache"), "x/shard.tar")
    storage.write_bytes(uri, b"data")
    digest = hashlib.sha256(b"data").hexdigest()
    copy = storage.local_copy(uri, sha256=digest)
    storage.write_bytes(uri, b"else")
    assert storage.local_copy(uri, sha256=digest) == copy
    assert copy.read_bytes() == b"data"
    assert storage.local_copy(uri).read_bytes() == b"else"  # no digest, no trust in the cache
    with pytest.raises(IntegrityError):
        storage.local_copy(uri, sha256=hashlib.sha256(b"other").hexdigest())
    assert all(not p.name.endswith(".tmp") for p in (tmp_path / "cache").rglob("*"))


@pytest.mark.parametrize(
    ("base_", "parts", "joined"),
    [
        ("a/b", ("../c",), "a/c"),
        ("a", ("b", "c.txt"), "a/b/c.txt"),
        ("a", ("/x",), "/x"),
        ("/a", ("s3://b/k",), "s3://b/k"),
        ("s3://b/p", ("../q/r",), "s3://b/q/r"),
        ("s3://b", ("k",), "s3://b/k"),
        ("s3://b/p/", ("k",), "s3://b/p/k"),
        ("s3://b/p", ("../../../k",), "s3://b/k"),
    ],
)
def test_join(base_, parts, joined):
    assert storage.join(base_, *parts) == joined


@pytest.mark.parametrize(
    ("uri", "start", "path"),
    [
        ("/a/b/c", "/a/d", "../b/c"),
        ("/a/b", "/a", "b"),
        ("s3://b/x/y", "s3://b/x/z", "../y"),
        ("s3://b/x", "s3://c/x", "s3://b/x"),
        ("/a/b", "s3://c/x", "/a/b"),
    ],
)
def test_relative_and_back(uri, start, path):
    assert storage.relative(uri, start) == path
    assert storage.join(start, path) == uri


def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    script = (
        "import resource, signal, sys; from mobileclip import storage;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        f"storage.write_bytes({str(tmp_path / 'big')!r}, bytes(5000))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []


KILLED = """
import sys
from mobileclip import storage
print("ready", flush=True)
turn = 0
while True:
    storage.write_bytes(sys.argv[1], bytes([turn % 251]) * 300_000)
    turn += 1
"""


def test_kill_minus_nine_never_shows_a_half_file(tmp_path):
    file = tmp_path / "file"
    for delay in (0.01, 0.03, 0.06):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(file)], stdout=subprocess.PIPE, cwd=ROOT)
        assert process.stdout is not None
        process.stdout.readline()
        while not file.exists():
            time.sleep(0.005)
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        data = file.read_bytes()
        assert len(data) == 300_000
        assert len(set(data)) == 1
        assert storage.list_names(tmp_path) == ["file"]


def test_digest_file(tmp_path):
    data = bytes(range(256)) * 9000  # more than one chunk
    (tmp_path / "f").write_bytes(data)
    assert storage.digest_file(tmp_path / "f") == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_files_have_the_rights_that_the_umask_leaves(tmp_path, umask):
    before = os.umask(umask)
    try:
        storage.write_bytes(tmp_path / "written", b"a")
        storage.put_if_absent(tmp_path / "put", b"a")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~umask}
