"""A folder for indexes and inflated tars, so that memory does not grow with the data."""

import contextlib
import errno
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mobileclip import storage
from mobileclip.errors import StorageError

_FULL = frozenset({errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS})


@contextlib.contextmanager
def scratch(out: str) -> Iterator[Path]:
    """An empty folder, beside local outputs and removed at the end; what a killed run left there goes first.

    Raises:
        StorageError: The disk is full.
    """
    try:
        path = Path(tempfile.mkdtemp(prefix="mobileclip-")) if storage.is_s3(out) else Path(out) / ".scratch"
        known = path.parent.exists()
        try:
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
            if not known:  # a run that is refused leaves nothing
                with contextlib.suppress(OSError):
                    path.parent.rmdir()
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise StorageError(f"storage: cannot write '{out}': {error.strerror}.") from None
    except sqlite3.OperationalError as error:
        raise StorageError(f"storage: cannot write '{out}': {error}.") from None


def remove_partial(out: str) -> None:
    """Remove what a killed writer left half-written in a local folder that has one writer alone."""
    if not storage.is_s3(out) and Path(out).is_dir():
        for path in Path(out).glob(".*.tmp"):
            path.unlink(missing_ok=True)
