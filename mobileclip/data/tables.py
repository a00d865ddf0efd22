"""Rows of a caption table (JSON lines, CSV, TSV or Parquet), one at a time."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mobileclip.data.shards import image_extension
from mobileclip.data.tars import Span
from mobileclip.errors import ConfigError, DataError

_ROWS = 256
Rows = Iterator[tuple[int, dict[str, Any]]]
"""Line or row number from 1, and the fields that are not empty."""


def table_rows(table: Path) -> Rows:
    """Rows of a table.

    Raises:
        DataError: A line or the file is malformed; the sentence names it.
        ConfigError: Parquet without the package that reads it.
    """
    if table.suffix == ".parquet":
        return _parquet_rows(table)
    return _text_rows(table)


class Spool:
    """Keeps pictures that lie in no file of their own in one scratch file."""

    def __init__(self, folder: Path) -> None:
        """An empty spool in a folder."""
        self._path = folder / "pictures.bin"
        self._size = 0

    def keep(self, data: bytes) -> Span:
        """Append a picture; returns where it lies."""
        with self._path.open("ab") as handle:
            handle.write(data)
        span = Span(str(self._path), self._size, len(data))
        self._size += len(data)
        return span

    @staticmethod
    def extension(data: bytes) -> str:
        """jpg, png or webp by the first bytes."""
        return image_extension(data)


def _text_rows(table: Path) -> Rows:
    with table.open(encoding="utf-8-sig", errors="replace", newline="") as handle:
        if table.suffix in {".csv", ".tsv"}:
            yield from _csv_rows(table.name, csv.DictReader(handle, delimiter="\t" if table.suffix == ".tsv" else ","))
            return
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                raise DataError(f"{table.name}:{number}: not a JSON object.") from None
            if not isinstance(row, dict):
                raise DataError(f"{table.name}:{number}: got {type(row).__name__}, want a JSON object.")
            yield number, row


def _csv_rows(name: str, reader: "csv.DictReader[str]") -> Rows:
    try:
        for number, row in enumerate(reader, start=2):
            if None in row:  # where DictReader puts the values beyond the last column
                columns = len(reader.fieldnames or [])
                raise DataError(f"{name}:{number}: {columns + len(row[None])} values for {columns} columns.")
            yield number, {k: v for k, v in row.items() if v not in {None, ""}}
    except csv.Error as error:
        raise DataError(f"{name}: {error}.") from None


def _parquet_rows(table: Path) -> Rows:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise ConfigError(
            "prepare.table: Parquet needs the package 'pyarrow', install mobileclip-pipelines[parquet]."
        ) from None
    number = 0
    try:
        with parquet.ParquetFile(table) as file:
            for batch in file.iter_batches(batch_size=_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield number, {k: v for k, v in row.items() if v is not None}
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise DataError(f"{table.name}: is no readable Parquet file: {reason}.") from None
