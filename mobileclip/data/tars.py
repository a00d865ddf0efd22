"""Foreign tars: where the members of each sample lie, without unpacking anything and without reading a picture."""

import bz2
import gzip
import hashlib
import lzma
import tarfile
import zlib
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from mobileclip import storage
from mobileclip.errors import DataError
from mobileclip.storage.walk import is_hidden

_OPENERS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_CHUNK = 1 << 20
_SMALL = 64 << 20  # what may be inflated of a small file whatever the factor


@dataclass(frozen=True)
class Span:
    """Bytes within a local file."""

    path: str
    offset: int
    size: int

    def read(self) -> bytes:
        """The bytes.

        Raises:
            DataError: The file changed since it was looked at.
        """
        try:
            with Path(self.path).open("rb") as handle:
                handle.seek(self.offset)
                data = handle.read(self.size)
        except OSError as error:
            raise DataError(f"data: '{self.path}' cannot be read: {error.strerror}.") from None
        if len(data) != self.size:
            raise DataError(f"data: '{self.path}' became shorter while it was read.")
        return data


@dataclass(frozen=True)
class Entry:
    """One sample of a tar.

    Attributes:
        key: Folder and base name up to its first dot, as in the tar; never used as a path.
        members: Spans by extension (lower case, `txt`, `paug.json`).
        fault: Why the sample cannot be used; empty if it can.
    """

    key: str
    members: dict[str, Span] = field(default_factory=dict)
    fault: str = ""


class UnusableTarError(DataError):
    """A whole tar that is no data: a bomb, or one whose headers cannot be meant."""


def is_tar(name: str) -> bool:
    """Whether a file is a tar by its name, compressed or not."""
    return name.lower().endswith(_TARS)


def find_tars(uri: str) -> list[tuple[str, str]]:
    """Name relative to `uri` and URI of every tar at or below it, sorted by name; hidden files are left out."""
    if is_tar(uri) and (storage.is_s3(uri) or Path(uri).is_file()):
        return [(uri.rpartition("/")[2], uri)]
    names = [name for name in storage.list_files(uri) if is_tar(name) and not is_hidden(name)]
    return [(name, storage.join(uri, name)) for name in names]


def scan(
    path: Path, *, name: str, where: str, scratch: Path, images: Container[str] = (), max_inflation: float = 50.0
) -> Iterator[Entry]:
    """Samples of one tar, grouped as webdataset does: by everything before the first dot of the base name.

    A dot within a name (`22.05.jpg` and `22.05.txt`) is told from an extension of two parts by what lies beside it.

    Args:
        path: Local tar, compressed or not; tars may follow each other in it.
        name: Its name in messages.
        where: Key that the messages name.
        scratch: Folder for what is inflated.
        images: Extensions of images, by which names with dots are told apart; without, all end at their first dot.
        max_inflation: A compressed tar may grow by this factor, or to 64 MiB.

    Raises:
        DataError: No tar, or cut, also where it is cut between two members.
        UnusableTarError: It inflates beyond the bound, or a header holds impossible numbers.
    """
    try:
        plain = _inflate(path, scratch, max_inflation)
        found: dict[str, Entry] = {}
        for info in _members(plain):
            _add(found, info, str(plain))
    except (OverflowError, RecursionError, MemoryError) as error:
        raise UnusableTarError(f"{where}: '{name}' has a damaged header: {_reason(error)}.") from None
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{where}: '{name}' is no readable tar: {_reason(error)}.") from None
    except _BombError as error:
        raise UnusableTarError(f"{where}: '{name}' {error}") from None
    for entry in found.values():
        yield from dotted(entry, images) if images else (entry,)


def _reason(error: BaseException) -> str:
    return str(error).partition("\n")[0].rstrip(":.") or type(error).__name__


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    """Members of a tar and of all that were appended to it with their own end marks.

    tarfile ends in silence at a header that is damaged, and at the first end mark.
    """
    start: int | None = 0
    with path.open("rb") as handle:
        while start is not None:
            handle.seek(start)
            with tarfile.open(fileobj=handle, mode="r:") as tar:
                yield from tar
                end = tar.offset
            handle.seek(end)
            block = handle.read(tarfile.BLOCKSIZE)
            if not block:
                raise tarfile.ReadError("its end mark is missing, the file is cut")
            if block.strip(b"\0"):
                raise tarfile.ReadError(f"the header at byte {end} is damaged")
            start = _next_block(handle)


