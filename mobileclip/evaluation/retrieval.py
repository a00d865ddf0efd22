"""Image-to-text and text-to-image retrieval: recall at k and median rank, with several captions per image.

Rules, all stated in the report:

- *Several captions per image*, as the field scores Flickr30k and COCO: an image query is right at k when **any** of
  its captions is among the first k texts; every caption is one text query, whose right answers are its images.
- *Duplicates*: captions that are equal up to case and spacing, or that the student's tokenizer reads as one, are one
  candidate text, and any image that carries it is a right answer.
- *Ties* count against the model: a wrong candidate with the same score (to six decimals: what lies below is rounding,
  which changes with batch and machine) ranks before the right one. A collapsed model that gives every pair the same
  score scores zero, not chance. The suite alone follows the field, where the first of them wins.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobileclip.evaluation.statistics import Floats, Ints

_CHUNK = 1024


@dataclass(frozen=True)
class Gallery:
    """Images and the distinct texts they carry.

    Attributes:
        texts: Distinct texts in order of first appearance, each as it was first written.
        images: Image index of every (image, text) pair [pairs], ascending.
        columns: Text index of every pair [pairs].
        num_images: Number of images.
    """

    texts: list[str]
    images: Ints
    columns: Ints
    num_images: int

    @property
    def texts_per_image(self) -> Ints:
        """Right answers of each image query [images]."""
        return np.bincount(self.images, minlength=self.num_images)

    @property
    def images_per_text(self) -> Ints:
        """Right answers of each text query [texts]."""
        return np.bincount(self.columns, minlength=len(self.texts))


@dataclass(frozen=True)
class Ranks:
    """Rank of the best right answer, 1 = first.

    Attributes:
        image_to_text: Per image [images].
        text_to_image: Per (image, text) pair of the gallery [pairs].
    """

    image_to_text: Ints
    text_to_image: Ints


def same_text(text: str) -> str:
    """The form under which two captions are the same: lower case, single spaces."""
    return " ".join(text.lower().split())


def build_gallery(captions: Sequence[Sequence[str]]) -> Gallery:
    """Collect the distinct texts of images.

    Args:
        captions: Captions of each image, at least one each.
    """
    index: dict[str, int] = {}
    texts: list[str] = []
    pairs: dict[tuple[int, int], None] = {}  # ordered, and the same pair counts once
    for image, row in enumerate(captions):
        for text in row:
            key = same_text(text)
            if key not in index:
                index[key] = len(texts)
                texts.append(text)
            pairs[image, index[key]] = None
    array = np.array(list(pairs), dtype=np.int64).reshape(-1, 2)
    return Gallery(texts, array[:, 0], array[:, 1], len(captions))


def join_equal(captions: Sequence[Sequence[str]], tokenize: Callable[[Sequence[str]], Any]) -> list[list[str]]:
    """Captions, each as the first of those that are the same tokens was written: the model cannot tell them apart.

    Args:
        captions: Captions of each image.
        tokenize: Texts to token ids [texts, context].
    """
    distinct = list(dict.fromkeys(text for row in captions for text in row))
    first: dict[bytes, str] = {}
    written: dict[str, str] = {}
    for start in range(0, len(distinct), _CHUNK):
        part = distinct[start : start + _CHUNK]
        for text, row in zip(part, np.asarray(tokenize(part)), strict=True):
            written[text] = first.setdefault(row.tobytes(), text)
    return [[written[text] for text in row] for row in captions]


def rank_pairs(
    image_features: NDArray[np.float32],
    text_features: NDArray[np.float32],
    gallery: Gallery,
    *,
    first_wins: bool = False,
) -> Ranks:
    """Rank both ways.

    Args:
        image_features: Unit-norm embeddings [images, dim].
        text_features: Unit-norm embeddings of `gallery.texts` [texts, dim].
        gallery: Who belongs to whom.
        first_wins: See `best_ranks`.
    """
    forward = best_ranks(image_features, text_features, gallery.images, gallery.columns, first_wins=first_wins)
    order = np.argsort(gallery.columns, kind="stable")
    backward = best_ranks(
        text_features, image_features, gallery.columns[order], gallery.images[order], first_wins=first_wins
    )
    return Ranks(forward, backward[gallery.columns])


def best_ranks(
    queries: NDArray[np.float32],
    candidates: NDArray[np.float32],
    rows: Ints,
    columns: Ints,
    *,
    first_wins: bool = False,
) -> NDArray[np.int64]:
    """Rank of the best right candidate of each query.

    Args:
        queries: [queries, dim].
        candidates: [candidates, dim].
        rows: Query index of each right pair, ascending; every query has one.
        columns: Candidate index of each right pair.
        first_wins: Of candidates that tie the first in their order ranks first, as the field's topk does; otherwise
            the right one comes last.

    Returns:
        1 + number of wrong candidates that score at least as high as the best right one [queries]; what is not a number
        counts against the model, so embeddings of NaN come last.
    """
    ranks = np.empty(len(queries), dtype=np.int64)
    for start in range(0, len(queries), _CHUNK):
        stop = min(start + _CHUNK, len(queries))
        scores = similarities(queries[start:stop], candidates)
        first, last = np.searchsorted(rows, [start, stop])
        right_rows, right_columns = rows[first:last] - start, columns[first:last]
        best = np.full(stop - start, -np.inf, dtype=scores.dtype)
        with np.errstate(invalid="ignore"):
            np.maximum.at(best, right_rows, scores[right_rows, right_columns])
        ahead = ~(scores < best[:, None])
        if first_wins:
            place = np.full(stop - start, len(candidates))
            is_best = scores[right_rows, right_columns] == best[right_rows]
            np.minimum.at(place, right_rows[is_best], right_columns[is_best])
            later = np.arange(len(candidates))[None, :] > place[:, None]
            ahead &= ~(later & (scores == best[:, None]))
        ahead[right_rows, right_columns] = False
        ranks[start:stop] = 1 + ahead.sum(axis=1)
    return ranks


def per_image(values: Floats, gallery: Gallery) -> tuple[Floats, Floats]:
    """Sum values of (image, text) pairs per image.

    Returns:
        Sums [images] and number of pairs [images]: numerator and denominator of the mean over all captions, with
        the image as the unit that is resampled.
    """
    sums: Floats = np.bincount(gallery.images, weights=values, minlength=gallery.num_images).astype(np.float64)
    return sums, gallery.texts_per_image.astype(np.float64)


def chance_recall(answers: Ints, candidates: int, k: int) -> float:
    """Recall at k of a random order.

    Args:
        answers: Number of right candidates of each query.
        candidates: Number of candidates.
        k: Cut.

    Returns:
        Mean over queries of 1 - C(candidates - a, k) / C(candidates, k), 0 to 1.
    """
    if k >= candidates:
        return 1.0
    places = np.arange(k)
    total = 0.0
    for right, count in Counter(answers.tolist()).items():
        missed = float(np.prod(np.maximum(candidates - right - places, 0) / (candidates - places)))
        total += count * (1 - missed)
    return total / len(answers)


def chance_median_rank(answers: Ints, candidates: int) -> int:
    """Median rank of a random order: the smallest k whose chance recall is at least one half."""
    low, high = 1, candidates
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if chance_recall(answers, candidates, middle) >= 0.5 else (middle + 1, high)
    return low


def constant_ranks(gallery: Gallery) -> Ranks:
    """Ranks of the answer that never looks at the query: candidates with most right queries first.

    It is the retrieval counterpart of the majority class, and no better than chance where every text is distinct.
    """
    texts = _places(gallery.images_per_text)[gallery.columns]
    forward = np.full(gallery.num_images, len(gallery.texts), dtype=np.int64)
    np.minimum.at(forward, gallery.images, texts)
    images = _places(gallery.texts_per_image)[gallery.images]
    backward = np.full(len(gallery.texts), gallery.num_images, dtype=np.int64)
    np.minimum.at(backward, gallery.columns, images)
    return Ranks(forward, backward[gallery.columns])


def top(scores: NDArray[np.float32], right: NDArray[np.bool_], k: int) -> NDArray[np.int64]:
    """The k first candidates of each query, ordered as `best_ranks` counts: a right one after the wrong ones it ties.

    Args:
        scores: [queries, candidates] from `similarities`.
        right: Whether the candidate is a right answer [queries, candidates].
        k: How many.

    Returns:
        Candidate indices [queries, min(k, candidates)], best first.
    """
    return np.lexsort((right, -scores), axis=1)[:, :k]


def similarities(queries: NDArray[np.float32], candidates: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosines of unit-norm embeddings [queries, candidates], to six decimals."""
    return np.round(queries @ candidates.T, 6)


def _places(counts: Ints) -> Ints:
    """Place of each candidate when the most frequent comes first, 1 = first."""
    places = np.empty(len(counts), dtype=np.int64)
    places[np.argsort(-counts, kind="stable")] = np.arange(1, len(counts) + 1)
    return places
