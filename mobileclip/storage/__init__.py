"""Local paths and `s3://` behind one small interface; the only package that imports boto3.

A URI is a local path or `s3://bucket/key`. Every write appears whole or not at all, also after a kill. Requests to an
object store are retried within bounds (`mobileclip.storage.retry`), every object is stored with its digest and checked
against it on each read, big ones travel in parts (`mobileclip.storage.s3`).
"""

import atexit
import contextlib
import hashlib
import os
import posixpath
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from mobileclip.errors import ConfigError, DataError, IntegrityError
from mobileclip.storage import cache, local, s3
from mobileclip.storage.checked import share, verify_local
from mobileclip.storage.local import digest_file
from mobileclip.storage.s3 import bucket_key

__all__ = [
    "check", "delete", "delete_tree", "digest_file", "exists", "fetched", "is_s3", "join", "list_files", "list_names",
    "list_sizes", "local_copy", "local_dir", "open_stream", "put_if_absent", "read_bytes", "read_range", "relative",
    "share", "tree_sizes", "verify_local", "write_bytes",
]  # fmt: skip


# A path takes one slash out of `gs://`. One letter alone is a drive.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_LOCAL = re.compile(r"local-dir:/|hf-hub:/")  # names of models, which never reach a store


def is_s3(uri: str | Path) -> bool:
    """Whether the URI names an object store.

    Raises:
        ConfigError: It has another scheme, which would be taken for a local folder.
    """
    text = str(uri)
    if text.startswith("s3://"):
        return True
    check(text, "uri")
    return False


def check(uri: str | Path, key: str) -> None:
    """Check that a URI is a local path or `s3://bucket/key`, before work is spent on it.

    Args:
        uri: What was given.
        key: Its name in the sentence.

    Raises:
        ConfigError: It has another scheme, or names no bucket.
    """
    text = str(uri)
    if text.startswith("s3://"):
        if not bucket_key(text)[0]:
            raise ConfigError(f"{key}: got '{text}', want s3://BUCKET/KEY.")
    elif (found := _SCHEME.match(text)) and not _LOCAL.match(text):
        scheme = found[0].rstrip(":/")
        remedy = {
            "file": "want the path alone",
            "gs": "want s3:// with Google's S3 interface (AWS_ENDPOINT_URL=https://storage.googleapis.com)",
            "minio": "want s3:// with AWS_ENDPOINT_URL",
        }.get(scheme.lower(), "want a local path or s3://BUCKET/KEY")
        if scheme.lower() == "s3":
            remedy = "want s3://BUCKET/KEY in small letters, and as text: a path loses one of the slashes"
        raise ConfigError(f"{key}: got '{text}', {remedy}.")


def join(base: str | Path, *parts: str) -> str:
    """Join and normalize: `join("a/b", "../c")` is `a/c`; an absolute or `s3://` part starts anew."""
    text = str(base)
    for part in parts:
        if is_s3(part) or (is_s3(text) and os.path.isabs(part)):  # noqa: PTH117 - a string, maybe a URI
            text = part
        elif is_s3(text):
            bucket, key = bucket_key(text)
            text = f"s3://{bucket}/" + posixpath.normpath(posixpath.join("/", key, part)).lstrip("/")
        else:
            text = os.path.join(text, part)  # noqa: PTH118 - normpath below resolves `..`, Path would keep it
    return text if is_s3(text) else os.path.normpath(text)


def relative(uri: str, start: str) -> str:
    """The path of `uri` as seen from the folder `start`; whole where they share no root."""
    if is_s3(uri) != is_s3(start) or (is_s3(uri) and bucket_key(uri)[0] != bucket_key(start)[0]):
        return uri
    if is_s3(uri):
        return posixpath.relpath("/" + bucket_key(uri)[1], "/" + bucket_key(start)[1])
    return Path(os.path.relpath(uri, start)).as_posix()


def exists(uri: str | Path) -> bool:
    """Whether the file or object is there.

    Raises:
        StorageError: The store does not say, also when asked again.
    """
    return s3.head(str(uri)) is not None if is_s3(uri) else Path(uri).exists()


def read_bytes(uri: str | Path, *, sha256: str = "") -> bytes:
    """Read a whole file or object and check it.

    Args:
        uri: What to read.
        sha256: Expected digest; an object is checked against the digest it was stored with in any case.

    Raises:
        DataError: It is not there.
        IntegrityError: The digest differs.
        StorageError: The disk or store does not give it, also when asked again.
    """
    data = s3.get(str(uri), sha256=sha256) if is_s3(uri) else local.read(Path(uri))
    if sha256 and (got := hashlib.sha256(data).hexdigest()) != sha256:
        raise IntegrityError(f"{uri}: sha256 is {got}, want {sha256}; the file is damaged or was replaced.")
    return data


def read_range(uri: str | Path, start: int, length: int) -> bytes:
    """Bytes `start`..`start + length` of a file or object; fewer where it ends before.

    Raises:
        DataError: It is not there.
        StorageError: The disk or store does not give it.
    """
    if is_s3(uri):
        return s3.get(str(uri), (start, length)) if length else b""
    try:
        with Path(uri).open("rb") as file:
            file.seek(start)
            return file.read(length)
    except FileNotFoundError:
        raise DataError(f"data: no file '{uri}'.") from None


def open_stream(uri: str | Path) -> BinaryIO:
    """A seekable binary stream; an object is fetched part by part as it is read, each part retried on its own.

    Raises:
        DataError: It is not there.
    """
    if not is_s3(uri):
        try:
            return Path(uri).open("rb")
        except FileNotFoundError:
            raise DataError(f"data: no file '{uri}'.") from None
    return s3.stream(str(uri))