def _next_block(handle: IO[bytes]) -> int | None:
    """Where the next block lies that is not all zeros; nothing at the end of the file."""
    while chunk := handle.read(tarfile.RECORDSIZE):
        rest = chunk.lstrip(b"\0")
        if rest:
            skipped = (len(chunk) - len(rest)) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
            return handle.tell() - len(chunk) + skipped
    return None


def dotted(entry: Entry, images: Container[str]) -> Iterator[Entry]:
    """The samples of an entry whose members have dots in their names.

    An image `05.jpg` with a `05.txt` or `05.json` of its own is a sample. Where there is no image besides, one with
    another's text (`x.input.jpg`, `x.txt`) is that text's; several are samples without a text.
    """
    prefixes: dict[str, str] = {}  # of images whose extension has several parts
    for extension in entry.members:
        prefix, dot, last = extension.rpartition(".")
        if dot and last in images:
            prefixes.setdefault(prefix, extension)
    plain = any(extension in images for extension in entry.members)
    own = {p for p in prefixes if entry.members.keys() & {f"{p}.txt", f"{p}.json"}}
    rest = [p for p in prefixes if p not in own]
    if rest and not plain:
        if len(rest) == 1 and entry.members.keys() & {"txt", "json"}:
            extension = prefixes[rest[0]]
            renamed = {extension.rpartition(".")[2]: entry.members[extension], **entry.members}
            del renamed[extension]
            entry = Entry(entry.key, renamed, entry.fault)
        else:
            own |= set(rest)
    left = dict(entry.members)
    for prefix in [p for p in prefixes if p in own]:
        taken = {e: span for e, span in entry.members.items() if e.rpartition(".")[0] == prefix}
        left = {e: span for e, span in left.items() if e not in taken}
        members = {e.rpartition(".")[2]: span for e, span in taken.items()}
        yield Entry(f"{entry.key}.{prefix}", members, entry.fault)
    if left or not own:
        yield Entry(entry.key, left, entry.fault)


def _add(found: dict[str, Entry], info: tarfile.TarInfo, path: str) -> None:
    folder, _, base = info.name.rpartition("/")
    stem, _, extension = base.partition(".")
    if info.isdir() or not stem or not extension or is_hidden(info.name.removeprefix("./")):
        return
    if info.size < 0 or info.offset_data < 0:
        raise OverflowError(f"a size of {info.size} bytes")
    key = f"{folder}/{stem}".removeprefix("./").removeprefix("/")
    entry = found.setdefault(key, Entry(key))
    prefix, dot, last = extension.rpartition(".")
    extension = f"{prefix}{dot}{last.lower()}"
    fault = ""
    if not info.isreg() or info.issparse():
        fault = f"its '.{extension}' is a link or a sparse file"
    elif extension in entry.members:
        fault = f"the tar has two members '{base}'"
    if fault:
        found[key] = Entry(key, entry.members, entry.fault or fault)
        return
    entry.members[extension] = Span(path, info.offset_data, info.size)


class _BombError(Exception):
    """What is inflated passes its bound."""


def copy_bounded(source: IO[bytes], sink: IO[bytes], *, limit: int) -> int:
    """Copy a stream of at most `limit` bytes; returns how many it had.

    Raises:
        OverflowError: It holds more.
    """
    total = 0
    while chunk := source.read(_CHUNK):
        total += len(chunk)
        if total > limit:
            raise OverflowError(f"more than {limit} bytes")
        sink.write(chunk)
    return total


def inflated_limit(size: int, max_inflation: float) -> int:
    """Most bytes that `size` compressed bytes may become."""
    return max(_SMALL, int(size * max_inflation))


def _inflate(path: Path, scratch: Path, max_inflation: float) -> Path:
    """The tar itself, or an inflated copy: places within a compressed file cannot be sought."""
    with path.open("rb") as handle:
        opener = _OPENERS.get(handle.read(2))
    if opener is None:
        return path
    scratch.mkdir(parents=True, exist_ok=True)
    target = scratch / f"{hashlib.sha256(str(path).encode(errors='surrogateescape')).hexdigest()[:16]}.tar"
    limit = inflated_limit(path.stat().st_size, max_inflation)
    try:
        with opener(path, "rb") as source, target.open("wb") as sink:
            copy_bounded(source, sink, limit=limit)
    except OverflowError:
        target.unlink()
        raise _BombError(
            f"inflates beyond {limit} bytes, want at most {max_inflation:g} times its size (prepare.max_inflation)."
        ) from None
    return target
