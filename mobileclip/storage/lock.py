"""A lock between processes on a local file; the kernel releases it when its holder ends, however it ends."""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from mobileclip.errors import StorageError


@contextlib.contextmanager
def locked(path: Path, *, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the lock of `path`; wait where another process holds it.

    The file stays: removing it would let a process that waits on the old file and one that makes a new file hold it at
    once. It names its last holder.

    Args:
        path: The lock file, made where it is missing.
        waiting: Called once with the holder ("process 12 on host a") before waiting.

    Raises:
        StorageError: The file cannot be made or locked.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise StorageError(f"storage: cannot write '{path}': {error.strerror}.") from None
    try:
        _acquire(descriptor, path, waiting)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, path: Path, waiting: Callable[[str], None] | None) -> None:
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is not None:
                waiting(_holder(descriptor))
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        raise StorageError(f"storage: cannot lock '{path}': {error.strerror}.") from None


def _holder(descriptor: int) -> str:
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {int(found['pid'])} on host {str(found['host'])[:100]}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
