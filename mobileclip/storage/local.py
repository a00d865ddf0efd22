"""Local files that appear whole or not at all, and sentences for what a disk may refuse."""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from mobileclip.errors import DataError, StorageError

_CHUNK_BYTES = 1 << 20


def read(path: Path) -> bytes:
    """A whole file.

    Raises:
        DataError: It is not there.
        StorageError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"data: no file '{path}'.") from None
    except OSError as error:
        raise StorageError(f"storage: cannot read '{path}': {_reason(error)}.") from None


@contextlib.contextmanager
def temporary(target: Path) -> Iterator[Path]:
    """An empty file beside `target` under a name that no reader looks at; whoever writes it moves it into place.

    It is flushed to the disk by `publish` or `publish_if_absent`; on any error it is removed.

    Raises:
        StorageError: The disk is full, read-only or not ours; the sentence says which.
    """
    path: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        new = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
        os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))  # less the umask, unlike `mkstemp`
        path = new
        yield path
    except OSError as error:
        raise StorageError(f"storage: cannot write '{target}': {_reason(error)}.") from None
    finally:
        if path is not None:
            path.unlink(missing_ok=True)


def write(path: Path, data: bytes) -> None:
    """Write a file whole, replacing what was there."""
    with temporary(path) as new:
        _fill(new, data)
        new.replace(path)


def write_if_absent(path: Path, data: bytes) -> bool:
    """Write a file whole unless one is there; returns whether this call wrote it."""
    with temporary(path) as new:
        _fill(new, data)
        try:
            os.link(new, path)  # unlike a rename it never replaces
        except FileExistsError:
            return False
    return True


def seal(path: Path) -> None:
    """Flush a written file to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def digest_file(path: Path) -> str:
    """The sha256 of a local file."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _fill(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
    seal(path)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error) or type(error).__name__).rstrip(".")
