"""Local files that a manifest or record vouches for: hashed when they are first read, once per process tree.

A file is known by place, size, time of its last change and inode, so one that is replaced is hashed again. What was
found to be whole is marked in a folder that processes share which were forked from this one, so that loader workers
hash a shard once and not each for themselves. The folder goes with the process that made it.
"""

import atexit
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from mobileclip.errors import IntegrityError
from mobileclip.storage.cache import CachedPath
from mobileclip.storage.local import digest_file

_marks: list[Path] = []


def share() -> None:
    """Make the folder of marks, where there is none yet: before processes are forked that are to share it."""
    if not _marks:
        folder = Path(tempfile.mkdtemp(prefix="mobileclip-checked-"))
        _marks.append(folder)
        atexit.register(_sweep, folder, os.getpid())


def verify_local(path: Path, sha256: str) -> None:
    """Refuse a local file that is not the one vouched for.

    Args:
        path: The file.
        sha256: Its digest by manifest or record.

    Raises:
        IntegrityError: It has another one.
    """
    if isinstance(path, CachedPath):
        return  # hashed where it was fetched
    share()
    state = path.stat()
    known = f"{path.absolute()}|{state.st_size}|{state.st_mtime_ns}|{state.st_ino}|{sha256}"
    mark = _marks[0] / hashlib.sha256(known.encode()).hexdigest()
    if mark.exists():
        return
    got = digest_file(path)
    if got != sha256:
        raise IntegrityError(f"{path}: sha256 is {got}, want {sha256}; the file is damaged or was replaced.")
    _marks[0].mkdir(parents=True, exist_ok=True)  # temporary folders may be swept while a training runs
    mark.touch()


def _sweep(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # not a fork of it
        shutil.rmtree(folder, ignore_errors=True)
