"""Reading members of zip and tar archives without trusting their names, links or sizes.

Members come back as bytes in memory: no archive decides where a file is written, and nothing in
it is executed.
"""

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO

from mobileclip.errors import DataError

MAX_MEMBER_BYTES = 256 * 1024**2

Select = Callable[[str], bool]


def check_member_name(name: str, *, archive: str) -> None:
    """Refuse a member name that could point outside the folder it is unpacked to.

    Raises:
        DataError: the name is absolute, climbs with ``..``, or holds a drive, backslash or null byte.
    """
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or any(char in name for char in "\\:\0"):
        raise DataError(
            f"Archive {archive} has the member {name!r}; only relative names inside the archive are accepted."
        )


def read_members(source: Path | bytes, *, select: Select, name: str | None = None) -> dict[str, bytes]:
    """Read the regular files that ``select`` accepts, from a zip, wheel or (compressed) tar.

    Every member's name is checked, also of those not selected: one hostile name condemns the archive.

    Args:
        source: a path, or the bytes of an archive that was itself a member.
        select: gets the member's name and says whether it is wanted.
        name: what to call the archive in errors; the file's name by default.

    Returns:
        Contents by member name, in the archive's order.

    Raises:
        DataError: not an archive, an unsafe name, a selected link, or a member over 256 MiB.
    """
    label = name or (source.name if isinstance(source, Path) else "in memory")
    with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as stream:
        try:
            if zipfile.is_zipfile(stream):
                stream.seek(0)
                return _read_zip(stream, select=select, archive=label)
            stream.seek(0)
            return _read_tar(stream, select=select, archive=label)
        except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
            raise DataError(f"Archive {label} cannot be read as zip or tar: {error}.") from error


def write_member(root: Path, *, name: str, content: bytes) -> Path:
    """Write one member below ``root``, refusing any name that would leave it; returns the path.

    Raises:
        DataError: the name is unsafe or leads outside ``root`` (through a link, for example).
    """
    check_member_name(name, archive=str(root))
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise DataError(f"Member {name!r} would be written to {path.resolve()}, outside of {root}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def _read_zip(stream: IO[bytes], *, select: Select, archive: str) -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    with zipfile.ZipFile(stream) as bundle:
        for info in bundle.infolist():
            check_member_name(info.filename, archive=archive)
            if not info.is_dir() and select(info.filename):
                with bundle.open(info) as member:
                    members[info.filename] = _read_bounded(member, member=info.filename, archive=archive)
    return members


def _read_tar(stream: IO[bytes], *, select: Select, archive: str) -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    with tarfile.open(fileobj=stream, mode="r:*") as bundle:
        for info in bundle:
            check_member_name(info.name, archive=archive)
            if info.isdir() or not select(info.name):
                continue
            member = bundle.extractfile(info) if info.isfile() else None
            if member is None:
                raise DataError(f"Archive {archive} has {info.name!r} as a link or device; a file is wanted.")
            members[info.name] = _read_bounded(member, member=info.name, archive=archive)
    return members


def _read_bounded(stream: IO[bytes], *, member: str, archive: str) -> bytes:
    content = stream.read(MAX_MEMBER_BYTES + 1)
    if len(content) > MAX_MEMBER_BYTES:
        raise DataError(f"Archive {archive} unpacks {member!r} to more than {MAX_MEMBER_BYTES} bytes.")
    return content
