"""Where samples come from: a caption table, COCO captions, a folder of pictures with texts, or webdataset shards."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mobileclip.data import coco
from mobileclip.data.shards import IMAGE_EXTENSIONS
from mobileclip.data.tables import Spool, table_rows
from mobileclip.data.tars import Entry, Span, find_tars, scan
from mobileclip.errors import DataError

REINFORCEMENT = "reinforcement"
"""Folder of DataCompDR tars in a source; their pictures lie within them or in tars in `images` beside it."""


@dataclass(frozen=True)
class Raw:
    """A sample as the user gave it.

    Attributes:
        name: Where it comes from, for messages.
        extension: jpg, png or webp.
        span: Where its encoded bytes lie; `None` where there is no file.
        fields: `captions` (list of str) and any other field.
        fault: Why it cannot be used, where that is known already.
    """

    name: str
    extension: str
    span: Span | None
    fields: dict[str, Any] = field(default_factory=dict)
    fault: str = ""

    @property
    def image(self) -> bytes:
        """Encoded bytes; empty where there is no file."""
        return self.span.read() if self.span else b""


def detect(source: Path, table: str) -> str:
    """Which of table, coco, datacompdr, webdataset and folder a source is.

    Raises:
        DataError: It is none.
    """
    if source.is_file() and source.suffix == ".tar":
        return "webdataset"
    if (source / table).is_file():
        return "coco" if table.endswith(".json") else "table"
    if coco.find(source):
        return "coco"
    if (source / REINFORCEMENT).is_dir():
        return "datacompdr"
    if find_tars(str(source)):
        return "webdataset"
    if any(path.suffix.lower().lstrip(".") in IMAGE_EXTENSIONS for path in source.rglob("*")):
        return "folder"
    raise DataError(f"prepare.source: '{source}' holds no '{table}', no .tar shards and no pictures.")


def read(source: Path, kind: str, table: str, *, scratch: Path, image_folder: str = "") -> Iterator[Raw]:
    """Samples of a source, in a fixed order; no picture is read here.

    Args:
        source: The user's folder, or one tar.
        kind: table, coco, webdataset or folder.
        table: Caption table inside the folder.
        scratch: Folder for what has no place of its own: inflated tars, pictures within a Parquet table.
        image_folder: Folder inside the input folder that image names are relative to.

    Raises:
        DataError: The table is malformed or names no captions, a tar is damaged, or the source holds nothing.
    """
    if kind == "table":
        return _read_table(source, source / table, source / image_folder, scratch)
    if kind == "coco":
        return _read_coco(source, table, image_folder)
    if kind == "webdataset":
        return _read_tars(source, scratch)
    return _read_folder(source)


def _read_table(root: Path, table: Path, base: Path, scratch: Path) -> Iterator[Raw]:
    if not table.is_file():
        raise DataError(f"prepare.table: no file '{table}'.")
    spool = Spool(scratch)
    for number, fields in table_rows(table):
        where = f"{table.name}:{number}"
        if "image" not in fields:
            raise DataError(f"{where}: no field 'image', got {sorted(fields)}.")
        image = fields.pop("image")
        if isinstance(image, dict):  # as Hugging Face datasets store pictures
            image = image.get("bytes") or image.get("path") or ""
        name = where if isinstance(image, bytes) else str(image)
        captions = _captions(fields, where)
        if not captions:
            raise DataError(f"{where}: '{name}' has no 'captions'.")
        fields["captions"] = captions
        if isinstance(image, bytes):
            yield Raw(name, spool.extension(image), spool.keep(image), fields)
            continue
        path = _inside(root, base, name, where)
        yield Raw(name, path.suffix.lower().lstrip("."), _whole(path), fields)


def _read_coco(root: Path, table: str, image_folder: str) -> Iterator[Raw]:
    named = root / table
    files = [named] if named.is_file() and table.endswith(".json") else coco.find(root)
    if not files:
        raise DataError(f"prepare.table: '{root}' holds no COCO captions, neither '{table}' nor captions_*.json.")
    for file in files:
        for image, fields in coco.rows(file):
            folder = root / image_folder if image_folder else coco.image_folder(root, file, image)
            path = _inside(root, folder, image, file.name)
            fault = "" if fields["captions"] else "no caption"
            yield Raw(f"{file.name}:{image}", path.suffix.lower().lstrip("."), _whole(path), fields, fault)


def _inside(root: Path, base: Path, image: str, where: str) -> Path:
    if "\0" in image:
        raise DataError(f"{where}: image {image!r} is no file name.")
    path = (base / image).resolve()
    if not path.is_relative_to(root.resolve()):
        raise DataError(f"{where}: image '{image}' lies outside the input folder.")
    return path


def _whole(path: Path) -> Span | None:
    try:
        return Span(str(path), 0, path.stat().st_size) if path.is_file() else None
    except OSError:  # a name that is too long, a folder without permission
        return None


def _captions(fields: dict[str, Any], where: str) -> list[str]:
    """Take `captions` or `caption` out of a sample's fields."""
    several, single = fields.pop("captions", None), fields.pop("caption", None)
    value = several or single or []
    if isinstance(value, str):
        return [value]
    wrong = value if not isinstance(value, list) else next((v for v in value if not isinstance(v, str)), None)
    if wrong is not None or (isinstance(value, list) and None in value):
        verb = "holds" if isinstance(value, list) else "is"
        raise DataError(f"{where}: 'captions' {verb} {type(wrong).__name__}, want a text or a list of texts.")
    return value


