"""Tables of image names and captions, wherever they lie: usual columns, COCO's and Karpathy's JSON."""

import difflib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mobileclip.data import coco
from mobileclip.data.raw import DRAWN, Options, Raw, drawn_splits, extension_of, take_captions, whole
from mobileclip.data.render import IMAGES
from mobileclip.data.tables import SUFFIXES, Spool, table_columns, table_rows
from mobileclip.errors import ConfigError, DataError
from mobileclip.storage.walk import check_link, is_hidden, walk

COLUMNS = {
    "image": (
        "image", "file_name", "filename", "filepath", "file_path", "image_path", "image_name", "image_file", "path",
        "file", "img", "img_path",
    ),
    "captions": (
        "captions", "caption", "text", "texts", "title", "description", "sentences", "comment", "alt_text", "prompt",
        "raw",
    ),
    "split": ("split",),
    "license": ("license",),
}  # fmt: skip
"""Usual names of the columns; the first that is there counts."""
_NUMBERED = re.compile(r"caption_?\d+")
_FOLDERS = ("", "images", "Images", "imgs", "Flickr8k_Dataset", "Flicker8k_Dataset", "flickr30k_images")
_MAX_NAME = 4096


class Images:
    """Finds the image that a table names."""

    def __init__(self, root: Path, options: Options) -> None:
        """Images of a source."""
        self.root = root
        self.used: set[str] = set()  # paths that a table named
        self._options = options
        self._named: dict[str, list[Path]] | None = None  # of a bare name, on its first use

    def find(self, name: str, near: Path, where: str) -> tuple[Path, str]:
        """Path of an image and why it cannot be read (empty where it can, or is not there).

        Args:
            name: As the table writes it, relative to `prepare.image_folder`, the table's folder or the source.
            near: Folder of the table.
            where: Table and line, for messages.

        Raises:
            DataError: The name leads out of the source.
        """
        base = self.root / self._options.image_folder
        if "\0" in name or len(name) > _MAX_NAME:
            return base, f"image {name[:40]!r} is no file name"
        if name.startswith(("http://", "https://")):
            return base, "the image is an address, want a file (img2dataset fetches them)"
        parts = name.replace("\\", "/").split("/")
        if Path(name).is_absolute() or _leaves(near, self.root, parts):
            raise DataError(f"{where}: image '{name}' lies outside the input folder.")
        path = next(self._existing([name, "/".join(parts)], base, near), base / name)
        self.used.add(str(path))
        shown = path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else name
        if is_hidden(shown):
            return path, "its name is hidden (a dot in front, or a folder that archives leave behind)"
        return path, check_link(self.root, path, follow_links=self._options.follow_links)

    def _existing(self, names: Iterable[str], base: Path, near: Path) -> Iterator[Path]:
        folders = [base] if self._options.image_folder else [near, *(self.root / folder for folder in _FOLDERS)]
        for name in dict.fromkeys(names):
            for folder in folders:
                if _is_file(folder / name):
                    yield folder / name
            if "/" not in name and not self._options.image_folder:
                if self._named is None:
                    self._named = _index(self.root, self._options)
                found = self._named.get(name, [])
                if len(found) == 1:
                    yield found[0]


def _leaves(near: Path, root: Path, parts: list[str]) -> bool:
    """Whether `..` leads above the source, as written."""
    depth = len(near.relative_to(root).parts) if near.is_relative_to(root) else 0
    for part in parts:
        depth += -1 if part == ".." else part not in {"", "."}
        if depth < 0:
            return True
    return False


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _index(root: Path, options: Options) -> dict[str, list[Path]]:
    named: dict[str, list[Path]] = {}
    for one in walk(root, follow_links=options.follow_links):
        if extension_of(one.name) in IMAGES:
            named.setdefault(one.path.name, []).append(one.path)
    return named


