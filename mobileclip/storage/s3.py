"""Objects of an S3 API: bounded retries, a digest on every object, parts for big ones.

Endpoint and credentials come from the usual AWS environment; `MOBILECLIP_STORAGE_TIMEOUT` is how long a silent
connection is waited for (seconds, default 60).
"""

import contextlib
import functools
import hashlib
import io
import logging
import os
import re
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from mobileclip.errors import DataError, IntegrityError, StorageError
from mobileclip.storage import local
from mobileclip.storage.retry import retried

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Larger objects are written and fetched in parts of this size (S3 takes 10,000 of at least 5 MiB).
PART_BYTES = 16 << 20
_PARALLEL_PARTS = 4
# What stores answer to If-None-Match: that the object is there, and that they do not know the header.
_IS_THERE = frozenset({304, 412})
_NO_CONDITIONS = frozenset({501})
_UNCONDITIONAL: list[str] = []
"""The first object whose store knew no conditional writes; one store serves a process."""
_PASSING_STATUS = frozenset({408, 409, 429})
_LOCK = threading.Lock()


class _DamagedError(Exception):
    """Bytes that are not what the store promised: they may come right at the next try. Its text says what is wrong."""


class _OtherBytesError(_DamagedError):
    """An object whose digest is not the one it was stored with."""

    way_out = (
        "if it is damaged in the store, restore another version of it, or delete what its stage wrote and run it again"
    )

    def __init__(self) -> None:
        super().__init__("bytes that do not match the digest they were stored with")


