"""Downloads of an object store on this machine: private, checked, bounded, shared by the processes of one user.

`MOBILECLIP_CACHE` names the folder (default: `mobileclip` in the user's cache folder, `XDG_CACHE_HOME` or `~/.cache`),
`MOBILECLIP_CACHE_GB` how much it may hold (default 100). What was used longest ago goes first, and what a process uses
stays: each process lists it in a lease, a file that it holds locked, so the kernel ends a lease with its process.
"""

import contextlib
import fcntl
import os
import posixpath
import tempfile
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from hashlib import sha256 as _sha256
from pathlib import Path

from mobileclip.errors import ConfigError, StorageError
from mobileclip.storage import local
from mobileclip.storage.lock import locked

_LEASES, _LOCK = "leases", "lock"
_DEFAULT_GB = 100.0
_STALE_SECONDS = 86_400.0
_leases: dict[tuple[Path, int], int] = {}
"""Descriptors of this process's own leases, by folder and process id (a fork takes one of its own)."""
_checked: set[tuple[str, int, int, int]] = set()


class CachedPath(type(Path())):  # type: ignore[misc]
    """A file of the cache. It is in use, and stays, as long as this object lives."""


def fetch(uri: str, download: Callable[[Path], None], *, size: Callable[[], int], sha256: str = "") -> Path:
    """A local file with the object's bytes: the one in the cache where its digest is known and right, else a new one.

    Args:
        uri: The object.
        download: Writes it, whole and checked, to the path it gets.
        size: Gives its bytes; asked only where it has to be fetched.
        sha256: Expected digest. Without one the object is always fetched.

    Raises:
        StorageError: The folder cannot be written, or is somebody else's.
    """
    root = folder()
    name = sha256 or _sha256(uri.encode()).hexdigest()
    path = CachedPath(root / name[:2] / f"{name}-{posixpath.basename(uri)}")
    key = path.relative_to(root).as_posix()
    with locked(root / _LOCK):
        _note(root, f"+{key}")
    weakref.finalize(path, _note, root, f"-{key}").atexit = False
    if sha256 and _is_whole(path, sha256):
        os.utime(path)  # used now
        return path
    with locked(root / _LOCK):
        _make_room(root, size())
    download(path)
    if sha256:
        _checked.add(_identity(path))
    return path


def folder() -> Path:
    """The cache's folder, made for this user alone.

    Raises:
        StorageError: It cannot be made, or belongs to somebody else.
    """
    chosen = os.environ.get("MOBILECLIP_CACHE", "")
    if chosen:
        root = Path(chosen)
        with _one_sentence(root):
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
        return root.resolve()
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    root = home / "mobileclip"
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        usable = os.access(root, os.W_OK)
    except OSError:
        usable = False
    if not usable:  # a user without a home, as in containers
        root = Path(tempfile.gettempdir(), f"mobileclip-cache-{os.getuid()}")
        with _one_sentence(root):
            root.mkdir(mode=0o700, exist_ok=True)
    found = root.lstat()
    if found.st_uid != os.getuid() or root.is_symlink():
        raise StorageError(f"storage: the cache '{root}' is not yours, want a folder of your own in MOBILECLIP_CACHE.")
    if found.st_mode & 0o077:
        root.chmod(0o700)
    return root.resolve()


def limit() -> int:
    """Bytes that the cache may hold.

    Raises:
        ConfigError: `MOBILECLIP_CACHE_GB` is no number.
    """
    text = os.environ.get("MOBILECLIP_CACHE_GB") or str(_DEFAULT_GB)
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ConfigError(f"MOBILECLIP_CACHE_GB: got '{text}', want a number of gigabytes.")
    return int(value * 1e9)


def _is_whole(path: Path, sha256: str) -> bool:
    """Whether the file is there and has this digest; it is hashed at its first use in a process."""
    try:
        identity = _identity(path)
        if identity in _checked:
            return True
        if local.digest_file(path) != sha256:
            path.unlink()
            return False
    except OSError:
        return False
    _checked.add(identity)
    return True


def _identity(path: Path) -> tuple[str, int, int, int]:
    found = path.stat()
    return str(path), found.st_dev, found.st_ino, found.st_size


def _make_room(root: Path, size: int) -> None:
    """Remove what was used longest ago until this many bytes fit; what is in use stays, also where they do not."""
    files = []
    for path in root.glob("??/*"):
        with contextlib.suppress(OSError):
            found = path.stat()
            files.append((found.st_mtime, found.st_size, path))
    total, bound, used = sum(bytes_ for _, bytes_, _ in files), limit(), _in_use(root)
    for time_, bytes_, path in sorted(files):
        fresh = path.suffix == ".tmp" and time.time() - time_ < _STALE_SECONDS  # being downloaded, not left by a kill
        if total + size <= bound:
            break
        if not fresh and path.relative_to(root).as_posix() not in used:
            path.unlink(missing_ok=True)
            total -= bytes_


def _note(root: Path, line: str) -> None:
    """Add a line to this process's lease: `+NAME` where a use begins, `-NAME` where it ends."""
    with contextlib.suppress(OSError):  # at a process's end the cache itself may be gone
        descriptor = _leases.get((root, os.getpid()))
        if descriptor is None:
            place = root / _LEASES
            place.mkdir(mode=0o700, exist_ok=True)
            descriptor, _ = tempfile.mkstemp(dir=place, prefix=f"{os.getpid()}-")
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            _leases[root, os.getpid()] = descriptor
        os.write(descriptor, f"{line}\n".encode())


def _in_use(root: Path) -> set[str]:
    """What living processes use; the leases of dead ones are removed."""
    used: set[str] = set()
    for lease in (root / _LEASES).glob("*"):
        with contextlib.suppress(OSError), lease.open("r+", encoding="utf-8") as file:
            if _is_held(file.fileno()):
                counts = Counter[str]()
                for line in file.read().splitlines():
                    counts[line[1:]] += 1 if line.startswith("+") else -1
                used |= {name for name, count in counts.items() if count > 0}
            else:
                lease.unlink()
    return used


def _is_held(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


@contextlib.contextmanager
def _one_sentence(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"storage: cannot write the cache '{root}': {error.strerror or error}.") from None
