"""What lies in a folder of images and captions, counted before any of it is prepared."""

import hashlib
import io
import statistics
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from PIL import Image

from mobileclip.data import sources
from mobileclip.data.images import FORMATS
from mobileclip.data.render import RENDERED
from mobileclip.data.sources import Raw
from mobileclip.data.zips import unzipped

_OPENED = 5000
"""Images whose bytes are read, for sizes, damage and duplicates."""
_NAMED = 5
_MANY = 10
_VALUES = 1000
"""Most values of a field that may be classes."""


@dataclass
class Survey:
    """A source in numbers.

    Attributes:
        kind: How it is laid out.
        rows: Images or table rows.
        captions: Number of texts by image.
        faults: Reason and first names of rows that cannot be used as they are.
        bad: How many there are of them.
        opened: Images whose bytes were read.
        duplicates: Of these, images whose bytes occurred before.
        sides: Shorter side of each [pixels].
        splits: Rows by the split they name.
        fields: Number of different values by plain field, with the rows that have it.
        folders: Images by the first folder of their path.
    """

    kind: str
    rows: int = 0
    captions: list[int] = field(default_factory=list)
    faults: dict[str, list[str]] = field(default_factory=dict)
    bad: int = 0
    opened: int = 0
    duplicates: int = 0
    sides: list[int] = field(default_factory=list)
    splits: Counter[str] = field(default_factory=Counter)
    fields: dict[str, Counter[str]] = field(default_factory=dict)
    folders: Counter[str] = field(default_factory=Counter)

    @property
    def usable(self) -> int:
        """Rows that nothing was found against."""
        return self.rows - self.bad

    def classes(self) -> dict[str, int]:
        """Fields that can be classes, with their number of values: 2 to a thousand, each found twice on average."""
        found = {
            name: len(values) for name, values in self.fields.items() if name not in {"split", "license", "source"}
        }
        return {n: count for n, count in found.items() if 2 <= count <= _VALUES and 2 * count <= self.fields[n].total()}

    def lines(self) -> list[str]:
        """The findings, a sentence each."""
        texts = self.captions or [0]
        lines = [
            f"{self.rows:,} images, laid out as '{self.kind}'; {self.usable:,} can be used",
            f"captions per image: {min(texts)} to {max(texts)}, {statistics.mean(texts):.1f} on average",
        ]
        if statistics.mean(texts) > _MANY:
            lines.append("so many captions are seldom all good ones (translations?): one is drawn at every step")
        for reason, names in self.faults.items():
            lines.append(f"{reason}: {', '.join(names[:_NAMED])}{' ...' if len(names) >= _NAMED else ''}")
        if self.sides:
            middle = statistics.median(self.sides)
            lines.append(
                f"shorter side: {min(self.sides)} to {max(self.sides)} pixels, half of them below {middle:.0f}"
            )
        if self.duplicates:
            lines.append(f"{self.duplicates:,} of {self.opened:,} images have the bytes of another one")
        if self.splits:
            lines.append(f"splits: {', '.join(f'{name} {count:,}' for name, count in self.splits.items())}")
        if self.classes():
            lines.append(f"fields with classes: {', '.join(f'{n} ({c})' for n, c in self.classes().items())}")
        if 2 <= len(self.folders) <= _VALUES:
            shown = [f"{name} {count:,}" for name, count in self.folders.most_common(_NAMED)]
            lines.append(
                f"{len(self.folders)} folders: {', '.join(shown)}{' ...' if len(self.folders) > _NAMED else ''}"
            )
        return lines


def survey(source: Path, table: str) -> Survey:
    """Count what a source holds; the bytes of its first images are looked at, too.

    Args:
        source: The user's folder.
        table: Caption table inside it.

    Raises:
        DataError: The source is none that `prepare` reads.
    """
    seen: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="mobileclip-init-") as scratch:
        options = sources.Options(scratch=Path(scratch), table=table)
        root = unzipped(source, options.scratch, max_inflation=options.max_inflation, follow_links=options.follow_links)
        kind = sources.detect(root, options)
        found = Survey(kind)
        for raw in sources.read(root, kind, options):
            if raw.unlisted:
                continue
            found.rows += 1
            reason = raw.fault or _look(found, raw, seen)
            if reason:
                found.bad += 1
                names = found.faults.setdefault(reason, [])
                if len(names) < _NAMED:
                    names.append(raw.name)
            else:
                _count(found, raw)
    return found


def _count(found: Survey, raw: Raw) -> None:
    fields: Mapping[str, object] = raw.fields
    texts = fields.get("captions")
    found.captions.append(len(texts) if isinstance(texts, list) else 0)
    for name, value in fields.items():
        if isinstance(value, str | int) and len(found.fields.get(name, ())) <= _VALUES:
            found.fields.setdefault(name, Counter())[str(value)] += 1
    if isinstance(fields.get("split"), str):
        found.splits[str(fields["split"])] += 1
    parts = PurePosixPath(raw.name).parts
    if len(parts) > 1:
        found.folders[parts[0]] += 1


def _look(found: Survey, raw: Raw, seen: set[str]) -> str:
    """Why an image cannot be used; empty = it can, or it was not looked at."""
    if raw.span is None:
        return "no such image"
    if not (raw.fields.get("captions") or []):
        return "no caption"
    if found.opened >= _OPENED:
        return ""
    data = raw.image
    try:
        if raw.extension not in RENDERED:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                found.sides.append(min(image.size))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return "not readable as an image"
    found.opened += 1
    digest = hashlib.sha256(data).hexdigest()
    found.duplicates += digest in seen
    seen.add(digest)
    return ""
