"""One sample of a DataCompDR tar meets its picture and its ground-truth captions."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from mobileclip.convert.fit import fit, same_bytes
from mobileclip.convert.layout import Layout
from mobileclip.convert.param_aug import extent
from mobileclip.convert.pictures import Picture, PictureSet, read_fields
from mobileclip.convert.reading import Reading
from mobileclip.convert.rows import Row, Shape, read_row
from mobileclip.data.shards import IMAGE_EXTENSIONS, Sample
from mobileclip.data.tars import Entry
from mobileclip.errors import DataError


class LeftOut(Exception):  # noqa: N818 - a verdict on one sample, caught where it is counted
    """Why a sample is left out."""

    def __init__(self, cause: str, reason: str) -> None:
        """Cause: a word to count by; reason: a sentence."""
        super().__init__(reason)
        self.cause = cause
        self.reason = reason


@dataclass(frozen=True)
class Joined:
    """A sample with its reinforcement.

    Attributes:
        sample: Picture and metadata.
        extension: jpg, png or webp; empty without a picture.
        size: Width and height of the decoded picture; without one, of the smallest that holds all views.
        row: Views and vectors.
        bytes: `same`, `other` or `unknown`: whether the picture's bytes are those of the recorded sha256.
    """

    sample: Sample
    extension: str
    size: tuple[int, int]
    row: Row
    bytes: str


def join(uid: str, entry: Entry, layout: Layout, shape: Shape, reading: Reading, pictures: PictureSet) -> Joined:
    """A sample of the tar with its picture.

    Raises:
        LeftOut: A member or the picture is missing or damaged, or they do not belong together.
    """
    if entry.fault:
        raise LeftOut("damaged_row", entry.fault)
    try:
        row = read_row(entry, layout, shape)
        fields = read_fields(entry)
    except DataError as error:
        raise LeftOut("damaged_row", str(error)) from None
    picture = _find(uid, entry, reading, pictures)
    if picture is not None:
        captions = fields["captions"] or picture.fields["captions"]
        fields = {**picture.fields, **fields, "captions": captions}
    data = picture.span.read() if picture and picture.extension else b""
    known = same_bytes(data, fields.get("sha256")) if data else "unknown"
    if reading.same_bytes and data and known != "same":
        raise LeftOut("other_picture", f"the picture's bytes are {known}, want those of the recorded sha256")
    try:
        size = (
            fit(data, row.views, upright=layout.upright, max_pixels=reading.max_pixels) if data else extent(row.views)
        )
    except DataError as error:
        cause = "other_picture" if "its views reach to" in str(error) else "damaged_picture"
        raise LeftOut(cause, str(error)) from None
    metadata = _metadata(uid, entry, fields, row, reading)
    if data:
        metadata |= {"width": size[0], "height": size[1]}
    return Joined(Sample(uid, data, metadata), picture.extension if picture else "", size, row, known)


def _find(uid: str, entry: Entry, reading: Reading, pictures: PictureSet) -> Picture | None:
    extension = next((e for e in entry.members if e in IMAGE_EXTENSIONS), "")
    if extension and not reading.images and reading.with_images:
        return Picture(extension, entry.members[extension], {"captions": []})
    if not reading.images and not reading.with_images:
        return None
    if not reading.images:
        raise LeftOut("missing_picture", "the tar has no picture for it; --images names where they lie")
    found = pictures.find(uid)
    if isinstance(found, str):
        raise LeftOut("missing_picture", found)
    return found if reading.with_images else Picture("", found.span, found.fields)


def _metadata(uid: str, entry: Entry, fields: dict[str, Any], row: Row, reading: Reading) -> dict[str, Any]:
    captions = [" ".join(caption.split()) for caption in fields["captions"]]
    truth = len(row.texts)
    if reading.with_images and len(captions) < max(truth, 1):
        raise LeftOut("missing_caption", f"{len(captions)} ground-truth captions for {truth} vectors")
    metadata = {**fields, "uid": fields.get("uid") or uid, "captions": captions[:truth]}
    if captions[truth:]:
        metadata["more_captions"] = captions[truth:]  # no teacher embedded these
    if "url.txt" in entry.members:
        metadata.setdefault("url", entry.members["url.txt"].read().decode("utf-8", errors="replace").strip())
    metadata["license"] = metadata.get("license") or reading.license
    metadata["split"] = _split(uid, metadata.get("split"), reading)
    try:
        json.dumps(metadata, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise LeftOut("damaged_row", "a text is no valid Unicode") from None
    return metadata


def _split(uid: str, given: Any, reading: Reading) -> str:
    """The split a sample names, else by hash of uid, as prepare draws it."""
    if given in {"train", "validation"}:
        return str(given)
    share = int.from_bytes(hashlib.sha256(f"split|{uid}".encode()).digest()[:8], "big") / 2**64
    return "validation" if share < reading.validation_share else "train"
