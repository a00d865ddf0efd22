"""A folder of images with texts beside them, and a folder of class folders."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mobileclip.data import texts
from mobileclip.data.coco import split_of
from mobileclip.data.raw import Options, Raw, drawn_splits, extension_of, take_captions, whole
from mobileclip.data.render import IMAGES
from mobileclip.errors import DataError
from mobileclip.storage.walk import Found, walk

_TEXTS = ("txt", "caption", "json")
"""Endings of a text beside an image; the first that is there counts."""


def read_folder(root: Path, options: Options) -> Iterator[Raw]:
    """Images with a text of the same name beside them; texts without an image are faults.

    Raises:
        DataError: No image has a caption.
    """
    found = walk(root, follow_links=options.follow_links)
    beside = {one.name: one for one in found if extension_of(one.name) in _TEXTS}
    pictures = [one for one in found if extension_of(one.name) in IMAGES or _is_linked_folder(one)]
    captioned = False
    used: set[str] = set()
    for one in pictures:
        text, used_name = _text_of(one, beside)
        used.add(used_name)
        fields, fault = _read_text(text) if text else ({"captions": []}, "")
        captioned = captioned or bool(fields["captions"])
        extension = extension_of(one.name) or "none"
        yield Raw(
            one.name, extension, None if one.fault else whole(one.path), fields, one.fault or fault,
            outside=one.outside or bool(text and text.outside),
        )  # fmt: skip
    if not captioned:
        raise DataError(f"prepare.source: no picture in '{root}' has a caption (.txt beside it), nor is there a table.")
    stems = {_stem(one.name) for one in pictures}
    for name, text in beside.items():
        if name not in used and extension_of(name) != "json" and _stem(name) not in stems and "/" in f"/{name}":
            if _is_note(name):
                continue
            yield Raw(name, extension_of(name), None, {"captions": []}, text.fault or "no image beside the text")


def _is_linked_folder(one: Found) -> bool:
    return bool(one.fault) and not extension_of(one.name) and one.path.is_dir()


def _is_note(name: str) -> bool:
    """Texts that belong to the collection, not to an image."""
    return name.rpartition("/")[2].partition(".")[0].upper() in {"README", "LICENSE", "COPYING", "LICENCE", "NOTICE"}


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _text_of(one: Found, beside: dict[str, Found]) -> tuple[Found | None, str]:
    """The text beside an image: `a.txt` of `a.png`, also `a.png.txt`."""
    for stem in (_stem(one.name), one.name):
        for ending in _TEXTS:
            if f"{stem}.{ending}" in beside:
                return beside[f"{stem}.{ending}"], f"{stem}.{ending}"
    return None, ""


def _read_text(text: Found) -> tuple[dict[str, Any], str]:
    if text.fault:
        return {"captions": []}, f"its text {text.fault}"
    try:
        data = text.path.read_bytes()
    except OSError as error:
        return {"captions": []}, f"its text cannot be read: {error.strerror}"
    if extension_of(text.name) == "json":
        return read_json(data)
    plain, translated = texts.captions(texts.decode(data))
    return {"captions": plain} | ({"translations": translated} if translated else {}), ""


def read_json(data: bytes) -> tuple[dict[str, Any], str]:
    """Fields of a sample's json with `captions`, and why they cannot be used."""
    try:
        loaded = json.loads(data)
    except (ValueError, RecursionError):
        return {"captions": []}, "its json is damaged"
    if not isinstance(loaded, dict):
        return {"captions": []}, "its json is no object"
    try:
        captions = take_captions(loaded, "json")
    except DataError as error:
        return {**loaded, "captions": []}, str(error)
    return {**loaded, "captions": captions}, ""


def is_class_folders(root: Path, options: Options) -> bool:
    """Whether all images lie in subfolders, at least two of them, and none has a text beside it."""
    found = walk(root, follow_links=options.follow_links)
    if any(extension_of(one.name) in ("txt", "caption") and "/" in one.name for one in found):
        return False
    images = [one.name for one in found if extension_of(one.name) in IMAGES]
    folders = {_label(name) for name in images}
    return bool(images) and all("/" in name for name in images) and "" not in folders and len(folders) > 1


def read_classes(root: Path, options: Options) -> Iterator[Raw]:
    """Images of class folders: `label` is the folder's name, the caption is made of it by `label_prompt`.

    Folders above that name a split (`train`, `val`, `test`) give it.
    """
    found = [o for o in walk(root, follow_links=options.follow_links) if extension_of(o.name) in IMAGES]
    splits = {split for split in (split_of(one.name.split("/")[0]) for one in found) if split}
    drawn = drawn_splits(splits)
    for one in found:
        label = _label(one.name)
        name = " ".join(label.replace("_", " ").split())
        fields: dict[str, Any] = {"captions": [options.label_prompt.replace("{}", name)], "label": label}
        split = split_of(one.name.split("/")[0])
        if split and not (split == "train" and drawn):
            fields["split"] = split
        yield Raw(
            one.name, extension_of(one.name), None if one.fault else whole(one.path), fields, one.fault, drawn,
            one.outside,
        )  # fmt: skip


def _label(name: str) -> str:
    folders = name.split("/")[:-1]
    if folders and split_of(folders[0]):
        folders = folders[1:]
    return folders[0] if folders else ""
