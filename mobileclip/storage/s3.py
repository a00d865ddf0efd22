"""Objects of an S3 API: bounded retries, a digest on every object, parts for big ones.

Endpoint and credentials come from the usual AWS environment; `MOBILECLIP_STORAGE_TIMEOUT` is how long a silent
connection is waited for (seconds, default 60).
"""

import contextlib
import functools
import hashlib
import io
import os
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from mobileclip.errors import DataError, IntegrityError, StorageError
from mobileclip.storage import local
from mobileclip.storage.retry import retried

T = TypeVar("T")

# Larger objects are written and fetched in parts of this size (S3 takes 10,000 of at least 5 MiB).
PART_BYTES = 16 << 20
_PARALLEL_PARTS = 4
_PASSING_STATUS = frozenset({408, 409, 429})
_LOCK = threading.Lock()


class _DamagedError(Exception):
    """Bytes that do not match what the store says of them: they may come right at the next try."""


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


def get(uri: str, part: tuple[int, int] | None = None, *, etag: str = "") -> bytes:
    """A whole object, checked against the digest it was stored with, or (start, length) of it.

    Args:
        uri: The object.
        part: First byte and number of bytes; fewer come where the object ends before.
        etag: Refuse another version than this one.

    Raises:
        DataError: It is not there.
        StorageError: It does not come, also when asked again.
    """
    bucket, key = bucket_key(uri)
    more = {} if part is None else {"Range": f"bytes={part[0]}-{part[0] + part[1] - 1}"}
    more |= {"IfMatch": etag} if etag else {}

    def once(client: Any, _: int) -> bytes:
        found = client.get_object(Bucket=bucket, Key=key, **more)
        data = bytes(found["Body"].read())
        stored = found["Metadata"].get("sha256", "") if part is None else ""
        if stored and hashlib.sha256(data).hexdigest() != stored:
            raise _DamagedError
        return data

    return call("reading", uri, once)


def put(uri: str, data: bytes, *, if_absent: bool = False) -> bool:
    """Store an object with its digest; returns whether this call wrote it.

    Raises:
        StorageError: The store does not take it, also when asked again.
    """
    bucket, key = bucket_key(uri)
    digest = hashlib.sha256(data)
    described = {"Bucket": bucket, "Key": key, "Metadata": {"sha256": digest.hexdigest()}}
    condition = {"IfNoneMatch": "*"} if if_absent else {}
    if len(data) > PART_BYTES:
        return _put_parts(uri, described, data, condition)
    whole = {**described, "Body": data, "ChecksumSHA256": _base64(digest.digest()), **condition}
    return _write(uri, data, lambda client: client.put_object(**whole))


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
    wanted = sha256 or described["Metadata"].get("sha256", "")
    with local.temporary(path) as new:
        if size <= PART_BYTES:
            new.write_bytes(get(uri, etag=described["ETag"]))
        else:
            _fetch_parts(uri, new, size, described["ETag"])
        if wanted and (got := local.digest_file(new)) != wanted:
            raise IntegrityError(f"{uri}: sha256 is {got}, want {wanted}; the file is damaged or was replaced.")
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
        buffer[:length] = get(self._uri, (self._place, length), etag=self._etag) if length else b""
        self._place += length
        return length


def _fetch_parts(uri: str, path: Path, size: int, etag: str) -> None:
    with path.open("r+b") as file, ThreadPoolExecutor(_PARALLEL_PARTS) as pool:

        def fetch(start: int) -> None:
            os.pwrite(file.fileno(), get(uri, (start, PART_BYTES), etag=etag), start)

        list(pool.map(fetch, range(0, size, PART_BYTES)))


def _write(uri: str, data: bytes, write: Callable[[Any], Any]) -> bool:
    """`write(client)` with retries; whether what lies there now is ours."""

    def once(client: Any, attempt: int) -> bool:
        try:
            write(client)
        except _client_error() as error:
            if _status(error) != 412 and error.response["Error"].get("Code") != "NoSuchUpload":
                raise
            # Somebody was first; or an earlier try of ours has done it and only its answer was lost.
            return attempt > 0 and get(uri) == data
        return True

    return call("writing", uri, once)


def _put_parts(uri: str, described: dict[str, Any], data: bytes, condition: dict[str, str]) -> bool:
    started = call(
        "starting to write", uri, lambda c, _: c.create_multipart_upload(**described, ChecksumAlgorithm="SHA256")
    )
    upload = {"Bucket": described["Bucket"], "Key": described["Key"], "UploadId": started["UploadId"]}

    def send(number: int) -> dict[str, Any]:
        body = data[(number - 1) * PART_BYTES : number * PART_BYTES]
        checksum = _base64(hashlib.sha256(body).digest())
        sent = call(
            f"writing part {number} of", uri,
            lambda c, _: c.upload_part(**upload, PartNumber=number, Body=body, ChecksumSHA256=checksum),
        )  # fmt: skip
        return {"PartNumber": number, "ETag": sent["ETag"], "ChecksumSHA256": checksum}

    done = False
    try:
        with ThreadPoolExecutor(_PARALLEL_PARTS) as pool:
            parts = {"Parts": list(pool.map(send, range(1, -(-len(data) // PART_BYTES) + 1)))}
        done = _write(uri, data, lambda c: c.complete_multipart_upload(**upload, MultipartUpload=parts, **condition))
    finally:
        if not done:  # parts of an upload that nobody completes would be paid for forever
            with contextlib.suppress(Exception):  # what counts is why it was given up
                _client().abort_multipart_upload(**upload)
    return done


def _transient(error: Exception) -> str:
    """What to say of an error that may pass; empty for one that will not."""
    from botocore import exceptions
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    if isinstance(error, exceptions.ClientError):
        status, code = _status(error), str(error.response["Error"].get("Code", ""))
        passing = status >= 500 or status in _PASSING_STATUS or code in {"RequestTimeout", "SlowDown"}
        return f"{status} {code}".removesuffix(f" {status}") if passing else ""
    if isinstance(error, _DamagedError):
        return "bytes that do not match the digest they were stored with"
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
