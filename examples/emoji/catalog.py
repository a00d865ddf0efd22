"""The concepts: one per emoji without skin tones and flags, with the names and tags people gave it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.emoji.archives import read_members
from mobileclip.errors import DataError

# Skin tones and hair pieces are parts of other emoji; flags are drawn the same by every artist.
LEFT_OUT_GROUPS = frozenset({"component", "flags"})
VARIATION_SELECTOR = 0xFE0F

_DATA = "package/en/data.json"
_MESSAGES = "package/en/messages.json"
_GROUPS = "package/meta/groups.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Concept:
    """What one emoji means; every artist draws it once at most.

    ``key`` is its code points (see :func:`code_point_key`), ``group`` and ``subgroup`` are readable
    names ("smileys & emotion", "smiling"), ``subgroup_key`` is Unicode's ("face-smiling").
    """

    key: str
    name: str
    tags: tuple[str, ...]
    group_key: str
    group: str
    subgroup_key: str
    subgroup: str


def code_point_key(sequence: str) -> str:
    """Turn ``0023-FE0F-20E3`` into ``23-20e3``: lower-case hex without padding and variation selector.

    The artists' file names differ in case, padding and in whether they keep U+FE0F, which asks for
    the colored form and carries no meaning.

    Raises:
        DataError: a part is no hexadecimal number, or nothing is left.
    """
    try:
        points = [int(part, 16) for part in sequence.split("-")]
    except ValueError as error:
        raise DataError(f"Code points {sequence!r} must be hexadecimal numbers joined by '-'.") from error
    kept = [f"{point:x}" for point in points if point != VARIATION_SELECTOR]
    if not kept:
        raise DataError(f"Code points {sequence!r} hold nothing but a variation selector.")
    return "-".join(kept)


def load_concepts(archive: Path) -> list[Concept]:
    """Read the concepts from the archive of ``emojibase-data``, in the order of their code points.

    Raises:
        DataError: a file is missing in the archive, or two emoji have the same key.
    """
    members = read_members(archive, select={_DATA, _MESSAGES, _GROUPS}.__contains__)
    absent = {_DATA, _MESSAGES, _GROUPS} - members.keys()
    if absent:
        raise DataError(f"Archive {archive.name} has no {', '.join(sorted(absent))}; emojibase-data has them.")
    return parse_concepts(
        json.loads(members[_DATA]), messages=json.loads(members[_MESSAGES]), groups=json.loads(members[_GROUPS])
    )


def parse_concepts(rows: list[dict[str, Any]], *, messages: dict[str, Any], groups: dict[str, Any]) -> list[Concept]:
    """Make concepts of emojibase rows, leaving out ungrouped letters, components and flags.

    Args:
        rows: ``data.json``: ``hexcode``, ``label``, ``tags`` and the numbers ``group`` and ``subgroup``.
        messages: ``messages.json``: the readable name of each group and subgroup key.
        groups: ``groups.json``: the key of each group and subgroup number.

    Raises:
        DataError: two emoji have the same key.
    """
    group_names = {row["key"]: row["message"] for row in messages["groups"]}
    subgroup_names = {row["key"]: row["message"] for row in messages["subgroups"]}
    concepts: dict[str, Concept] = {}
    for row in rows:
        group_key = groups["groups"].get(str(row.get("group")))
        if group_key is None or group_key in LEFT_OUT_GROUPS:
            continue
        subgroup_key = groups["subgroups"][str(row["subgroup"])]
        key = code_point_key(row["hexcode"])
        if key in concepts:
            raise DataError(f"Emoji {concepts[key].name!r} and {row['label']!r} have the same code points {key}.")
        concepts[key] = Concept(
            key=key,
            name=row["label"],
            tags=tuple(row.get("tags", ())),
            group_key=group_key,
            group=group_names[group_key],
            subgroup_key=subgroup_key,
            subgroup=subgroup_names[subgroup_key],
        )
    return [concepts[key] for key in sorted(concepts)]
