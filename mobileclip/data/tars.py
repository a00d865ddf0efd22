"""Foreign tars: where the members of each sample lie, without unpacking anything and without reading a picture."""

import bz2
import gzip
import hashlib
import lzma
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mobileclip import storage
from mobileclip.errors import DataError

_OPENERS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}


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


def find_tars(uri: str) -> list[tuple[str, str]]:
    """Name relative to `uri` and URI of every tar at or below it, sorted by name; hidden files are left out."""
    if uri.endswith(".tar") and (storage.is_s3(uri) or Path(uri).is_file()):
        return [(uri.rpartition("/")[2], uri)]
    names = [name for name in storage.list_files(uri) if name.endswith(".tar")]
    return [(name, storage.join(uri, name)) for name in names if not name.rpartition("/")[2].startswith(".")]


def scan(path: Path, *, name: str, where: str, scratch: Path) -> Iterator[Entry]:
    """Samples of one tar, grouped as webdataset does: by everything before the first dot of the base name.

    Args:
        path: Local tar, compressed or not.
        name: Its name in messages.
        where: Key that the messages name.
        scratch: Folder for what is inflated.

    Raises:
        DataError: No tar, or cut, also where it is cut between two members.
    """
    try:
        plain = _inflate(path, scratch)
        found: dict[str, Entry] = {}
        with tarfile.open(plain, "r:") as tar:
            for info in tar:
                _add(found, info, str(plain))
            _check_end(tar)
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        reason = str(error).partition("\n")[0].rstrip(":.") or type(error).__name__
        raise DataError(f"{where}: '{name}' is no readable tar: {reason}.") from None
    yield from found.values()


def _add(found: dict[str, Entry], info: tarfile.TarInfo, path: str) -> None:
    folder, _, base = info.name.rpartition("/")
    stem, _, extension = base.partition(".")
    if info.isdir() or not stem or not extension:
        return
    key = f"{folder}/{stem}".removeprefix("./").removeprefix("/")
    entry = found.setdefault(key, Entry(key))
    extension = extension.lower()
    fault = ""
    if not info.isreg() or info.issparse():
        fault = f"its '.{extension}' is a link or a sparse file"
    elif extension in entry.members:
        fault = f"the tar has two members '{base}'"
    if fault:
        found[key] = Entry(key, entry.members, entry.fault or fault)
        return
    entry.members[extension] = Span(path, info.offset_data, info.size)


def _inflate(path: Path, scratch: Path) -> Path:
    """The tar itself, or an inflated copy: places within a compressed file cannot be sought."""
    with path.open("rb") as handle:
        opener = _OPENERS.get(handle.read(2))
    if opener is None:
        return path
    scratch.mkdir(parents=True, exist_ok=True)
    target = scratch / f"{hashlib.sha256(str(path).encode()).hexdigest()[:16]}.tar"
    with opener(path, "rb") as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
    return target


def _check_end(tar: tarfile.TarFile) -> None:
    """A tar ends with blocks of zeros; cut between two members it would pass for a shorter one."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if not tar.fileobj.read(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("its end mark is missing, the file is cut")
