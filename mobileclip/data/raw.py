"""A sample as the user gave it, and the options that every source is read with."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mobileclip.data.tars import Span
from mobileclip.errors import DataError

DRAWN = ("validation", "test")
"""Splits that samples without a split are drawn into."""


@dataclass(frozen=True)
class Raw:
    """A sample as the user gave it.

    Attributes:
        name: Where it comes from, for messages.
        extension: Ending of the image's name, lower case.
        span: Where its encoded bytes lie; `None` where there is no file.
        fields: `captions` (list of str) and any other field.
        fault: Why it cannot be used, where that is known already.
        drawn: Splits it may be drawn into, where it names none.
        unlisted: It is no sample: an image that no table names.
        outside: Its image was reached through a link that leads out of the source.
    """

    name: str
    extension: str
    span: Span | None
    fields: dict[str, Any] = field(default_factory=dict)
    fault: str = ""
    drawn: tuple[str, ...] = DRAWN
    outside: bool = False
    unlisted: bool = False

    @property
    def image(self) -> bytes:
        """Encoded bytes; empty where there is no file."""
        return self.span.read() if self.span else b""


@dataclass(frozen=True)
class Options:
    """How a source is read.

    Attributes:
        scratch: Folder for what has no place of its own: inflated archives, images within a Parquet table.
        table: Caption table inside the source.
        image_folder: Folder inside the source that image names are relative to; empty = found.
        columns: Columns of a table by what they hold (`image`, `captions`, `split`, `license`).
        follow_links: Links that lead out of the source, and linked folders, are read.
        max_inflation: Compressed files may grow by this factor, or to 64 MiB.
        label_prompt: Caption of images in class folders, with `{}` for the class.
    """

    scratch: Path
    table: str = "captions.jsonl"
    image_folder: str = ""
    columns: dict[str, str] = field(default_factory=dict)
    follow_links: bool = False
    max_inflation: float = 50.0
    label_prompt: str = "a photo of {}"


def take_captions(fields: dict[str, Any], where: str) -> list[str]:
    """Take `captions` or `caption` out of a sample's fields; a null among them is an empty text.

    Raises:
        DataError: They are no texts.
    """
    several, single = fields.pop("captions", None), fields.pop("caption", None)
    value: Any = next((v for v in (several, single) if not _missing(v)), [])
    if isinstance(value, str):
        return [value]
    wrong = value if not isinstance(value, list) else next((v for v in value if not _text(v)), None)
    if wrong is not None:
        verb = "holds" if isinstance(value, list) else "is"
        raise DataError(f"{where}: 'captions' {verb} {type(wrong).__name__}, want a text or a list of texts.")
    return ["" if _missing(v) else v for v in value]


def _missing(value: Any) -> bool:
    return value is None or value in ("", []) or (isinstance(value, float) and math.isnan(value))


def _text(value: Any) -> bool:
    return isinstance(value, str) or _missing(value)


def extension_of(name: str) -> str:
    """Ending of a file's name, lower case and without the dot."""
    return Path(name).suffix.lower().lstrip(".")


def whole(path: Path) -> Span | None:
    """All of a file; nothing where there is none."""
    try:
        return Span(str(path), 0, path.stat().st_size) if path.is_file() else None
    except (OSError, ValueError):  # a name that is too long, a folder without permission
        return None


def drawn_splits(named: set[str]) -> tuple[str, ...]:
    """Splits to be drawn from a source whose folder or file names tell these: those that are missing.

    Once a validation part is there, nothing is taken from the training part.
    """
    return () if "validation" in named else tuple(split for split in DRAWN if split not in named)
