"""The caption table and the ledgers: what a user would hand to ``prepare``, and who owns what."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from examples.emoji.captions import alt_texts, descriptions, load_wording
from examples.emoji.catalog import Concept
from examples.emoji.packages import Package
from examples.emoji.splits import group_concepts, is_described, part_of, shared_pictures
from mobileclip import storage
from mobileclip.errors import DataError

TABLE = "captions.jsonl"
SETS = "sets.json"
LICENSES = "LICENSES.json"

Row = dict[str, Any]


def write_tables(out: Path, *, concepts: list[Concept], packages: list[Package]) -> dict[str, Any]:
    """Write ``captions.jsonl``, ``sets.json`` and ``LICENSES.json`` for the pictures in ``out/images``.

    Returns:
        What ``sets.json`` holds: counts by split.

    Raises:
        DataError: an artist has no pictures there.
    """
    artists = [package for package in packages if package.role == "artist"]
    drawn = {str(artist.picture_set): _keys(out / "images" / str(artist.picture_set)) for artist in artists}
    pictures = shared_pictures(out / "images" / name for name in drawn)
    groups = group_concepts(concepts, pictures=pictures)
    rows = caption_rows(concepts, artists=artists, drawn=drawn, groups=groups)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    storage.write_bytes(out / TABLE, lines.encode())
    sets = count_sets(rows)
    _write_json(out / SETS, sets)
    _write_json(out / LICENSES, license_rows(packages, drawn=drawn, rows=rows))
    return sets


def caption_rows(
    concepts: list[Concept], *, artists: list[Package], drawn: Mapping[str, set[str]], groups: Mapping[str, str]
) -> list[Row]:
    """One row per picture that is used.

    Training artists give the train and validation pictures of those concepts. The evaluation artist gives
    the test pictures: of train concepts (``seen``) and of unseen concepts. Nothing else is listed.

    Args:
        concepts: all concepts.
        artists: the picture packages with their ``use``.
        drawn: concept keys that each artist drew.
        groups: group key by concept key.
    """
    wording = load_wording()
    rows = []
    for artist in artists:
        name = str(artist.picture_set)
        for concept in concepts:
            part = part_of(groups[concept.key])
            split = {"train": "train", "validation": "validation"}.get(part)
            if artist.use == "evaluation":
                split = None if part == "validation" else "test"
            if split is None or concept.key not in drawn[name]:
                continue
            row: Row = {
                "image": f"images/{name}/{concept.key}.png",
                "captions": alt_texts(concept),
                "split": split,
                "group_key": groups[concept.key],
                "concept": concept.key,
                "name": concept.name,
                "artist": name,
                "group": concept.group,
                "subgroup": concept.subgroup,
                "seen": part == "train",
                "license": artist.license,
            }
            if split != "train" or is_described(concept.key):
                row["descriptions"] = descriptions(concept, wording=wording)
            rows.append(row)
    return rows


def count_sets(rows: Iterable[Row]) -> dict[str, Any]:
    """Count pictures, concepts, artists and groups of every set; test falls into seen and unseen concepts."""
    sets: dict[str, list[Row]] = {"train": [], "validation": [], "test_seen": [], "test_unseen": []}
    for row in rows:
        suffix = ("_seen" if row["seen"] else "_unseen") if row["split"] == "test" else ""
        sets[row["split"] + suffix].append(row)
    return {name: _count(members) for name, members in sets.items()}


def license_rows(
    packages: list[Package], *, drawn: Mapping[str, set[str]], rows: Iterable[Row]
) -> list[dict[str, Any]]:
    """The license ledger: one entry per package, with how many of its pictures were drawn and are used."""
    used = Counter(row["artist"] for row in rows)
    ledger = []
    for package in packages:
        entry: dict[str, Any] = {"set": package.picture_set or package.name, "role": package.role}
        entry |= {"license": package.license, "attribution": package.attribution, "homepage": package.homepage}
        entry |= {"package": package.name, "registry": package.registry, "version": package.version}
        entry["sha256"] = package.sha256
        if package.picture_set is not None:
            entry |= {"pictures": len(drawn[package.picture_set]), "pictures_used": used[package.picture_set]}
        ledger.append(entry)
    return ledger


def _count(rows: list[Row]) -> dict[str, Any]:
    groups = Counter(row["group"] for row in rows)
    return {
        "pictures": len(rows),
        "concepts": len({row["concept"] for row in rows}),
        "captions": sum(len(row["captions"]) for row in rows),
        "pictures_with_descriptions": sum("descriptions" in row for row in rows),
        "pictures_by_artist": dict(sorted(Counter(row["artist"] for row in rows).items())),
        "pictures_by_group": dict(sorted(groups.items())),
        "subgroups": len({(row["group"], row["subgroup"]) for row in rows}),
        "largest_group_share": round(max(groups.values(), default=0) / max(len(rows), 1), 4),
    }


def _keys(folder: Path) -> set[str]:
    keys = {path.stem for path in folder.glob("*.png")}
    if not keys:
        raise DataError(f"Folder {folder} has no PNG pictures; rendering puts them there.")
    return keys


def _write_json(path: Path, value: Any) -> None:
    storage.write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())
