"""An object store that fails: what passes is retried within bounds, what does not is said in one sentence."""

import hashlib
import io
import multiprocessing
import os
import random
import tarfile

import boto3
import pytest

from mobileclip import storage
from mobileclip.errors import DataError, IntegrityError, StorageError
from mobileclip.storage import retry, s3
from tests import s3 as server
from tests.faulty_s3 import FaultyS3

TRIES = 4
PASSING = ("500", "503", "429", "reset", "truncated", "cut", "early", "flipped")
ANEW = "what is committed stays, a new run goes on from there"
AT_REST = (
    "if it is damaged in the store, restore another version of it, or delete what its stage wrote and run it again"
)


@pytest.fixture(scope="module")
def proxy():
    proxy = FaultyS3(server.endpoint())
    yield proxy
    proxy.close()


@pytest.fixture
def base(proxy, request, tmp_path, monkeypatch) -> str:
    """An empty bucket behind the proxy."""
    settings = {**server.environment(), "AWS_ENDPOINT_URL": proxy.endpoint, "MOBILECLIP_CACHE": str(tmp_path / "cache")}
    settings |= {"MOBILECLIP_STORAGE_TRIES": str(TRIES), "MOBILECLIP_STORAGE_WAIT": "0.01"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    s3.connect.cache_clear()
    proxy.plan, proxy.capitalized, proxy.unconditional = lambda *_: "", False, ""
    monkeypatch.setattr(s3, "_UNCONDITIONAL", [])
    yield server.bucket(f"f-{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:20]}")
    s3.connect.cache_clear()


@pytest.mark.parametrize("fault", PASSING)
def test_a_read_that_fails_for_a_while_gives_the_right_bytes(base, proxy, fault):
    uri, data = storage.join(base, "a"), os.urandom(5000)
    storage.write_bytes(uri, data)
    proxy.fails(fault, TRIES - 1, method="GET")
    assert storage.read_bytes(uri) == data
    assert len(proxy.seen) == TRIES


@pytest.mark.parametrize(
    ("fault", "mebibytes"),
    [("truncated", 0.01), ("cut", 0.01), ("early", 0.01), ("flipped", 0.01), ("early", 17), ("flipped", 17)],
)
def test_objects_of_other_tools_come_whole_or_not_at_all(base, proxy, fault, mebibytes, tmp_path):
    """They have no digest of ours: lengths are what the store promised, and what the caller expects decides."""
    uri, data = storage.join(base, "a"), random.Random(0).randbytes(int(mebibytes * 2**20))
    server.client().put_object(Bucket=base.removeprefix("s3://"), Key="a", Body=data)
    digest = hashlib.sha256(data).hexdigest()
    for read in (
        lambda: storage.read_bytes(uri, sha256=digest),
        lambda: storage.local_copy(uri, sha256=digest).read_bytes(),
    ):
        proxy.fails(fault, 1, method="GET")
        assert read() == data
    if fault != "flipped":
        proxy.fails(fault, 1, method="GET")
        assert storage.read_bytes(uri) == data
        proxy.fails(fault, 1, method="GET")
        assert storage.local_copy(uri).read_bytes() == data
    proxy.fails("flipped", 1000, method="GET")
    with pytest.raises(IntegrityError, match=f"^{uri}: sha256 is "):
        storage.read_bytes(uri, sha256=digest)


@pytest.mark.parametrize("fault", ["fewer", "shifted", "early", "truncated"])
def test_other_bytes_than_a_range_asks_for_are_asked_for_again(base, proxy, fault):
    uri, data = storage.join(base, "a"), random.Random(0).randbytes(s3.PART_BYTES + 777)
    storage.write_bytes(uri, data)
    proxy.fails(fault, TRIES - 1, method="GET")
    assert storage.read_range(uri, 1000, 500) == data[1000:1500]
    proxy.fails(fault, 2, method="GET")
    with storage.open_stream(uri) as stream:
        assert stream.read() == data
    proxy.fails(fault, 2, method="GET")
    assert storage.local_copy(uri, sha256=hashlib.sha256(data).hexdigest()).read_bytes() == data
    proxy.fails(fault, 1000, method="GET")
    with pytest.raises(StorageError, match=rf"^storage: reading '{uri}' failed {TRIES} times, "):
        storage.read_range(uri, 1000, 500)


def test_a_part_with_a_flipped_byte_is_fetched_again(base, proxy):
    uri, data = storage.join(base, "a"), random.Random(0).randbytes(s3.PART_BYTES + 777)
    storage.write_bytes(uri, data)
    proxy.fails("flipped", 1, method="GET")
    assert storage.local_copy(uri, sha256=hashlib.sha256(data).hexdigest()).read_bytes() == data
    proxy.fails("flipped", 1000, method="GET")
    with pytest.raises(
        StorageError, match=rf"failed {TRIES} times, at last with bytes that do not match .*; {AT_REST}"
    ):
        storage.local_copy(uri)


def test_the_digest_is_found_however_the_store_writes_its_name(base, proxy):
    proxy.capitalized = True
    uri = storage.join(base, "a")
    storage.write_bytes(uri, b"data")
    proxy.fails("flipped", 1000, method="GET")
    with pytest.raises(StorageError, match="bytes that do not match the digest they were stored with"):
        storage.read_bytes(uri)


@pytest.mark.parametrize("big", [False, True])
def test_a_store_without_conditional_writes_is_asked_first(base, proxy, caplog, big):
    proxy.unconditional = "501"
    mine, theirs = (bytes([letter]) * (s3.PART_BYTES + 1 if big else 10) for letter in b"mt")
    for name in ("a", "b"):
        uri = storage.join(base, name)
        proxy.seen.clear()
        assert storage.put_if_absent(uri, mine)
        assert len(proxy.seen) < 8  # not ten tries, each with the shard's bytes
        assert not storage.put_if_absent(uri, theirs)
        assert storage.read_bytes(uri) == mine
    assert sum("knows no If-None-Match" in record.getMessage() for record in caplog.records) == 1


def test_a_store_that_says_not_modified_means_that_it_is_there(base, proxy):
    uri = storage.join(base, "a")
    storage.write_bytes(uri, b"mine")
    proxy.unconditional = "304"
    assert not storage.put_if_absent(uri, b"theirs")
    assert storage.read_bytes(uri) == b"mine"


@pytest.mark.parametrize("big", [False, True])
def test_newer_checksums_are_left_out_where_the_environment_says_so(base, proxy, monkeypatch, big):
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    s3.connect.cache_clear()
    uri, data = storage.join(base, "a"), b"x" * (s3.PART_BYTES + 1 if big else 10)
    proxy.headers.clear()
    storage.write_bytes(uri, data)
    sent = {name for headers in proxy.headers for name in headers}
    assert not {name for name in sent if name.startswith(("x-amz-checksum", "x-amz-sdk-checksum", "x-amz-trailer"))}
    assert "content-md5" in sent
    assert storage.read_bytes(uri) == data


def test_a_store_that_falls_silent_is_asked_again(base, proxy, monkeypatch):
    uri = storage.join(base, "a")
    storage.write_bytes(uri, b"data")
    monkeypatch.setenv("MOBILECLIP_STORAGE_TIMEOUT", "1")
    s3.connect.cache_clear()
    proxy.fails("silent", 1, method="GET")
    assert storage.read_bytes(uri) == b"data"
    assert len(proxy.seen) > 1


@pytest.mark.parametrize("fault", ["500", "503", "reset", "lost"])
def test_a_write_that_fails_for_a_while_is_there_in_the_end(base, proxy, fault):
    for put in (storage.write_bytes, storage.put_if_absent):
        uri = storage.join(base, put.__name__)
        proxy.fails(fault, 2, method="PUT")
        assert put(uri, b"mine") is not False  # put_if_absent: our own lost answer is no rival
        assert storage.read_bytes(uri) == b"mine"
    proxy.fails("lost", 1, method="PUT")
    assert not storage.put_if_absent(uri, b"theirs")
    assert storage.read_bytes(uri) == b"mine"


def test_other_requests_are_retried_too(base, proxy):
    uri = storage.join(base, "folder", "a")
    storage.write_bytes(uri, b"a")
    for request in (lambda: storage.exists(uri), lambda: storage.list_names(base) == ["folder"]):
        proxy.fails("503", TRIES - 1)
        assert request()
    proxy.fails("500", 1)
    storage.delete(uri)
    assert not storage.exists(uri)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("503", "503 SlowDown"),
        ("500", "500 InternalError"),
        ("flipped", "bytes that do not match the digest they were stored with"),
        ("truncated", ".*"),
        ("reset", ".*"),
    ],
)
def test_what_stays_broken_is_one_sentence_after_a_bounded_number_of_tries(base, proxy, fault, reason):
    uri = storage.join(base, "a")
    storage.write_bytes(uri, b"some data")
    proxy.fails(fault, 1000)
    with pytest.raises(
        StorageError,
        match=rf"^storage: reading '{uri}' failed {TRIES} times, at last with {reason}; "
        rf"{AT_REST if fault == 'flipped' else ANEW}\.$",
    ):
        storage.read_bytes(uri)
    assert len(proxy.seen) == TRIES


