"""Where samples come from: a caption table, a folder of pictures with `.txt` files, or webdataset shards."""

import csv
import json
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobileclip.data.shards import IMAGE_EXTENSIONS
from mobileclip.errors import DataError


@dataclass(frozen=True)
class Raw:
    """A sample as the user gave it.

    Attributes:
        name: Where it comes from, for messages.
        extension: jpg, png or webp.
        image: Encoded bytes.
        fields: `captions` (list of str) and any other field.
    """

    name: str
    extension: str
    image: bytes
    fields: dict[str, Any]


def detect(source: Path, table: str) -> str:
    """Which of table, webdataset and folder a source is.

    Raises:
        DataError: It is none.
    """
    if source.is_file() and source.suffix == ".tar":
        return "webdataset"
    if (source / table).is_file():
        return "table"
    if any(source.glob("*.tar")):
        return "webdataset"
    if any(path.suffix.lower().lstrip(".") in IMAGE_EXTENSIONS for path in source.rglob("*")):
        return "folder"
    raise DataError(f"prepare.source: '{source}' holds no '{table}', no .tar shards and no pictures.")


def read(source: Path, kind: str, table: str) -> Iterator[Raw]:
    """Samples of a source, in a fixed order.

    Raises:
        DataError: The table is malformed or names no captions, or the source holds nothing.
    """
    if kind == "table":
        return _read_table(source, source / table)
    if kind == "webdataset":
        return _read_tars(sorted(source.glob("*.tar")) if source.is_dir() else [source])
    return _read_folder(source)


def _read_table(root: Path, table: Path) -> Iterator[Raw]:
    if not table.is_file():
        raise DataError(f"prepare.table: no file '{table}'.")
    for number, fields in _table_rows(table):
        where = f"{table.name}:{number}"
        if "image" not in fields:
            raise DataError(f"{where}: no field 'image', got {sorted(fields)}.")
        image = str(fields.pop("image"))
        captions = _captions(fields, where)
        if not captions:
            raise DataError(f"{where}: '{image}' has no 'captions'.")
        if "\0" in image:
            raise DataError(f"{where}: image {image!r} is no file name.")
        path = (root / image).resolve()
        if not path.is_relative_to(root.resolve()):
            raise DataError(f"{where}: image '{image}' lies outside the input folder.")
        data = path.read_bytes() if path.is_file() else b""
        yield Raw(image, path.suffix.lower().lstrip("."), data, {**fields, "captions": captions})


def _table_rows(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with table.open(encoding="utf-8", errors="replace", newline="") as handle:
        if table.suffix == ".csv":
            yield from _csv_rows(table.name, csv.DictReader(handle))
            return
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                raise DataError(f"{table.name}:{number}: not a JSON object.") from None
            if not isinstance(row, dict):
                raise DataError(f"{table.name}:{number}: got {type(row).__name__}, want a JSON object.")
            yield number, row


def _csv_rows(name: str, reader: "csv.DictReader[str]") -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        for number, row in enumerate(reader, start=2):
            if None in row:  # where DictReader puts the values beyond the last column
                columns = len(reader.fieldnames or [])
                raise DataError(f"{name}:{number}: {columns + len(row[None])} values for {columns} columns.")
            yield number, {k: v for k, v in row.items() if v not in {None, ""}}
    except csv.Error as error:
        raise DataError(f"{name}: {error}.") from None


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
        yield Raw(name, path.suffix.lower().lstrip("."), path.read_bytes(), {"captions": captions})
    if not found:
        raise DataError(f"prepare.source: no picture in '{root}' has a caption (.txt beside it), nor is there a table.")


def _read_tars(paths: list[Path]) -> Iterator[Raw]:
    for path in paths:
        try:
            yield from _read_tar(path)
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            reason = str(error).partition("\n")[0].rstrip(":.") or type(error).__name__
            raise DataError(f"prepare.source: '{path.name}' is no readable tar: {reason}.") from None


def _read_tar(path: Path) -> Iterator[Raw]:
    """Group a tar's members by key as webdataset does: everything before the first dot of the base name."""
    members: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path, "r:*") as tar:
        for info in tar:
            if not info.isfile():
                continue
            folder, _, base = info.name.rpartition("/")
            stem, _, extension = base.partition(".")
            handle = tar.extractfile(info)
            members.setdefault(f"{folder}/{stem}", {})[extension.lower()] = handle.read() if handle else b""
        _check_end(tar)
    for key, parts in members.items():
        extension = next((e for e in parts if e in IMAGE_EXTENSIONS), "")
        fields = _json_fields(parts.get("json", b"{}"))
        text = parts.get("txt", b"").decode("utf-8", errors="replace").strip()
        name = f"{path.name}:{key.removeprefix('/')}"
        captions = _captions(fields, name) or ([text] if text else [])
        yield Raw(
            name,
            extension or "none",
            parts.get(extension, b""),
            {**fields, "captions": captions, "key": key.rpartition("/")[2]},
        )


def _check_end(tar: tarfile.TarFile) -> None:
    """A tar ends with blocks of zeros; cut between two members it would pass for a shorter one."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if not tar.fileobj.read(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("its end mark is missing, the file is cut")


def _json_fields(data: bytes) -> dict[str, Any]:
    try:
        loaded = json.loads(data)
    except ValueError:
        return {}
    return loaded if isinstance(loaded, dict) else {}
