"""MLflow's SQLite file: it appears whole, with all its tables, or not at all.

MLflow creates its tables and runs some fifty migrations in place. A process that is killed in between, or a second one
that starts meanwhile, leaves a file that MLflow refuses from then on. Here the first process makes the file under a
lock in a folder of its own and moves it into place.
"""

import contextlib
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path

from mobileclip.errors import ConfigError, StorageError
from mobileclip.storage.lock import locked

_URI = re.compile(r"sqlite(?:\+\w+)?:///(?P<path>[^?]+)")
_BUSY_SECONDS = 20.0


def ensure(uri: str, create: Callable[[str], None]) -> None:
    """Create the database that a tracking URI names, unless it is there; do nothing for URIs of other kinds.

    Args:
        uri: The tracking URI.
        create: Makes a whole database at the SQLite URI it gets, and closes it.

    Raises:
        ConfigError: The file is there and is half-made, damaged or no SQLite database.
        StorageError: The folder cannot be written.
    """
    found = _URI.fullmatch(uri)
    if found is None or found["path"].startswith(":memory:"):
        return
    path = Path(found["path"])
    if not _is_there(path):
        with locked(path.with_name(f"{path.name}.lock")):
            if not _is_there(path):  # another process may have been faster
                _create(path, create)
    _check(path)


def _is_there(path: Path) -> bool:
    """Whether anything was ever written to it: a first connection that is cut leaves an empty file."""
    return path.exists() and (not path.is_file() or path.stat().st_size > 0)


def _create(path: Path, create: Callable[[str], None]) -> None:
    prefix = f"{path.name}.new-"
    for left in path.parent.glob(f"{prefix}*"):  # of processes that were killed: we hold the lock
        shutil.rmtree(left, ignore_errors=True)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=prefix, ignore_cleanup_errors=True) as folder:
            new = Path(folder, path.name)
            create(f"sqlite:///{new.resolve()}")
            new.replace(path)
    except OSError as error:
        raise StorageError(f"storage: cannot write '{path}': {error.strerror or error}.") from None


def _check(path: Path) -> None:
    try:
        uri = f"{path.resolve().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            whole = "experiments" in tables and database.execute("SELECT 1 FROM experiments LIMIT 1").fetchone()
    except sqlite3.OperationalError:
        return  # busy or not readable: MLflow's own sentence names the cause
    except sqlite3.DatabaseError as error:
        raise ConfigError(
            f"tracking: '{path}' is damaged or no SQLite database ({error}), move it away and run again."
        ) from None
    if not whole:
        raise ConfigError(
            f"tracking: '{path}' is half-made (the process that created it was stopped) and holds no run, "
            "want it deleted; then run again."
        )
