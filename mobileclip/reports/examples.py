"""What the report shows beside numbers: retrieval examples, replayed views and captions, drawn by seed."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mobileclip.data.augment import apply_view
from mobileclip.data.columns import ColumnReader, unpack_texts
from mobileclip.data.images import decode, to_image
from mobileclip.data.shards import Sample, ShardReader
from mobileclip.evaluation.assess import Assessment
from mobileclip.evaluation.retrieval import similarities, top
from mobileclip.manifest import Column, Manifest, Shard

TOP = 5
THUMB = 96
_SHEET_ROWS = 6
_SHEET_VIEWS = 10
_CAPTION_ROWS = 8
_TEXTS_SHOWN = 5


@dataclass(frozen=True)
class Hit:
    """One entry of a top-k list: a text, and for pictures a data URI; `right` marks a right answer."""

    text: str
    right: bool
    picture: str = ""


@dataclass(frozen=True)
class Query:
    """A query with every model's top-k list and the rank of its best right answer."""

    text: str
    picture: str
    answers: dict[str, list[Hit]]
    ranks: dict[str, int]


@dataclass(frozen=True)
class Sheet:
    """One picture with its first caption and its stored views, replayed."""

    text: str
    picture: str
    views: list[str]


@dataclass(frozen=True)
class Captions:
    """One picture with its own captions and those of each caption column."""

    picture: str
    original: list[str]
    synthetic: dict[str, list[str]]


def thumbnail(image: Image.Image, *, size: int = THUMB) -> str:
    """A small WebP data URI on white, at most `size` pixels a side; the same picture gives the same bytes."""
    small = image.copy()
    small.thumbnail((size, size), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, format="WEBP", quality=82, method=4)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"


def retrieval_examples(
    found: Assessment, *, data: str, content: Manifest, split: str, count: int, seed: int
) -> tuple[list[Query], list[Query]]:
    """Random text queries and random picture queries.

    Args:
        found: What was measured.
        data: Dataset folder or URI.
        content: Its manifest.
        split: The evaluated split.
        count: Queries in all; the first half (rounded up) are texts.
        seed: Decides the draw.

    Returns:
        Text-to-image queries and image-to-text queries.
    """
    gallery = found.retrieval.gallery
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(gallery.images))[:count]
    texts, pictures = order[: (count + 1) // 2], order[(count + 1) // 2 :]
    if not len(texts):
        return [], []
    carries = set(zip(gallery.images.tolist(), gallery.columns.tolist(), strict=True))
    right = np.array([[(i, int(gallery.columns[t])) in carries for i in range(gallery.num_images)] for t in texts])
    wanted = {int(gallery.images[pair]) for pair in pictures}
    best: dict[str, np.ndarray] = {}
    for name, features in found.data.image_features.items():
        scores = similarities(found.retrieval.text_features[name][gallery.columns[texts]], features)
        best[name] = top(scores, right, TOP)
        wanted |= {int(image) for image in best[name].ravel()}
    thumbs = _thumbnails(data, content, split, wanted)
    first = [row[0] for row in found.retrieval.captions]
    text_queries = []
    for place, pair in enumerate(texts):
        column = int(gallery.columns[pair])
        answers = {
            name: [Hit(first[i], (i, column) in carries, thumbs[i]) for i in images[place].tolist()]
            for name, images in best.items()
        }
        ranks = {name: int(r.text_to_image[pair]) for name, r in found.retrieval.ranks.items()}
        text_queries.append(Query(gallery.texts[column], "", answers, ranks))
    return text_queries, [_picture_query(found, int(gallery.images[pair]), carries, thumbs) for pair in pictures]


def contact_sheet(data: str, content: Manifest, *, size: int, interpolation: str, seed: int) -> list[Sheet]:
    """Random reinforced samples with their stored views, replayed as the student saw them; empty without views.

    Args:
        data: Dataset folder or URI.
        content: Its manifest.
        size: The student's input size in pixels.
        interpolation: The student's filter.
        seed: Decides the draw.
    """
    if not content.has("views"):
        return []
    column = content.column("views")
    sheets = []
    for shard, sample, index in _draw(data, content, [column], count=_SHEET_ROWS, seed=seed):
        image = decode(sample.image)
        views = ColumnReader(data, column, shard).row("views", index)[:_SHEET_VIEWS].numpy()
        replayed = [to_image(apply_view(image, view, size=size, interpolation=interpolation)) for view in views]
        sheets.append(Sheet(sample.captions[0], thumbnail(image), [thumbnail(view) for view in replayed]))
    return sheets


def caption_examples(data: str, content: Manifest, *, seed: int) -> list[Captions]:
    """Random captioned samples: their own captions beside those of every caption column; empty without columns."""
    columns = [column for column in content.columns if column.kind == "caption"]
    if not columns:
        return []
    rows = []
    for shard, sample, index in _draw(data, content, columns, count=_CAPTION_ROWS, seed=seed):
        synthetic = {c.name: unpack_texts(ColumnReader(data, c, shard), index)[:_TEXTS_SHOWN] for c in columns}
        rows.append(Captions(thumbnail(decode(sample.image)), sample.captions[:_TEXTS_SHOWN], synthetic))
    return rows


def _picture_query(found: Assessment, image: int, carries: set[tuple[int, int]], thumbs: dict[int, str]) -> Query:
    answers, ranks = {}, {}
    right = np.array([[(image, column) in carries for column in range(len(found.retrieval.gallery.texts))]])
    texts = found.retrieval.gallery.texts
    for name, features in found.data.image_features.items():
        scores = similarities(features[image : image + 1], found.retrieval.text_features[name])
        best = top(scores, right, TOP)[0].tolist()
        answers[name] = [Hit(texts[column], (image, column) in carries) for column in best]
        ranks[name] = int(found.retrieval.ranks[name].image_to_text[image])
    return Query(found.retrieval.captions[image][0], thumbs[image], answers, ranks)


def _thumbnails(data: str, content: Manifest, split: str, wanted: set[int]) -> dict[int, str]:
    """Pictures by their position in the split; only these are read."""
    found: dict[int, str] = {}
    start = 0
    for shard in content.split(split):
        inside = [index for index in sorted(wanted) if start <= index < start + shard.samples]
        if inside:
            reader = ShardReader(data, shard)
            found |= {index: thumbnail(decode(reader.sample(index - start).image)) for index in inside}
        start += shard.samples
    return found


def _draw(
    data: str, content: Manifest, columns: list[Column], *, count: int, seed: int
) -> list[tuple[Shard, Sample, int]]:
    """Random samples among the shards that all columns cover, with their position in the shard."""
    shards = [shard for shard in content.shards if all(shard.name in column.parts for column in columns)]
    ends = np.cumsum([shard.samples for shard in shards])
    if not len(ends) or not ends[-1]:
        return []
    total = int(ends[-1])
    places = np.random.Generator(np.random.PCG64(seed)).choice(total, size=min(count, total), replace=False)
    readers: dict[str, ShardReader] = {}
    drawn = []
    for place in places.tolist():
        position = int(np.searchsorted(ends, place, side="right"))
        shard = shards[position]
        index = place - int(ends[position]) + shard.samples
        if shard.name not in readers:
            readers[shard.name] = ShardReader(data, shard)
        drawn.append((shard, readers[shard.name].sample(index), index))
    return drawn
