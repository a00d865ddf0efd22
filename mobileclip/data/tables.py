"""Rows of a caption table (JSON lines, CSV, TSV, Parquet, Flickr's token files), one at a time."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobileclip.data import texts
from mobileclip.data.shards import image_extension
from mobileclip.data.tars import Span, inflated_limit
from mobileclip.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pyarrow import parquet

_ROWS = 256
_FIRST = 20  # lines of JSON that are looked at for their keys
_LONGEST = 1 << 20
_PARQUET = "prepare.table: Parquet needs the package 'pyarrow', install mobileclip-pipelines[parquet]."
_TOKEN = re.compile(r"(\S.*\.\w{3,4})#\d+\t(.*)")
Rows = Iterator[tuple[int, dict[str, Any]]]
"""Line or row number from 1, and the fields that are not empty."""
SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".token", ".txt")
"""Endings that a table may have."""


def table_rows(table: Path, *, max_inflation: float = 50.0) -> Rows:
    """Rows of a table.

    Args:
        table: The file, in UTF-8, or in UTF-16 with or without a byte-order mark.
        max_inflation: The columns of a Parquet file may have this factor of its size, or 64 MiB.

    Raises:
        DataError: A line or the file is malformed; the sentence names it.
        ConfigError: Parquet without the package that reads it.
    """
    if table.suffix == ".parquet":
        return _parquet_rows(table, max_inflation)
    return _text_rows(table)


def table_columns(table: Path) -> list[str]:
    """Names of the columns by the first lines, or by a Parquet file's schema; none where it is no table.

    Raises:
        ConfigError: Parquet without the package that reads it.
    """
    if table.suffix == ".parquet":
        try:
            from pyarrow import ArrowException, parquet
        except ModuleNotFoundError:
            raise ConfigError(_PARQUET) from None
        try:
            return list(parquet.read_schema(table).names)
        except (ArrowException, OSError):
            return []
    try:
        with table.open(encoding=texts.file_encoding(table), errors="replace", newline="") as handle:
            first = [handle.readline(_LONGEST).strip().strip("\ufeff") for _ in range(_FIRST)]
    except OSError:
        return []
    if table.suffix in {".jsonl", ".ndjson"}:
        return _keys(first)
    line = first[0]
    if _TOKEN.fullmatch(line):
        return ["image", "caption"]
    return [name.strip() for name in line.split(_delimiter(table, line))]


def _keys(lines: list[str]) -> list[str]:
    """All keys of some lines of JSON, in the order in which they come."""
    keys: dict[str, None] = {}
    for line in lines:
        try:
            row = json.loads(line) if line else None
        except (ValueError, RecursionError):
            continue
        keys |= dict.fromkeys(row) if isinstance(row, dict) else {}
    return list(keys)


class Spool:
    """Keeps images that lie in no file of their own in one scratch file."""

    def __init__(self, folder: Path) -> None:
        """An empty spool in a folder."""
        self._path = folder / "pictures.bin"
        self._size = 0

    def keep(self, data: bytes) -> Span:
        """Append an image; returns where it lies."""
        with self._path.open("ab") as handle:
            handle.write(data)
        span = Span(str(self._path), self._size, len(data))
        self._size += len(data)
        return span

    @staticmethod
    def extension(data: bytes) -> str:
        """The ending of such an image by its first bytes."""
        return image_extension(data)


def _text_rows(table: Path) -> Rows:
    with table.open(encoding=texts.file_encoding(table), errors="replace", newline="") as handle:
        if table.suffix in {".csv", ".tsv", ".txt", ".token"}:
            head = handle.readline().strip("\ufeff\r\n")
            handle.seek(0)
            if _TOKEN.fullmatch(head.strip()):
                yield from _token_rows(table.name, handle)
                return
            delimiter = _delimiter(table, head)
            # Tab-separated files as web crawls and databases write them know no quotes.
            quoting: Any = csv.QUOTE_NONE if delimiter in "\t|" else csv.QUOTE_MINIMAL
            yield from _csv_rows(table.name, csv.reader(handle, delimiter=delimiter, quoting=quoting, strict=True))
            return
        for number, line in enumerate(handle, start=1):
            if not line.strip().strip("\ufeff"):
                continue
            try:
                row = json.loads(line.strip("\ufeff"))
            except (ValueError, RecursionError):
                raise DataError(f"{table.name}:{number}: not a JSON object.") from None
            if not isinstance(row, dict):
                raise DataError(f"{table.name}:{number}: got {type(row).__name__}, want a JSON object.")
            yield number, row


def _delimiter(table: Path, head: str) -> str:
    """Tab for .tsv; else the first of comma, tab, bar (Flickr30k) and semicolon (spreadsheets) in the first line."""
    if table.suffix == ".tsv":
        return "\t"
    return next((mark for mark in ",\t|;" if mark in head), ",")


def _token_rows(name: str, handle: Iterator[str]) -> Rows:
    """Flickr8k and Flickr30k: `image.jpg#0`, a tab, a caption."""
    for number, line in enumerate(handle, start=1):
        match = _TOKEN.fullmatch(line.strip().strip("\ufeff"))
        if match:
            yield number, {"image": match[1], "caption": match[2]}
        elif line.strip():
            raise DataError(f"{name}:{number}: got '{line.strip()[:40]}', want an image, #, a number, a tab, a text.")


def _csv_rows(name: str, reader: Any) -> Rows:
    columns: list[str] = []
    line = 1
    try:
        for values in reader:
            if not columns:
                columns = [value.strip().strip("\ufeff") for value in values]
            elif values:
                if len(values) > len(columns):
                    raise DataError(f"{name}:{line}: {len(values)} values for {len(columns)} columns.")
                named = zip(columns, values, strict=False)
                yield line, {key: value for key, value in named if value not in {"", "NULL"}}
            line = reader.line_num + 1
    except csv.Error as error:
        reason = str(error)
        if "unexpected end of data" in reason or "expected after" in reason:
            reason = f"a quote that opens here is not closed as it should be ({reason})"
        raise DataError(f"{name}:{line}: {reason}.") from None


def _parquet_rows(table: Path, max_inflation: float) -> Rows:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise ConfigError(_PARQUET) from None
    number = 0
    try:
        with parquet.ParquetFile(table) as head:
            texts_ = _check_inflation(table, head, max_inflation)
        # A value that is repeated is held once, and one row at a time becomes Python's: a few bytes can stand for GBs.
        with parquet.ParquetFile(table, read_dictionary=texts_, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=_ROWS):
                for index in range(batch.num_rows):
                    number += 1
                    (row,) = batch.slice(index, 1).to_pylist()
                    yield number, {k: v for k, v in row.items() if v is not None}
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise DataError(f"{table.name}: is no readable Parquet file: {reason}.") from None


def _check_inflation(table: Path, file: "parquet.ParquetFile", max_inflation: float) -> list[str]:
    """Names of the text columns.

    Raises:
        DataError: By its own account a row group inflates beyond the bound.
    """
    import pyarrow

    limit = inflated_limit(table.stat().st_size, max_inflation)
    for index in range(file.metadata.num_row_groups):
        size = file.metadata.row_group(index).total_byte_size
        if not 0 <= size <= limit:
            raise DataError(
                f"{table.name}: row group {index} inflates to {size} bytes, want at most {max_inflation:g} times the "
                "file's size (prepare.max_inflation)."
            )
    kinds = (pyarrow.types.is_string, pyarrow.types.is_binary)
    return [field.name for field in file.schema_arrow if any(kind(field.type) for kind in kinds)]