def find_tables(root: Path, options: Options) -> list[Path]:
    """Tables below a folder that have a column for images and one for captions, sorted by name."""
    found = walk(root, follow_links=options.follow_links)
    stems = {one.name.rpartition(".")[0] for one in found if extension_of(one.name) in IMAGES}
    tables = []
    for one in found:
        if one.fault or one.path.suffix not in SUFFIXES or one.name.rpartition(".")[0] in stems:
            continue
        if one.path.suffix == ".txt" and one.name.count("/") > 1:
            continue
        columns = table_columns(one.path)
        if _column("image", columns, options) and (_column("captions", columns, options) or _numbered(columns)):
            tables.append(one.path)
    return tables


def _column(kind: str, columns: Iterable[str], options: Options) -> str:
    known = {column.lower(): column for column in columns}
    if kind in options.columns:
        return options.columns[kind] if options.columns[kind] in known.values() else ""
    return next((known[name] for name in COLUMNS[kind] if name in known), "")


def _numbered(columns: Iterable[str]) -> list[str]:
    return sorted((c for c in columns if _NUMBERED.fullmatch(c.lower())), key=lambda c: int(re.sub(r"\D", "", c)))


def read_tables(root: Path, tables: list[Path], options: Options) -> Iterator[Raw]:
    """Rows of tables; rows without an image or a caption are faults.

    Where the names of the tables, or of their folders, tell splits (`train/metadata.csv`), these are the samples'.

    Raises:
        DataError: A table is malformed, has no column for images, or names an image outside the source.
    """
    spool, images = Spool(options.scratch), Images(root, options)
    named = {table: _split_of(table, root) for table in tables} if len(tables) > 1 else {}
    drawn = drawn_splits({split for split in named.values() if split}) if named else DRAWN
    for table in tables:
        split = named.get(table, "")
        split = "" if split == "train" and drawn else split
        _check_table(table, options)
        for number, row in table_rows(table, max_inflation=options.max_inflation):
            where = f"{table.name}:{number}"
            yield _from_row(row, where, table, images, spool, options, split=split, drawn=drawn)
    yield from _unlisted(images, options)


def _split_of(table: Path, root: Path) -> str:
    return coco.split_of(table.stem) or (coco.split_of(table.parent.name) if table.parent != root else "")


def _from_row(
    row: dict[str, Any], where: str, table: Path, images: Images, spool: Spool, options: Options, *, split: str,
    drawn: tuple[str, ...],
) -> Raw:  # fmt: skip
    fields, image = named_fields(row, options)
    if split:
        fields.setdefault("split", split)
    if isinstance(image, dict):  # as Hugging Face datasets store images
        image = image.get("bytes") or image.get("path") or ""
    fault = "" if image else "the row names no image"
    try:
        captions = take_captions(fields, "row")
    except DataError as error:
        captions, fault = [], fault or str(error)
    fields["captions"] = captions
    if isinstance(image, bytes):
        return Raw(where, spool.extension(image), spool.keep(image), fields, fault, drawn)
    name = str(image)
    if fault:
        return Raw(name or where, extension_of(name), None, fields, fault, drawn)
    path, fault = images.find(name, table.parent, where)
    span = None if fault else whole(path)
    outside = bool(span) and bool(check_link(images.root, path, follow_links=False))
    return Raw(name, extension_of(path.name), span, fields, fault, drawn, outside)


def named_fields(row: dict[str, Any], options: Options) -> tuple[dict[str, Any], Any]:
    """A row with its captions, split and license under their own names, and its image (nothing where it has none)."""
    fields = dict(row)
    found = _column("image", row, options)
    image = fields.pop(found, None) if found else None
    for kind in ("captions", "split", "license"):
        name = _column(kind, fields, options)
        if name and name != kind:
            fields[kind] = fields.pop(name)
    if "captions" not in fields:
        numbered = _numbered(fields)
        if numbered:
            fields["captions"] = [fields.pop(name) for name in numbered]
    return fields, image


