"""Local paths and `s3://` behind one small interface; the only file that imports boto3.

A URI is a local path or `s3://bucket/key`. Every write appears whole or not at all, also after a kill.
"""

import contextlib
import functools
import hashlib
import os
import posixpath
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mobileclip.errors import DataError, IntegrityError

_CHUNK_BYTES = 1 << 20


def is_s3(uri: str | Path) -> bool:
    """Whether the URI names an object store."""
    return str(uri).startswith("s3://")


def join(base: str | Path, *parts: str) -> str:
    """Join and normalize: `join("a/b", "../c")` is `a/c`; an absolute or `s3://` part starts anew."""
    text = str(base)
    for part in parts:
        if is_s3(part) or (is_s3(text) and os.path.isabs(part)):  # noqa: PTH117 - a string, maybe a URI
            text = part
        elif is_s3(text):
            bucket, key = _bucket_key(text)
            text = f"s3://{bucket}/" + posixpath.normpath(posixpath.join("/", key, part)).lstrip("/")
        else:
            text = os.path.join(text, part)  # noqa: PTH118 - normpath below resolves `..`, Path would keep it
    return text if is_s3(text) else os.path.normpath(text)


def relative(uri: str, start: str) -> str:
    """The path of `uri` as seen from the folder `start`; whole where they share no root."""
    if is_s3(uri) != is_s3(start) or (is_s3(uri) and _bucket_key(uri)[0] != _bucket_key(start)[0]):
        return uri
    if is_s3(uri):
        return posixpath.relpath("/" + _bucket_key(uri)[1], "/" + _bucket_key(start)[1])
    return Path(os.path.relpath(uri, start)).as_posix()


def exists(uri: str | Path) -> bool:
    """Whether the file or object is there."""
    if not is_s3(uri):
        return Path(uri).exists()
    bucket, key = _bucket_key(str(uri))
    try:
        _s3().head_object(Bucket=bucket, Key=key)
    except _client_error() as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
            return False
        raise
    return True


def read_bytes(uri: str | Path, *, sha256: str = "") -> bytes:
    """Read a whole file or object and check it.

    Args:
        uri: What to read.
        sha256: Expected digest; empty = not checked.

    Raises:
        DataError: It is not there.
        IntegrityError: The digest differs.
    """
    if is_s3(uri):
        bucket, key = _bucket_key(str(uri))
        try:
            data = bytes(_s3().get_object(Bucket=bucket, Key=key)["Body"].read())
        except _client_error() as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                raise DataError(f"data: no object '{uri}'.") from None
            raise
    else:
        try:
            data = Path(uri).read_bytes()
        except FileNotFoundError:
            raise DataError(f"data: no file '{uri}'.") from None
    if sha256 and (got := hashlib.sha256(data).hexdigest()) != sha256:
        raise IntegrityError(f"{uri}: sha256 is {got}, want {sha256}; the file is damaged or was replaced.")
    return data


def write_bytes(uri: str | Path, data: bytes) -> None:
    """Write a file or object whole, replacing what was there."""
    if is_s3(uri):
        bucket, key = _bucket_key(str(uri))
        _s3().put_object(Bucket=bucket, Key=key, Body=data)
        return
    with _temporary(Path(uri), data) as temporary:
        temporary.replace(uri)


def put_if_absent(uri: str | Path, data: bytes) -> bool:
    """Write unless something is there already.

    Returns:
        Whether this call wrote it. `False` leaves the first writer's bytes untouched. A store that ignores
        `If-None-Match` may let a second writer replace a commit record; data keys carry their digest, so a
        record always points at whole, matching bytes either way.
    """
    if is_s3(uri):
        bucket, key = _bucket_key(str(uri))
        try:
            _s3().put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
        except _client_error() as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] in {409, 412}:
                return False
            raise
        return True
    with _temporary(Path(uri), data) as temporary:
        try:
            os.link(temporary, uri)
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
    return True


def delete(uri: str | Path) -> None:
    """Remove a file or object; nothing there is fine, too."""
    if is_s3(uri):
        bucket, key = _bucket_key(str(uri))
        _s3().delete_object(Bucket=bucket, Key=key)
        return
    Path(uri).unlink(missing_ok=True)


def list_names(uri: str | Path) -> list[str]:
    """Sorted names directly below a folder or prefix; empty where there is none."""
    if not is_s3(uri):
        folder = Path(uri)
        return sorted(p.name for p in folder.iterdir() if p.suffix != ".tmp") if folder.is_dir() else []
    bucket, key = _bucket_key(str(uri))
    prefix = key.rstrip("/") + "/" if key else ""
    names: set[str] = set()
    for page in _s3().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        names |= {item["Key"].removeprefix(prefix).split("/")[0] for item in page.get("Contents", [])}
    return sorted(names)


def list_files(uri: str | Path) -> list[str]:
    """Sorted names of all files below a folder or prefix, relative to it; files being written are left out."""
    if not is_s3(uri):
        root = Path(uri)
        found = (p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file() and p.suffix != ".tmp")
        return sorted(found)
    bucket, key = _bucket_key(str(uri))
    prefix = key.rstrip("/") + "/" if key else ""
    names: set[str] = set()
    for page in _s3().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        names |= {item["Key"].removeprefix(prefix) for item in page.get("Contents", [])}
    return sorted(name for name in names if not name.endswith("/"))


def local_copy(uri: str | Path, *, sha256: str = "") -> Path:
    """A local path that holds these bytes: the file itself, or a cached download checked against `sha256`."""
    if not is_s3(uri):
        path = Path(uri)
        if not path.exists():
            raise DataError(f"data: no file '{uri}'.")
        return path
    cache = Path(os.environ.get("MOBILECLIP_CACHE", Path(tempfile.gettempdir()) / "mobileclip-cache"))
    name = sha256 or hashlib.sha256(str(uri).encode()).hexdigest()
    path = cache / name[:2] / f"{name}-{posixpath.basename(str(uri))}"
    if not (sha256 and path.exists()):
        write_bytes(path, read_bytes(uri, sha256=sha256))
    return path


def local_dir(uri: str | Path) -> Path:
    """A local folder with all files below a folder or prefix (small ones: models, programs, reports)."""
    if not is_s3(uri):
        if not Path(uri).is_dir():
            raise DataError(f"data: no folder '{uri}'.")
        return Path(uri)
    bucket, key = _bucket_key(str(uri).rstrip("/"))
    root = Path(tempfile.mkdtemp(prefix="mobileclip-"))
    found = False
    for page in _s3().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key + "/"):
        for item in page.get("Contents", []):
            found = True
            write_bytes(root / item["Key"].removeprefix(key + "/"), read_bytes(f"s3://{bucket}/{item['Key']}"))
    if not found:
        raise DataError(f"data: nothing below '{uri}'.")
    return root


def digest_file(path: Path) -> str:
    """The sha256 of a local file."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def _temporary(target: Path, data: bytes) -> Iterator[Path]:
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    path = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        path.chmod(0o644)
        yield path
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _bucket_key(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


@functools.lru_cache(maxsize=1)
def _s3() -> Any:
    try:
        import boto3
        from botocore.config import Config
    except ModuleNotFoundError:
        raise DataError("storage: s3:// needs the extra `s3`, install mobileclip-pipelines[s3].") from None
    retries = Config(retries={"max_attempts": 8, "mode": "adaptive"}, connect_timeout=10, read_timeout=60)
    return boto3.client("s3", config=retries)


def _client_error() -> type[Any]:
    from botocore.exceptions import ClientError

    return ClientError  # type: ignore[no-any-return]
