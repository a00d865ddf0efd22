"""Which files below a folder are data: one rule for sources, digests of raw inputs, the suite and searches."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# What archives, notebooks, desktops and network drives leave beside images.
_LEFT_BEHIND = frozenset(
    {"__macosx", "@eadir", "$recycle.bin", "system volume information", "thumbs.db", "desktop.ini"}
)


@dataclass(frozen=True)
class Found:
    """A file below a folder.

    Attributes:
        name: Relative to the folder, with slashes.
        path: Where it lies.
        fault: Why it cannot be read: it is a dangling link, a link out of the folder, a linked folder, no regular file.
        outside: It was reached through a link that leads out of the folder.
    """

    name: str
    path: Path
    fault: str = ""
    outside: bool = False


def is_hidden(name: str) -> bool:
    """Whether a relative name, or one of the folders in it, starts with a dot or is a known leftover (`__MACOSX`)."""
    return any(
        (part.startswith(".") and part not in {".", ".."}) or part.lower() in _LEFT_BEHIND for part in name.split("/")
    )


def walk(root: Path, *, follow_links: bool = False) -> list[Found]:
    """All files below a folder that are not hidden, sorted by their names' parts.

    Args:
        root: The folder; it may be a link itself.
        follow_links: Read linked folders and files that lie elsewhere. Without, they are found with a fault, as
            dangling links always are; a link to a file within the folder is read in any case.
    """
    found = list(_below(root, root.resolve(), "", (), follow_links=follow_links, outside=False))
    return sorted(found, key=lambda one: one.name.split("/"))


def check_link(root: Path, path: Path, *, follow_links: bool) -> str:
    """Why a file below `root` may not be read through the links on its way; empty if it may."""
    if follow_links or path.resolve().is_relative_to(root.resolve()):
        return ""
    return _OUTSIDE


_OUTSIDE = "is a link out of the folder (prepare.follow_links reads it)"


def _below(
    folder: Path, root: Path, prefix: str, above: tuple[Path, ...], *, follow_links: bool, outside: bool
) -> Iterator[Found]:
    here = folder.resolve()
    if here in above:
        yield Found(prefix.rstrip("/"), folder, "is a link to a folder above it", outside)
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            name, path = f"{prefix}{entry.name}", Path(entry.path)
            if is_hidden(entry.name) or entry.name.endswith(".tmp"):
                continue
            away = outside
            if entry.is_symlink():
                away = outside or not path.resolve().is_relative_to(root)
                fault = _link_fault(path, outside=away, follow_links=follow_links)
                if fault:
                    yield Found(name, path, fault, away)
                    continue
            if entry.is_dir():
                yield from _below(path, root, f"{name}/", (*above, here), follow_links=follow_links, outside=away)
            else:
                yield Found(name, path, "" if path.is_file() else "is no regular file", away)


def _link_fault(path: Path, *, outside: bool, follow_links: bool) -> str:
    if not path.exists():
        return "is a link to nothing"
    if follow_links:
        return ""
    if path.is_dir():
        return "is a linked folder (prepare.follow_links reads it)"
    return _OUTSIDE if outside else ""