def _check_table(table: Path, options: Options) -> None:
    """Refuse a table whose columns hold no images or no captions, with the nearest that it has.

    Raises:
        DataError: It has no such column.
    """
    columns = [column for column in table_columns(table) if column]
    for kind in ("image", "captions") if columns else ():
        if _column(kind, columns, options) or (kind == "captions" and _numbered(columns)):
            continue
        wanted = [options.columns[kind]] if kind in options.columns else [*COLUMNS[kind][:2]]
        near = [name for want in wanted for name in difflib.get_close_matches(want, columns, n=1, cutoff=0.6)]
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise DataError(
            f"{table.name}: no column '{wanted[0]}', got {', '.join(columns)}; {hint}prepare.columns.{kind} names it."
        )


def check_columns(options: Options) -> None:
    """Refuse a mapping of what no column can hold.

    Raises:
        ConfigError: The sentence names what was probably meant.
    """
    for kind in options.columns:
        if kind not in COLUMNS:
            near = difflib.get_close_matches(kind, COLUMNS, n=1)
            hint = f", did you mean {near[0]}" if near else ""
            raise ConfigError(f"prepare.columns: got '{kind}', want {', '.join(COLUMNS)}{hint}.")


def read_coco(root: Path, files: list[Path], options: Options) -> Iterator[Raw]:
    """Images of COCO captions files; a training file alone is drawn from for the other splits."""
    images = Images(root, options)
    named = {file: coco.split_of(file.stem) for file in files}
    drawn = drawn_splits({split for split in named.values() if split})
    for file in files:
        split = "" if named[file] == "train" and drawn else named[file]
        for image, fields in coco.rows(file):
            if split:
                fields["split"] = split
            name = f"{file.name}:{image or fields['coco_id']}"
            if not image:
                yield Raw(name, "none", None, {**fields, "captions": []}, "captions of an image that the file lacks")
                continue
            folder = coco.image_folder(root, file, image) if not options.image_folder else root / options.image_folder
            yield _named(name, image, folder, images, fields, file.name, drawn)
    yield from _unlisted(images, options)


def _named(
    name: str, image: str, near: Path, images: Images, fields: dict[str, Any], where: str, drawn: tuple[str, ...]
) -> Raw:
    fault = ""
    try:
        fields["captions"] = take_captions(fields, "captions")
    except DataError as error:
        fields["captions"], fault = [], str(error)
    path, unfound = images.find(image, near, where)
    fault = fault or unfound
    span = None if fault else whole(path)
    outside = bool(span) and bool(check_link(images.root, path, follow_links=False))
    return Raw(name, extension_of(image), span, fields, fault, drawn, outside)


def is_karpathy(file: Path) -> bool:
    """Whether a JSON file is of Karpathy's form (`dataset_coco.json`), by its beginning and end."""
    if file.suffix != ".json" or not _is_file(file):
        return False
    with file.open("rb") as handle:
        head = handle.read(1 << 16)
    return (b'"images"' in head and b'"sentences"' in head) or (b'"sentids"' in head and b'"images"' in head)


def read_karpathy(root: Path, file: Path, options: Options) -> Iterator[Raw]:
    """Images of a Karpathy file: all sentences, `restval` trains.

    Raises:
        DataError: The file is of another form.
    """
    images = Images(root, options)
    try:
        rows = [
            (
                "/".join(filter(None, (str(row.get("filepath") or ""), str(row["filename"])))),
                [sentence["raw"] for sentence in row["sentences"]],
                str(row.get("split") or ""),
            )
            for row in json.loads(file.read_bytes())["images"]
        ]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise DataError(f"{file.name}: want an object with images (filename, sentences with raw, split).") from None
    for image, captions, split in rows:
        fields: dict[str, Any] = {"captions": captions}
        if split:
            fields["split"] = "train" if split == "restval" else coco.split_of(split) or split
        yield _named(f"{file.name}:{image}", image, root, images, fields, file.name, DRAWN)
    yield from _unlisted(images, options)


def _unlisted(images: Images, options: Options) -> Iterator[Raw]:
    """Images of the source that no table named; they are told, not blamed."""
    used = {os.path.normpath(path) for path in images.used}
    for one in walk(images.root, follow_links=options.follow_links):
        if extension_of(one.name) in IMAGES and os.path.normpath(one.path) not in used:
            yield Raw(one.name, extension_of(one.name), None, {"captions": []}, "no table names it", unlisted=True)