def _read_folder(root: Path) -> Iterator[Raw]:
    found = False
    for path in sorted(root.rglob("*")):
        if path.suffix.lower().lstrip(".") not in IMAGE_EXTENSIONS or not path.is_file():
            continue
        text = path.with_suffix(".txt")
        captions = text.read_text(encoding="utf-8", errors="replace").strip().splitlines() if text.is_file() else []
        found = found or bool(captions)
        name = path.relative_to(root).as_posix()
        yield Raw(name, path.suffix.lower().lstrip("."), _whole(path), {"captions": captions})
    if not found:
        raise DataError(f"prepare.source: no picture in '{root}' has a caption (.txt beside it), nor is there a table.")


def _read_tars(source: Path, scratch: Path) -> Iterator[Raw]:
    tars = find_tars(str(source))
    _check_complete(source, {name for name, _ in tars})
    for name, path in tars:
        for entry in scan(Path(path), name=name, where="prepare.source", scratch=scratch):
            raw = _from_entry(f"{name}:{entry.key}", entry)
            if raw is not None:
                yield raw


def _check_complete(source: Path, tars: set[str]) -> None:
    """img2dataset leaves a .parquet and a _stats.json for each shard: one without its tar was lost on the way."""
    if not source.is_dir():
        return
    for path in sorted([*source.rglob("*.parquet"), *source.rglob("*_stats.json")]):
        tar = path.with_name(path.name.removesuffix("_stats.json").removesuffix(".parquet") + ".tar")
        if tars and tar.stem.isdigit() and tar.relative_to(source).as_posix() not in tars:
            raise DataError(f"prepare.source: '{tar.name}' is missing, but its '{path.name}' is there.")


def _from_entry(name: str, entry: Entry) -> Raw | None:
    """A sample of a tar; nothing for members that belong to no picture and no caption (a note, say)."""
    extension = next((e for e in entry.members if e in IMAGE_EXTENSIONS), "")
    if not extension and not entry.members.keys() & {"txt", "json"} and not entry.fault:
        return None
    fields, fault = _json_fields(entry)
    try:
        captions = _captions(fields, "json")
    except DataError as error:
        captions, fault = [], fault or str(error)
    if not captions and "txt" in entry.members:
        text = entry.members["txt"].read().decode("utf-8", errors="replace").strip()
        captions = [text] if text else []
    # img2dataset records what became of each link; some writers keep failed ones in the tar.
    if fields.get("status", "success") != "success":
        reason = " ".join(str(fields.get("error_message") or fields["status"]).split())
        fault = fault or f"its download failed: {reason}"
    fields = {**fields, "captions": captions, "key": entry.key.rpartition("/")[2]}
    return Raw(name, extension or "none", entry.members.get(extension), fields, entry.fault or fault)


def _json_fields(entry: Entry) -> tuple[dict[str, Any], str]:
    if "json" not in entry.members:
        return {}, ""
    try:
        loaded = json.loads(entry.members["json"].read())
    except (ValueError, RecursionError):
        return {}, "its json is damaged"
    return (loaded, "") if isinstance(loaded, dict) else ({}, "its json is no object")
