"""A sample as a user gave it becomes one that can be stored, or gets the reason why not."""

import datetime
import hashlib
import logging
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from mobileclip.config import Prepare
from mobileclip.data import images, lookalikes
from mobileclip.data.catalog import Listed
from mobileclip.data.raw import Raw
from mobileclip.data.render import IMAGES, RENDERED, render
from mobileclip.data.tables import Spool
from mobileclip.errors import DataError

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
_DEEPEST = 50
# Reasons by the words they start with or hold, for counting.
_CAUSES = {
    "no caption": "no_caption", "no image beside": "no_image", "picture file": "missing_file", "no picture": "no_image",
    "the row names no image": "no_image", "captions of an image": "no_image", "link": "link", "hidden": "hidden",
    "cannot be decoded": "undecodable", "pixels": "size", "needs the package": "missing_package",
    "download failed": "download_failed", "json": "damaged_json", "'captions'": "captions_type", "sha256": "sha256",
    "split": "split", "two members": "name_twice", "inflates": "inflation", "header": "damaged_tar",
    "Unicode": "no_unicode", "address": "address", "another file": "reference",
}  # fmt: skip


def cause(reason: str) -> str:
    """A word to count a reason by."""
    return next((word for part, word in _CAUSES.items() if part in reason), "other")


class Check:
    """Checks the samples of a run.

    Attributes:
        empty: Captions that were blank or null.
        left_out: Names of optional fields that could not be stored, each with its first sample.
    """

    def __init__(self, config: Prepare, scratch: Path) -> None:
        """By the `prepare` section; rendered images go into a scratch folder."""
        scratch = scratch / "rendered"
        scratch.mkdir()
        self.empty = 0
        self.left_out: dict[str, str] = {}
        self._config = config
        self._spool = Spool(scratch)

    def __call__(self, raw: Raw) -> Listed | str:
        """The sample as it will be stored, or the reason to quarantine it."""
        if raw.fault:
            return raw.fault
        if raw.extension not in IMAGES:
            return f"no picture ({', '.join(IMAGES)})"
        if raw.span is None or not raw.span.size:
            return "picture file is missing or empty"
        captions = self.captions(raw)
        self.empty += len(raw.fields["captions"]) - len(captions)
        if not captions:
            return "no caption"
        if any(broken(text) for text in captions):
            return "a text is no valid Unicode"
        try:
            raw, data = self._encoded(raw)
            image = images.decode(data, max_pixels=self._config.max_pixels)
        except DataError as error:
            return str(error)
        digest = hashlib.sha256(data).hexdigest()
        recorded = raw.fields.get("sha256")
        if self._config.check_sha256 and isinstance(recorded, str) and recorded.lower() != digest:
            return "its bytes are not those of its sha256 field"
        uid = digest[:24]
        metadata = self._metadata(raw, captions) | {"width": image.width, "height": image.height}
        group = metadata.get(self._config.group_field)
        split = metadata.get("split") or draw_split(str(uid if group is None else group), self._config, raw.drawn)
        if split not in SPLITS:
            return f"split is '{split}', want one of {', '.join(SPLITS)}"
        metadata["split"] = split
        look = lookalikes.look(image) if self._config.near_duplicates else b""
        assert raw.span is not None
        return Listed(uid, raw.name, raw.extension, raw.span, metadata, look)

    @staticmethod
    def captions(raw: Raw) -> list[str]:
        """The captions of a sample that are not blank, each on one line."""
        texts = (" ".join(str(c).replace("\ufeff", "").replace("\0", "").split()) for c in raw.fields["captions"])
        return [text for text in texts if text]

    def _encoded(self, raw: Raw) -> tuple[Raw, bytes]:
        """The sample and its bytes; a drawing or HEIC becomes PNG, and its own digest goes into `source_sha256`."""
        data = raw.image
        if raw.extension not in RENDERED:
            return raw, data
        fields = {**raw.fields, "source_sha256": hashlib.sha256(data).hexdigest()}
        data = render(data, raw.extension, size=self._config.svg_size, max_pixels=self._config.max_pixels)
        return replace(raw, extension="png", span=self._spool.keep(data), fields=fields), data

    def _metadata(self, raw: Raw, captions: list[str]) -> dict[str, Any]:
        metadata: dict[str, Any] = {"captions": captions}
        for name, value in raw.fields.items():
            if name == "captions":
                continue
            try:
                metadata[str(name)] = _plain(value, 0)
            except ValueError as error:
                if name not in self.left_out:
                    self.left_out[name] = raw.name
                    # A name in a tar may hold bytes that are no text, which no log can write.
                    where = raw.name.encode("utf-8", "backslashreplace").decode()
                    logger.warning("prepare: the field '%s' is left out: %s (first at '%s').", name, error, where)
        metadata["license"] = metadata.get("license") or self._config.license
        return metadata


def _plain(value: Any, depth: int) -> Any:
    """A value as JSON has it: not-a-number becomes null, times become ISO text.

    Raises:
        ValueError: JSON has nothing like it.
    """
    if depth > _DEEPEST:
        raise ValueError(f"it is nested deeper than {_DEEPEST}")
    if isinstance(value, bool | int) or value is None:
        return value
    if isinstance(value, str):
        if broken(value):
            raise ValueError("a text is no valid Unicode")
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item, depth + 1) for key, item in value.items() if not broken(str(key))}
    raise ValueError(f"a value of type {type(value).__name__} is nothing that JSON holds")


def broken(text: str) -> bool:
    """Whether a text holds half a character (a lone surrogate), which no file can store."""
    return re.search("[\ud800-\udfff]", text) is not None


def draw_split(group: str, config: Prepare, drawn: tuple[str, ...]) -> str:
    """The same group always falls into the same split, whatever else is in the data."""
    share = int.from_bytes(hashlib.sha256(f"split|{group}".encode(errors="replace")).digest()[:8], "big") / 2**64
    validation = config.validation_share if "validation" in drawn else 0.0
    test = config.validation_share if config.test_share < 0 else config.test_share
    if share < validation:
        return "validation"
    return "test" if "test" in drawn and share < validation + test else "train"
