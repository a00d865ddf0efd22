"""Images that lie in zip files: unpacked for the time of a run, to a bound."""

import shutil
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from mobileclip.data.tars import copy_bounded, inflated_limit
from mobileclip.errors import DataError
from mobileclip.storage.walk import is_hidden, walk


def unzipped(source: Path, scratch: Path, *, max_inflation: float, follow_links: bool) -> Path:
    """The source itself, or, where it is or holds zip files, a folder with their members and its own files.

    Members of `images.zip` come to lie beside it, in the folders that they name.

    Raises:
        DataError: A zip is damaged, inflates beyond the bound, or two files have one name.
    """
    if source.is_file():
        zips = {source.name: source} if source.suffix.lower() == ".zip" else {}
        others: dict[str, Path] = {}
    else:
        found = walk(source, follow_links=follow_links)
        zips = {one.name: one.path for one in found if not one.fault and one.name.lower().endswith(".zip")}
        others = {one.name: Path() if one.fault else one.path for one in found if one.name not in zips}
    if not zips:
        return source
    root = scratch / "unzipped"
    for name, path in others.items():
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        _place(path, target)
    for name, path in zips.items():
        _unpack(name, path, (root / name).parent, max_inflation)
    return root


def _place(path: Path, target: Path) -> None:
    """Put a file at another place, without a copy where the disk allows it; what cannot be read becomes a dead link."""
    if path == Path():
        target.symlink_to("unreadable")
        return
    try:
        target.hardlink_to(path.resolve())
    except OSError:  # another disk, or a file of somebody else
        shutil.copyfile(path, target)


def _unpack(name: str, path: Path, folder: Path, max_inflation: float) -> None:
    left = inflated_limit(path.stat().st_size, max_inflation)
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                member = info.filename.replace("\\", "/")
                if info.is_dir() or is_hidden(member):
                    continue
                if PurePosixPath(member).is_absolute() or ".." in member.split("/") or "\0" in member:
                    raise DataError(f"prepare.source: '{name}' has a member '{member}', want one that stays within.")
                target = folder / member
                if target.exists():
                    raise DataError(f"prepare.source: '{member}' of '{name}' is there already.")
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(info) as source, target.open("wb") as sink:
                    left -= copy_bounded(source, sink, limit=left)
    except OverflowError:
        raise DataError(
            f"prepare.source: '{name}' inflates beyond its bound, want at most {max_inflation:g} times its size "
            "(prepare.max_inflation)."
        ) from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, FileExistsError,
            NotADirectoryError) as error:  # fmt: skip
        raise DataError(f"prepare.source: '{name}' is no readable zip: {str(error).rstrip('.')}.") from None