def test_what_will_not_pass_is_not_retried(base, proxy, monkeypatch):
    uri = storage.join(base, "a")
    storage.write_bytes(uri, b"data")
    proxy.fails("403", 1000)
    with pytest.raises(StorageError, match=rf"^storage: reading '{uri}': 403 refused\.$"):
        storage.read_bytes(uri)
    assert len(proxy.seen) == 1
    proxy.fails("", 0)
    with pytest.raises(IntegrityError, match=f"^{uri}: sha256 is "):
        storage.read_bytes(uri, sha256="00" * 32)
    assert len(proxy.seen) == 1  # the bytes are what was stored: asking again would change nothing
    with pytest.raises(DataError, match=r"^data: no bucket 'nowhere'\.$"):
        storage.write_bytes("s3://nowhere/a", b"data")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    s3.connect.cache_clear()
    with pytest.raises(StorageError, match=rf"^storage: reading '{uri}': Unable to locate credentials\.$"):
        storage.read_bytes(uri)


def test_a_store_that_is_down_is_named(base, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3.connect.cache_clear()
    with pytest.raises(StorageError, match=r"^storage: asking for 's3://.*/a' failed 4 times, at last with Could not"):
        storage.exists(storage.join(base, "a"))


def test_waits_double_are_bounded_and_jittered(monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", waits.append)
    monkeypatch.setenv("MOBILECLIP_STORAGE_TRIES", "10")

    def never(_: int) -> None:
        raise OSError

    for _ in range(20):
        with pytest.raises(StorageError):
            retry.retried(never, what="reading 'x'", transient=lambda _: "noise")
    assert len(waits) == 20 * 9
    for place in range(9):
        drawn, longest = waits[place::9], min(30, 0.5 * 2**place)
        assert all(longest / 2 <= wait <= longest for wait in drawn)
        assert len(set(drawn)) > 10


def _uploads(base: str) -> list[object]:
    client = boto3.client("s3", endpoint_url=server.endpoint(), aws_access_key_id="a", aws_secret_access_key="a")
    return client.list_multipart_uploads(Bucket=base.removeprefix("s3://")).get("Uploads", [])


def test_big_objects_travel_in_parts_through_a_bad_line(base, proxy):
    uri, data = storage.join(base, "big"), random.Random(0).randbytes(2 * s3.PART_BYTES + 12345)
    proxy.seen.clear()
    proxy.plan = lambda _method, _path, number: ("503", "", "reset", "")[number % 4]
    assert storage.put_if_absent(uri, data)
    assert sum("partNumber=" in line for line in set(proxy.seen)) == 3
    proxy.seen.clear()
    digest = hashlib.sha256(data).hexdigest()
    assert storage.local_copy(uri, sha256=digest).read_bytes() == data
    proxy.plan = lambda *_: ""
    assert sum(line.startswith("GET") for line in proxy.seen) >= 3
    assert not storage.put_if_absent(uri, data[::-1])
    assert storage.read_bytes(uri, sha256=digest) == data
    storage.write_bytes(uri, data[::-1])
    assert storage.local_copy(uri).read_bytes() == data[::-1]
    assert _uploads(base) == []


def test_an_upload_given_up_leaves_no_parts(base, proxy):
    proxy.plan = lambda _method, path, _number: "503" if "partNumber=2" in path else ""
    with pytest.raises(StorageError, match=r"^storage: writing part 2 of 's3://.*/big' failed 4 times"):
        storage.write_bytes(storage.join(base, "big"), bytes(s3.PART_BYTES + 1))
    assert _uploads(base) == []
    assert storage.list_names(base) == []


def test_ranges_and_streams_read_what_is_asked_for(base, proxy, tmp_path):
    data = bytes(range(256)) * 100
    for uri in (storage.join(base, "a"), str(tmp_path / "a")):
        storage.write_bytes(uri, data)
        proxy.fails("truncated", 1, method="GET")
        assert storage.read_range(uri, 300, 20) == data[300:320]
        assert storage.read_range(uri, len(data) - 5, 20) == data[-5:]
        assert storage.read_range(uri, 0, 0) == b""
        with storage.open_stream(uri) as stream:
            assert stream.read(10) == data[:10]
            stream.seek(-4, io.SEEK_END)
            assert stream.read() == data[-4:]
            stream.seek(1000)
            assert stream.read(3) == data[1000:1003]
        with pytest.raises(DataError, match=r"^data: no (file|object) '"):
            storage.open_stream(uri + "x")


def test_webdataset_reads_a_shard_from_the_store(base):
    import webdataset

    from mobileclip.data import shards  # noqa: F401 - knows how webdataset opens s3://

    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name in ("a.txt", "b.txt"):
            info = tarfile.TarInfo(name)
            info.size = 5
            tar.addfile(info, io.BytesIO(f"{name}".encode()))
    storage.write_bytes(storage.join(base, "x.tar"), stream.getvalue())
    found = webdataset.WebDataset(storage.join(base, "x.tar"), shardshuffle=False)
    assert [(sample["__key__"], sample["txt"]) for sample in found] == [("a", b"a.txt"), ("b", b"b.txt")]


def test_a_listing_does_not_walk_sub_folders(base, proxy):
    for index in range(12):
        storage.write_bytes(storage.join(base, "p", "deep", f"{index}"), b"")
    storage.write_bytes(storage.join(base, "p", "z"), b"")
    proxy.seen.clear()
    assert storage.list_names(storage.join(base, "p")) == ["deep", "z"]
    assert storage.list_names(base) == ["p"]
    assert len(proxy.seen) == 2
    assert all("delimiter=" in line for line in proxy.seen)


def _read_many(uri: str, letter: bytes) -> None:
    assert all(storage.read_bytes(uri) == letter * 1000 for _ in range(40))


def test_forked_workers_do_not_share_a_connection(base):
    """The parent has one open; on a shared one, each would read answers to the other's questions."""
    uris = {letter: storage.join(base, letter.decode()) for letter in (b"a", b"b")}
    for letter, uri in uris.items():
        storage.write_bytes(uri, letter * 1000)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_read_many, args=(uri, letter)) for letter, uri in uris.items()]
    for worker in workers:
        worker.start()
    _read_many(uris[b"a"], b"a")
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
