"""COCO captions: one JSON file per split with `images`, `annotations` (several captions per image) and `licenses`."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mobileclip.errors import DataError

_KEPT = ("flickr_url", "coco_url", "date_captured")
_SPLITS = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "minival": "validation", "dev": "validation", "test": "test", "testing": "test",
}  # fmt: skip


def find(root: Path) -> list[Path]:
    """`captions_*.json` in a folder or its `annotations`, and files of that form beside them."""
    found = sorted(path for folder in (root, root / "annotations") for path in folder.glob("captions_*.json"))
    return [path for path in found if path.is_file()]


def split_of(name: str) -> str:
    """train, validation or test where a word of the name says so (`captions_val2017`), else nothing.

    `captions_retrieval` and `captions_latest` hold no such word.
    """
    named = {_SPLITS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in _SPLITS}
    return named.pop() if len(named) == 1 else ""


def rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """File name and fields of each image: `captions` in the order of the annotations, `coco_id`, `license`.

    Ids that are numbers in one place and texts in another are the same. The captions of an id that no image has come
    last, under an empty name.

    Raises:
        DataError: The file is of another form.
    """
    try:
        loaded = json.loads(file.read_bytes())
        licenses = {str(row["id"]): str(row.get("name", row["id"])) for row in loaded.get("licenses") or []}
        captions: dict[str, list[Any]] = defaultdict(list)
        for row in loaded["annotations"]:
            captions[str(row["image_id"])].append(row["caption"])
        images = [(str(row["file_name"]), row["id"], row) for row in loaded["images"]]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise DataError(
            f"{file.name}: is no COCO captions file, want an object with images (id, file_name) and annotations "
            "(image_id, caption)."
        ) from None
    for name, id_, row in images:
        fields: dict[str, Any] = {"captions": captions.get(str(id_), []), "coco_id": id_}
        fields |= {key: row[key] for key in _KEPT if key in row}
        if str(row.get("license")) in licenses:
            fields["license"] = licenses[str(row["license"])]
        yield name, fields
    known = {str(id_) for _, id_, _ in images}
    for id_, found in captions.items():
        if id_ not in known:
            yield "", {"captions": found, "coco_id": id_}


def image_folder(root: Path, file: Path, image: str) -> Path:
    """Where the pictures of a captions file lie: COCO's own folder names, `images`, or the input folder itself."""
    part = file.stem.removeprefix("captions_")
    for folder in (root, root / part, root / "images" / part, root / "images"):
        if (folder / image).is_file():
            return folder
    return root