def bucket_key(uri: str) -> tuple[str, str]:
    """Bucket and key of a URI."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def head(uri: str) -> dict[str, Any] | None:
    """What the store says of an object (`ContentLength` in bytes, `ETag`, `Metadata`); nothing where there is none.

    Raises:
        StorageError: The store does not say, also when asked again.
    """
    bucket, key = bucket_key(uri)
    try:
        found: dict[str, Any] = call(
            "asking for", uri, lambda client, _: client.head_object(Bucket=bucket, Key=key)
        )  # fmt: skip
    except DataError:
        return None
    return found


def get(uri: str, part: tuple[int, int] | None = None, *, etag: str = "", sha256: str = "") -> bytes:
    """A whole object, checked against the digest it was stored with, or (start, length) of it.

    Its length is what the store promised. What is not as promised is asked for again.

    Args:
        uri: The object.
        part: First byte and number of bytes; fewer come where the object ends before.
        etag: Refuse another version than this one.
        sha256: What the caller expects: an object without a digest of ours that has another one is asked for once more.

    Raises:
        DataError: It is not there.
        StorageError: It does not come, also when asked again.
    """
    bucket, key = bucket_key(uri)
    more = {} if part is None else {"Range": f"bytes={part[0]}-{part[0] + part[1] - 1}"}
    more |= {"IfMatch": etag} if etag else {}

    def once(client: Any, attempt: int) -> bytes:
        found = client.get_object(Bucket=bucket, Key=key, **more)
        data = bytes(found["Body"].read())
        _check_length(data, found)
        if part is not None:
            return _cut(data, found, *part)
        stored = stored_digest(found)
        if not stored:  # an answer that was cut on the way may promise what is left of it, or nothing
            _check_length(data, head(uri) or {})
        _check_digest(hashlib.sha256(data).hexdigest(), stored, sha256, attempt)
        return data

    return call("reading", uri, once)


def stored_digest(described: Mapping[str, Any]) -> str:
    """The sha256 that an object was stored with; empty where another tool wrote it."""
    # Header names know no case, and some stores send them capitalized.
    return next((str(value) for name, value in described["Metadata"].items() if name.lower() == "sha256"), "")


def put(uri: str, data: bytes, *, if_absent: bool = False) -> bool:
    """Store an object with its digest; returns whether this call wrote it.

    Raises:
        StorageError: The store does not take it, also when asked again.
    """
    bucket, key = bucket_key(uri)
    described = {"Bucket": bucket, "Key": key, "Metadata": {"sha256": hashlib.sha256(data).hexdigest()}}
    if len(data) > PART_BYTES:
        return _put_parts(uri, described, data, if_absent=if_absent)
    whole = {**described, "Body": data, **_checksum(data)}
    return _write(uri, data, lambda client, more: client.put_object(**whole, **more), if_absent=if_absent)


def delete(uri: str) -> None:
    """Remove an object; nothing there is fine, too."""
    bucket, key = bucket_key(uri)
    call("deleting", uri, lambda client, _: client.delete_object(Bucket=bucket, Key=key))


def list_keys(uri: str, *, delimiter: str = "") -> Iterator[tuple[str, int]]:
    """(key, bytes) below a prefix; with a delimiter, sub-folders (ending in it) in place of what lies in them."""
    bucket, prefix = bucket_key(uri.rstrip("/") + "/")
    asked = {"Bucket": bucket, "Prefix": prefix} | ({"Delimiter": delimiter} if delimiter else {})
    while True:
        page = call("listing", uri, lambda client, _: client.list_objects_v2(**asked))
        yield from ((item["Key"], int(item["Size"])) for item in page.get("Contents", []))
        yield from ((item["Prefix"], 0) for item in page.get("CommonPrefixes", []))
        if not page.get("IsTruncated"):
            return
        asked["ContinuationToken"] = page["NextContinuationToken"]


def download(uri: str, path: Path, *, sha256: str = "") -> None:
    """Fetch an object to a file, a big one in parts side by side; the file appears when it is whole and checked.

    Raises:
        DataError: It is not there.
        IntegrityError: Its digest is not `sha256`, or not the one it was stored with.
        StorageError: The store does not give it, or the disk does not take it.
    """
    described = head(uri)
    if described is None:
        raise DataError(f"data: no object '{uri}'.")
    size = int(described["ContentLength"])
    stored = stored_digest(described)

    def fetch(attempt: int) -> str:
        if size <= PART_BYTES:
            new.write_bytes(get(uri, etag=described["ETag"]))
        else:
            _fetch_parts(uri, new, size, described["ETag"])
        if new.stat().st_size != size:
            raise _DamagedError(f"{new.stat().st_size} bytes where the store promised {size}")
        got = local.digest_file(new) if sha256 or stored else ""
        _check_digest(got, stored, sha256, attempt)  # each part came as long as promised, one maybe with other bytes
        return got

    with local.temporary(path) as new:
        got = retried(fetch, what=f"reading '{uri}'", transient=_transient)
        if sha256 and got != sha256:
            raise IntegrityError(f"{uri}: sha256 is {got}, want {sha256}; the file is damaged or was replaced.")
        local.seal(new)
        new.replace(path)


def stream(uri: str) -> BinaryIO:
    """A seekable stream that fetches part by part as it is read.

    Raises:
        DataError: There is no such object.
    """
    described = head(uri)
    if described is None:
        raise DataError(f"data: no object '{uri}'.")
    raw = _Object(uri, int(described["ContentLength"]), described["ETag"])
    return cast("BinaryIO", io.BufferedReader(raw, buffer_size=PART_BYTES))


def call(verb: str, uri: str, work: Callable[[Any, int], T]) -> T:
    """`work(client, attempt)` with bounded retries.

    Raises:
        DataError: There is no such object or bucket.
        StorageError: The store refuses for good, or still fails at the last try.
    """
    client = _client()
    from botocore.exceptions import BotoCoreError

    try:
        return retried(lambda attempt: work(client, attempt), what=f"{verb} '{uri}'", transient=_transient)
    except _client_error() as error:
        status = _status(error)
        if status == 404:
            bucket = error.response["Error"].get("Code") == "NoSuchBucket"
            missing = f"bucket '{bucket_key(uri)[0]}'" if bucket else f"object '{uri}'"
            raise DataError(f"data: no {missing}.") from None
        reason = f"{status} {error.response['Error'].get('Message') or error.response['Error'].get('Code')}"
    except BotoCoreError as error:
        reason = " ".join(str(error).split())
    raise StorageError(f"storage: {verb} '{uri}': {reason.rstrip('.')}.")


class _Object(io.RawIOBase):
    """Random access to one version of an object by ranged reads."""

    def __init__(self, uri: str, size: int, etag: str) -> None:
        self._uri, self._size, self._etag, self._place = uri, size, etag, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def readinto(self, buffer: Any) -> int:
        length = max(0, min(len(buffer), self._size - self._place))
        # `get` gives exactly as much: the object has this size, and the ETag says that it is the same object.
        buffer[:length] = get(self._uri, (self._place, length), etag=self._etag) if length else b""
        self._place += length
        return length

    def readall(self) -> bytes:
        """The rest, in parts: the base class would ask for 8 KiB at a time."""
        parts = []
        while (left := min(PART_BYTES, self._size - self._place)) > 0:
            parts.append(get(self._uri, (self._place, left), etag=self._etag))
            self._place += left
        return b"".join(parts)


def _check_length(data: bytes, found: Mapping[str, Any]) -> None:
    """A body may end early without an error: behind a proxy, or where the connection's end is the body's."""
    promised = found.get("ContentLength")
    if promised is not None and len(data) != promised:
        raise _DamagedError(f"{len(data)} bytes where the store promised {promised}")


def _check_digest(got: str, stored: str, expected: str, attempt: int) -> None:
    if stored and got != stored:
        raise _OtherBytesError
    if not stored and expected and got != expected and attempt == 0:  # on the way, or in the store? Ask once more
        raise _DamagedError("bytes that do not match the digest that is expected")


def _cut(data: bytes, found: Mapping[str, Any], start: int, length: int) -> bytes:
    """Bytes `start`..`start + length` of an object out of the answer to a request for them."""
    shown = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", str(found.get("ContentRange", "")))
    if shown is None:  # the store knows no ranges: the answer is the whole object
        return data[start : start + length]
    first, last, total = map(int, shown.groups())
    wanted = (start, min(start + length, total) - 1)
    if (first, last) != wanted or len(data) != last - first + 1:
        raise _DamagedError(f"bytes {first} to {last} ({len(data)} of them), asked for {wanted[0]} to {wanted[1]}")
    return data


def _fetch_parts(uri: str, path: Path, size: int, etag: str) -> None:
    with path.open("r+b") as file, ThreadPoolExecutor(_PARALLEL_PARTS) as pool:

        def fetch(start: int) -> None:
            part = get(uri, (start, PART_BYTES), etag=etag)
            if len(part) != min(PART_BYTES, size - start):
                raise _DamagedError(f"{len(part)} bytes at {start} of an object of {size}")
            os.pwrite(file.fileno(), part, start)

        list(pool.map(fetch, range(0, size, PART_BYTES)))


def _write(uri: str, data: bytes, write: Callable[[Any, dict[str, str]], Any], *, if_absent: bool) -> bool:
    """`write(client, condition)` with retries; whether what lies there now is ours."""

    def once(client: Any, attempt: int) -> bool:
        if if_absent and _UNCONDITIONAL and head(uri) is not None:
            return attempt > 0 and get(uri) == data
        try:
            write(client, {"IfNoneMatch": "*"} if if_absent and not _UNCONDITIONAL else {})
        except _client_error() as error:
            if if_absent and not _UNCONDITIONAL and _status(error) in _NO_CONDITIONS:
                _UNCONDITIONAL.append(uri)
                logger.warning(
                    "storage: the store of '%s' knows no If-None-Match (%d), so every object is asked for before it is "
                    "written; of two processes that write one at once the later one wins.", uri, _status(error),
                )  # fmt: skip
                return once(client, attempt)
            if _status(error) not in _IS_THERE and error.response["Error"].get("Code") != "NoSuchUpload":
                raise
            # Somebody was first; or an earlier try of ours has done it and only its answer was lost.
            return attempt > 0 and get(uri) == data
        return True

    return call("writing", uri, once)


def _put_parts(uri: str, described: dict[str, Any], data: bytes, *, if_absent: bool) -> bool:
    algorithm = {} if _checksums_only_where_required() else {"ChecksumAlgorithm": "SHA256"}
    started = call("starting to write", uri, lambda c, _: c.create_multipart_upload(**described, **algorithm))
    upload = {"Bucket": described["Bucket"], "Key": described["Key"], "UploadId": started["UploadId"]}

    def send(number: int) -> dict[str, Any]:
        body = data[(number - 1) * PART_BYTES : number * PART_BYTES]
        checksum = _checksum(body)
        sent = call(
            f"writing part {number} of", uri,
            lambda c, _: c.upload_part(**upload, PartNumber=number, Body=body, **checksum),
        )  # fmt: skip
        checksum.pop("ContentMD5", None)
        return {"PartNumber": number, "ETag": sent["ETag"], **checksum}

    done = False
    try:
        with ThreadPoolExecutor(_PARALLEL_PARTS) as pool:
            parts = {"Parts": list(pool.map(send, range(1, -(-len(data) // PART_BYTES) + 1)))}

        def complete(client: Any, more: dict[str, str]) -> None:
            client.complete_multipart_upload(**upload, MultipartUpload=parts, **more)

        done = _write(uri, data, complete, if_absent=if_absent)
    finally:
        if not done:  # parts of an upload that nobody completes would be paid for forever
            with contextlib.suppress(Exception):  # what counts is why it was given up
                _client().abort_multipart_upload(**upload)
    return done


def _checksum(data: bytes) -> dict[str, str]:
    """What lets the store check that all bytes arrived.

    Stores of other makers may refuse the newer headers; where `AWS_REQUEST_CHECKSUM_CALCULATION` says so, the header
    that all of them know is sent.
    """
    if _checksums_only_where_required():
        return {"ContentMD5": _base64(hashlib.md5(data, usedforsecurity=False).digest())}
    return {"ChecksumSHA256": _base64(hashlib.sha256(data).digest())}


def _checksums_only_where_required() -> bool:
    return str(_client().meta.config.request_checksum_calculation).lower() == "when_required"


def _transient(error: Exception) -> str:
    """What to say of an error that may pass; empty for one that will not."""
    from botocore import exceptions
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    if isinstance(error, exceptions.ClientError):
        status, code = _status(error), str(error.response["Error"].get("Code", ""))
        passing = (status >= 500 and status not in _NO_CONDITIONS) or status in _PASSING_STATUS
        passing = passing or code in {"RequestTimeout", "SlowDown"}
        return f"{status} {code}".removesuffix(f" {status}") if passing else ""
    if isinstance(error, _DamagedError):
        return str(error)
    passing_kinds = (
        exceptions.HTTPClientError, exceptions.ConnectionError, exceptions.IncompleteReadError,
        exceptions.FlexibleChecksumError, ResponseParserError, HTTPError,
    )  # fmt: skip
    return " ".join(str(error).split()).rstrip(".") if isinstance(error, passing_kinds) else ""


def _client() -> Any:
    with _LOCK:
        # Per process: a fork that used its parent's sockets would read the other one's answers.
        return connect(os.getpid())


@functools.lru_cache(maxsize=1)
def connect(_: int) -> Any:
    """The client of a process (by its id)."""
    try:
        import boto3
        from botocore.config import Config
    except ModuleNotFoundError:
        raise DataError("storage: s3:// needs the extra `s3`, install mobileclip-pipelines[s3].") from None
    timeout = float(os.environ.get("MOBILECLIP_STORAGE_TIMEOUT", "60"))
    # One try each: `retried` counts them, so that tries and waits are bounded in one place.
    config = Config(retries={"total_max_attempts": 1}, connect_timeout=min(10, timeout), read_timeout=timeout)
    return boto3.session.Session().client("s3", config=config)


def _status(error: Any) -> int:
    return int(error.response["ResponseMetadata"]["HTTPStatusCode"])


def _base64(digest: bytes) -> str:
    return b64encode(digest).decode()


def _client_error() -> type[Any]:
    from botocore.exceptions import ClientError

    return ClientError  # type: ignore[no-any-return]
