"""Keys that were called otherwise in an earlier release.

A file with an old key is refused with the new name, and `mobileclip params FILE` writes it with the new one. A change
of meaning is not a rename: such a key stays unknown.
"""

import copy
from collections.abc import Mapping
from typing import Any

RENAMED: dict[str, str] = {}
"""Old dotted key to the new one; both in the same section of a stage. No items of lists."""


def renamed_to(key: str) -> str:
    """The present name of a dotted key; empty where it was never another."""
    return RENAMED.get(key, "")


def upgrade(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Move the values of renamed keys to their new names.

    Args:
        values: Sections as a file holds them. A new key that is there already keeps its value.

    Returns:
        The sections, and the pairs (old, new) that were moved.
    """
    upgraded, moved = copy.deepcopy(dict(values)), []
    for old, new in RENAMED.items():
        holder, last = _holder(upgraded, old, make=False)
        if holder is None or last not in holder:
            continue
        value = holder.pop(last)
        target, name = _holder(upgraded, new, make=True)
        if target is not None:
            target.setdefault(name, value)
            moved.append((old, new))
    return upgraded, moved


def _holder(values: dict[str, Any], dotted: str, *, make: bool) -> tuple[dict[str, Any] | None, str]:
    *path, last = dotted.split(".")
    place: Any = values
    for part in path:
        if make and isinstance(place, dict):
            place.setdefault(part, {})
        place = place.get(part) if isinstance(place, dict) else None
    return (place if isinstance(place, dict) else None), last
