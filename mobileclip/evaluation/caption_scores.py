"""Captions against human references: CIDEr-D and BLEU, without Java.

BLEU is sacrebleu's. For CIDEr-D no maintained Python package without a Java tokenizer or a large model stack exists, so
it is written here from its definition and tested against the COCO caption evaluation's own numbers.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import sacrebleu

from mobileclip.evaluation.captions import words

_SIZES = (1, 2, 3, 4)
_SIGMA = 6.0

Vector = dict[tuple[str, ...], float]


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of every caption (Vedantam et al., arXiv 1411.5726, section 8), on the scale of 0 to 10.

    Per n-gram size 1 to 4, the cosine of TF-IDF vectors, counts clipped to the reference's, damped by a Gaussian of the
    difference in length; averaged over sizes and references. Document frequencies come from the references given.

    Args:
        captions: One caption per image.
        references: Human captions per image, at least one.

    Returns:
        One score per image; the mean times 100 is what papers print as "CIDEr 120". With a single image every
        n-gram is in every document and the score is 0.
    """
    truth = [[_counts(text) for text in row] for row in references]
    documents: Counter[tuple[str, ...]] = Counter()
    for row in truth:
        documents.update({gram for counts in row for gram in counts})
    images = math.log(max(1, len(truth)))
    found = []
    for caption, row in zip(captions, truth, strict=True):
        hypothesis = _counts(caption)
        scores = [_similarity(hypothesis, reference, documents, images) for reference in row]
        found.append(10 * sum(scores) / len(scores))
    return found


def bleu4(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU-4 (Papineni et al., 2002) by sacrebleu, case and punctuation ignored, 0 to 100.

    Args:
        captions: One caption per image.
        references: Human captions per image, at least one; their number may differ.
    """
    plain = [" ".join(words(text)) for text in captions]
    streams: Any = [  # sacrebleu takes None for a missing reference, though its types do not say so
        [" ".join(words(row[place])) if place < len(row) else None for row in references]
        for place in range(max(len(row) for row in references))
    ]
    return float(sacrebleu.corpus_bleu(plain, streams, tokenize="none", force=True).score)


def _counts(text: str) -> Counter[tuple[str, ...]]:
    said = words(text)
    return Counter(tuple(said[i : i + n]) for n in _SIZES for i in range(len(said) - n + 1))


def _similarity(
    hypothesis: Counter[tuple[str, ...]],
    reference: Counter[tuple[str, ...]],
    documents: Counter[tuple[str, ...]],
    images: float,
) -> float:
    """Mean over n-gram sizes of the clipped, damped cosine."""
    ours, theirs = _weigh(hypothesis, documents, images), _weigh(reference, documents, images)
    # The COCO evaluation measures length in bigrams; kept, so that numbers compare.
    difference = _bigrams(hypothesis) - _bigrams(reference)
    damping = math.exp(-(difference**2) / (2 * _SIGMA**2))
    total = 0.0
    for size in _SIZES:
        first = {gram: value for gram, value in ours.items() if len(gram) == size}
        second = {gram: value for gram, value in theirs.items() if len(gram) == size}
        norm = math.hypot(*first.values()) * math.hypot(*second.values())
        if norm:
            product = sum(min(value, second[gram]) * second[gram] for gram, value in first.items() if gram in second)
            total += product / norm * damping
    return total / len(_SIZES)


def _weigh(counts: Counter[tuple[str, ...]], documents: Counter[tuple[str, ...]], images: float) -> Vector:
    """TF-IDF: raw counts times the log of images over images with the n-gram."""
    return {gram: count * (images - math.log(max(1, documents[gram]))) for gram, count in counts.items()}


def _bigrams(counts: Counter[tuple[str, ...]]) -> int:
    return sum(count for gram, count in counts.items() if len(gram) == 2)
