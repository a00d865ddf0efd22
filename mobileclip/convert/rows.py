"""One sample of a DataCompDR tar: its views, vectors and synthetic captions, checked before anything is kept."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mobileclip.convert import param_aug, payload
from mobileclip.convert.layout import SYN_PREFIX, Layout
from mobileclip.data.tars import Entry
from mobileclip.errors import DataError

MORE_TEXTS = "more_text_emb"
"""Our own array beside `text_emb`: ground-truth captions after the first, which the public layout has no place for."""

# bfloat16 rounds a unit vector's norm by up to 0.4 %.
_NORM_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Shape:
    """What every sample of a set has.

    Attributes:
        num_views: Rows of `param_aug` and `image_emb`.
        keys: Keys of `syn.json`, in order.
    """

    num_views: int
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """A sample's reinforcement.

    Attributes:
        views: int32 [num_views, 8].
        images: float32 [num_views, width]: all teachers' vectors, concatenated.
        texts: float32 [ground-truth captions, width].
        synthetic: By key of `syn.json`: captions and their vectors float32 [captions, width].
    """

    views: np.ndarray
    images: torch.Tensor
    texts: torch.Tensor
    synthetic: dict[str, tuple[list[str], torch.Tensor]]


def read_shape(entry: Entry) -> Shape:
    """Shape of a sample.

    Raises:
        DataError: It lacks a member or one is damaged.
    """
    return Shape(len(param_aug.parse_member(_member(entry, "paug.json"))), tuple(_synthetic(entry)))


def read_row(entry: Entry, layout: Layout, shape: Shape) -> Row:
    """A sample's reinforcement.

    Args:
        entry: Its members.
        layout: Whose vectors these are.
        shape: What the set's first sample has.

    Raises:
        DataError: A member is missing or damaged, or has not the rows it should.
    """
    usual = layout.view_spec.rand_augment_magnitude
    rows = param_aug.parse_member(_member(entry, "paug.json"))
    if len(rows) != shape.num_views:
        raise DataError(f"paug.json: {len(rows)} views, want {shape.num_views} as in the first sample.")
    arrays = _arrays(entry)
    images = _pick(arrays, "image_emb", layout)  # before the views: says best that a set is of another layout
    if len(images) != len(rows):
        raise DataError(f"image_emb: {len(images)} vectors for {len(rows)} views.")
    views = np.stack([param_aug.decode_row(row, size=layout.size, usual_bin=usual) for row in rows])
    captions = _synthetic(entry)
    if tuple(captions) != shape.keys:
        raise DataError(f"syn.json: keys are {list(captions)}, want {list(shape.keys)} as in the first sample.")
    texts, synthetic = _split_texts(arrays, captions, layout)
    if MORE_TEXTS in arrays:
        texts = torch.cat([texts, _pick(arrays, MORE_TEXTS, layout)])
    return Row(views, images, texts, synthetic)


def teacher_slice(vectors: torch.Tensor, layout: Layout, index: int) -> torch.Tensor:
    """Columns of one teacher out of concatenated vectors."""
    start = sum(teacher.dim for teacher in layout.teachers[:index])
    return vectors[:, start : start + layout.teachers[index].dim]


def _split_texts(
    arrays: payload.Arrays, captions: dict[str, list[str]], layout: Layout
) -> tuple[torch.Tensor, dict[str, tuple[list[str], torch.Tensor]]]:
    """Ground-truth and synthetic vectors: apart in the new layout, in one array (truth first) in the legacy one."""
    texts = _pick(arrays, "text_emb", layout)
    synthetic = {}
    if all(f"{key}_emb" in arrays for key in captions):
        for key, sentences in captions.items():
            synthetic[key] = (sentences, _pick(arrays, f"{key}_emb", layout))
        truth = len(texts)
    else:
        total = sum(len(sentences) for sentences in captions.values())
        truth = start = len(texts) - total
        if truth < 0:
            raise DataError(f"text_emb: {len(texts)} vectors, fewer than the {total} synthetic captions.")
        for key, sentences in captions.items():
            synthetic[key] = (sentences, texts[start : start + len(sentences)])
            start += len(sentences)
    for key, (sentences, vectors) in synthetic.items():
        if len(sentences) != len(vectors):
            raise DataError(f"{key}_emb: {len(vectors)} vectors for {len(sentences)} captions.")
    return texts[:truth], synthetic


def _arrays(entry: Entry) -> payload.Arrays:
    """The npz where there is one, else the pth.gz, as the reference trainer chooses."""
    if "npz" in entry.members:
        return payload.from_npz(_member(entry, "npz"))
    return payload.from_pth(_member(entry, "pth.gz"))


def _pick(arrays: payload.Arrays, name: str, layout: Layout) -> torch.Tensor:
    if name not in arrays:
        raise DataError(f"{name}: is missing, there are {sorted(arrays)}.")
    vectors = arrays[name]
    if vectors.shape[1] != layout.width:
        dims = " + ".join(str(teacher.dim) for teacher in layout.teachers)
        raise DataError(f"{name}: vectors of {vectors.shape[1]} values, want {dims}.")
    if not bool(torch.isfinite(vectors).all()):
        raise DataError(f"{name}: holds values that are not finite.")
    for index, teacher in enumerate(layout.teachers):
        norms = teacher_slice(vectors, layout, index).norm(dim=1)
        if bool(((norms - 1).abs() > _NORM_TOLERANCE).any()):
            raise DataError(f"{name}: a vector of teacher '{teacher.name}' is not of unit norm.")
    return vectors


def _synthetic(entry: Entry) -> dict[str, list[str]]:
    if "syn.json" not in entry.members:
        return {}
    try:
        loaded: Any = json.loads(_member(entry, "syn.json"))
    except (ValueError, RecursionError):
        raise DataError("syn.json: is not JSON.") from None
    found = {k: v for k, v in loaded.items() if k.startswith(SYN_PREFIX)} if isinstance(loaded, dict) else {}
    for key, sentences in found.items():
        if not isinstance(sentences, list) or not sentences or not all(map(_is_text, sentences)):
            raise DataError(f"syn.json: '{key}' is no list of texts.")
    return found


def _is_text(value: Any) -> bool:
    """JSON can spell halves of characters, which no file of texts can hold."""
    try:
        return bool(isinstance(value, str) and value.encode() is not None)
    except UnicodeEncodeError:
        return False


def _member(entry: Entry, extension: str) -> bytes:
    span = entry.members.get(extension)
    if span is None:
        raise DataError(f"the sample has no '{extension}', only {', '.join(sorted(entry.members))}.")
    if span.size > payload.MAX_BYTES:
        raise DataError(f"{extension}: has {span.size} bytes, want at most {payload.MAX_BYTES}.")
    return span.read()
