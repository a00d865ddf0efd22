"""COCO captions: one JSON file per split with `images`, `annotations` (several captions per image) and `licenses`."""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mobileclip.errors import DataError

_KEPT = ("flickr_url", "coco_url", "date_captured")


def find(root: Path) -> list[Path]:
    """`captions_*.json` in a folder or its `annotations`."""
    return sorted(path for folder in (root, root / "annotations") for path in folder.glob("captions_*.json"))


def rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """File name and fields of each image: `captions` in the order of the annotations, `coco_id`, `license`, `split`.

    The split is train, validation or test where the file's name says so (`captions_val2017.json`).

    Raises:
        DataError: The file is of another form.
    """
    try:
        loaded = json.loads(file.read_bytes())
        licenses = {row["id"]: str(row.get("name", row["id"])) for row in loaded.get("licenses", [])}
        captions: dict[Any, list[str]] = defaultdict(list)
        for row in loaded["annotations"]:
            captions[row["image_id"]].append(str(row["caption"]))
        images = [(str(row["file_name"]), row["id"], row) for row in loaded["images"]]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise DataError(
            f"{file.name}: is no COCO captions file, want an object with images (id, file_name) and annotations "
            "(image_id, caption)."
        ) from None
    split = next((s for word, s in _SPLITS.items() if word in file.stem.lower()), "")
    for name, id_, row in images:
        fields: dict[str, Any] = {"captions": captions.get(id_, []), "coco_id": id_}
        fields |= {key: row[key] for key in _KEPT if key in row}
        if row.get("license") in licenses:
            fields["license"] = licenses[row["license"]]
        if split:
            fields["split"] = split
        yield name, fields


_SPLITS = {"train": "train", "val": "validation", "test": "test"}


def image_folder(root: Path, file: Path, image: str) -> Path:
    """Where the pictures of a captions file lie: COCO's own folder names, `images`, or the input folder itself."""
    part = file.stem.removeprefix("captions_")
    for folder in (root, root / part, root / "images" / part, root / "images"):
        if (folder / image).is_file():
            return folder
    return root
