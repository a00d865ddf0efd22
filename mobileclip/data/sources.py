"""Where samples come from: which kind of source a folder or file is, and its samples in a fixed order."""

from collections.abc import Iterator
from pathlib import Path

from mobileclip.data import coco, from_tables
from mobileclip.data.from_folders import is_class_folders, read_classes, read_folder
from mobileclip.data.from_tars import read_tars
from mobileclip.data.raw import Options, Raw, extension_of
from mobileclip.data.render import IMAGES
from mobileclip.data.tables import SUFFIXES
from mobileclip.data.tars import find_tars, is_tar
from mobileclip.errors import DataError
from mobileclip.storage.walk import walk

__all__ = ["REINFORCEMENT", "Options", "Raw", "detect", "read"]
REINFORCEMENT = "reinforcement"
"""Folder of DataCompDR tars in a source; their images lie within them or in tars in `images` beside it."""
_DEFAULT_TABLE = "captions.jsonl"


def detect(source: Path, options: Options) -> str:
    """Which of table, coco, karpathy, datacompdr, webdataset, folder and classes a source is.

    Raises:
        DataError: It is none, or a table that was named is not there.
    """
    if source.is_file():
        return _detect_file(source)
    named = source / options.table
    if named.is_file():
        return _detect_file(named) if named.suffix == ".json" else "table"
    if options.table != _DEFAULT_TABLE:
        raise DataError(f"prepare.table: no file '{named}'.")
    if coco.find(source):
        return "coco"
    if _karpathy(source):
        return "karpathy"
    if (source / REINFORCEMENT).is_dir():
        return "datacompdr"
    if find_tars(str(source)):
        return "webdataset"
    if from_tables.find_tables(source, options):
        return "table"
    found = walk(source, follow_links=options.follow_links)
    if not any(extension_of(one.name) in IMAGES or (one.fault and one.path.is_dir()) for one in found):
        raise DataError(
            f"prepare.source: '{source}' holds no '{options.table}', no other table of images and captions, no .tar "
            "shards and no pictures."
        )
    return "classes" if is_class_folders(source, options) else "folder"


def _detect_file(file: Path) -> str:
    if is_tar(file.name):
        return "webdataset"
    if file.suffix == ".json":
        return "karpathy" if from_tables.is_karpathy(file) else "coco"
    if file.suffix in SUFFIXES:
        return "table"
    raise DataError(f"prepare.source: '{file}' is no folder, no tar and no table ({', '.join(SUFFIXES)}, .json).")


def read(source: Path, kind: str, options: Options) -> Iterator[Raw]:
    """Samples of a source, in a fixed order; no image is read here.

    Args:
        source: The user's folder, one tar or one table.
        kind: One of what `detect` gives, but datacompdr.
        options: How.

    Raises:
        DataError: The table is malformed or names no captions, a tar is damaged, or the source holds nothing.
        ConfigError: `prepare.columns` names what no column can hold.
    """
    from_tables.check_columns(options)
    if kind == "webdataset":
        return read_tars(source, options)
    root, named = (source.parent, [source]) if source.is_file() else (source, [source / options.table])
    if kind == "table":
        tables = [table for table in named if table.is_file()]
        if not tables and options.table == _DEFAULT_TABLE:
            tables = from_tables.find_tables(root, options)
        if not tables:
            raise DataError(f"prepare.table: no file '{named[0]}'.")
        return from_tables.read_tables(root, tables, options)
    if kind in {"coco", "karpathy"}:
        files = [file for file in named if file.is_file() and file.suffix == ".json"]
        files = files or (coco.find(root) if kind == "coco" else _karpathy(root))
        if not files:
            raise DataError(
                f"prepare.table: '{root}' holds no COCO captions, neither '{options.table}' nor captions_*.json."
            )
        if kind == "karpathy":
            return from_tables.read_karpathy(root, files[0], options)
        return from_tables.read_coco(root, files, options)
    return read_classes(root, options) if kind == "classes" else read_folder(root, options)


def _karpathy(root: Path) -> list[Path]:
    return [path for path in sorted(root.glob("*.json")) if from_tables.is_karpathy(path)][:1]