def write_bytes(uri: str | Path, data: bytes) -> None:
    """Write a file or object whole, replacing what was there.

    Raises:
        StorageError: The disk is full, the store is down, or writing is forbidden.
    """
    if is_s3(uri):
        s3.put(str(uri), data)
    else:
        local.write(Path(uri), data)


def put_if_absent(uri: str | Path, data: bytes) -> bool:
    """Write unless something is there already.

    Returns:
        Whether this call wrote it. `False` leaves the first writer's bytes untouched. A store that ignores
        `If-None-Match` may let a second writer replace a commit record; data keys carry their digest, so a
        record always points at whole, matching bytes either way.

    Raises:
        StorageError: The disk is full, the store is down, or writing is forbidden.
    """
    return s3.put(str(uri), data, if_absent=True) if is_s3(uri) else local.write_if_absent(Path(uri), data)


def delete(uri: str | Path) -> None:
    """Remove a file or object; nothing there is fine, too."""
    if not is_s3(uri):
        Path(uri).unlink(missing_ok=True)
        return
    s3.delete(str(uri))


def delete_tree(uri: str | Path) -> None:
    """Remove a file or object, or a folder or prefix with all that lies below; nothing there is fine, too."""
    if not is_s3(uri) and Path(uri).is_dir() and not Path(uri).is_symlink():
        shutil.rmtree(uri)
        return
    delete(uri)
    for name in list_files(uri) if is_s3(uri) else []:
        delete(join(uri, name))


def list_names(uri: str | Path) -> list[str]:
    """Sorted names directly below a folder or prefix; empty where there is none."""
    if not is_s3(uri):
        folder = Path(uri)
        return sorted(p.name for p in folder.iterdir() if p.suffix != ".tmp") if folder.is_dir() else []
    prefix = bucket_key(str(uri).rstrip("/") + "/")[1]
    # With a delimiter the store sums up each sub-folder in one line, however many objects lie in it.
    return sorted(name.removeprefix(prefix).rstrip("/") for name, _ in s3.list_keys(str(uri), delimiter="/"))


def list_files(uri: str | Path) -> list[str]:
    """Sorted names of all files below a folder or prefix, relative to it; files being written are left out."""
    if not is_s3(uri):
        root = Path(uri)
        found = (p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file() and p.suffix != ".tmp")
        return sorted(found)
    prefix = bucket_key(str(uri).rstrip("/") + "/")[1]
    keys = (key.removeprefix(prefix) for key, _ in s3.list_keys(str(uri)))
    return sorted(name for name in keys if not name.endswith("/"))


def list_sizes(uri: str | Path) -> dict[str, int]:
    """Bytes of every file directly below a folder or prefix, by name."""
    if not is_s3(uri):
        return {name: Path(uri, name).stat().st_size for name in list_names(uri) if Path(uri, name).is_file()}
    prefix = bucket_key(str(uri).rstrip("/") + "/")[1]
    found = s3.list_keys(str(uri), delimiter="/")
    return {name.removeprefix(prefix): size for name, size in found if not name.endswith("/")}


def tree_sizes(uri: str | Path) -> dict[str, int]:
    """Bytes of every file below a folder or prefix by its name relative to it, those being written included."""
    if not is_s3(uri):
        root = Path(uri)
        return {p.relative_to(root).as_posix(): p.stat().st_size for p in sorted(root.rglob("*")) if p.is_file()}
    prefix = bucket_key(str(uri).rstrip("/") + "/")[1]
    found = s3.list_keys(str(uri))
    return {name.removeprefix(prefix): size for name, size in found if not name.endswith("/")}


def local_copy(uri: str | Path, *, sha256: str = "") -> Path:
    """A local path that holds these bytes: the file itself, or a cached download checked against `sha256`.

    A download stays in the cache at least as long as the path object that is returned.
    """
    if not is_s3(uri):
        path = Path(uri)
        if not path.exists():
            raise DataError(f"data: no file '{uri}'.")
        return path

    def size() -> int:
        return int((s3.head(str(uri)) or {}).get("ContentLength", 0))

    return cache.fetch(
        str(uri), lambda path: s3.download(str(uri), path, sha256=sha256), size=size, sha256=sha256
    )  # fmt: skip


def local_dir(uri: str | Path) -> Path:
    """A local folder with all files below a folder or prefix (small ones: models, programs, reports).

    A copy of what lies in an object store stays until the process ends.

    Raises:
        DataError: There is none, or an object's name leads out of it.
    """
    if not is_s3(uri):
        if not Path(uri).is_dir():
            raise DataError(f"data: no folder '{uri}'.")
        return Path(uri)
    names = list_files(uri)
    if not names:
        raise DataError(f"data: nothing below '{uri}'.")
    root = Path(tempfile.mkdtemp(prefix="mobileclip-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    for name in names:
        if ".." in PurePosixPath(name).parts or name.startswith("/"):
            raise DataError(f"data: '{uri}' has an object named '{name}', want a name that stays below it.")
        s3.download(join(uri, name), root / name)
    return root


@contextlib.contextmanager
def fetched(uri: str | Path) -> Iterator[Path]:
    """A folder as it is, or all that lies below a prefix in a local copy that is removed at the end.

    Raises:
        DataError: See `local_dir`.
    """
    root = local_dir(uri)
    try:
        yield root
    finally:
        if is_s3(uri):
            shutil.rmtree(root, ignore_errors=True)
