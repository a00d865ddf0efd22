"""How good machine-written captions are, without references: lengths, loops, duplicates, diversity, CLIP score."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, combinations

import numpy as np
import torch

REASONS = ("empty", "short", "loop")
_WORD = re.compile(r"\w+(?:['’]\w+)*")
# A phrase of one or two words said three times in a row is a loop ("2 2 2"); of a longer one the second time is.
_LONGEST_PHRASE = 8
_SHORT_PHRASE = 2
# One word that makes up more than half of a caption of six or more words is one too, whatever stands between.
_LONG_CAPTION = 6


@dataclass(frozen=True)
class Quality:
    """What a set of captions is worth.

    Attributes:
        metrics: Numbers by name; shares are 0-1.
        reasons: Per image and caption one of `REASONS`, or an empty string for a usable caption.
        lengths: Number of captions by number of words.
    """

    metrics: dict[str, float]
    reasons: list[list[str]]
    lengths: dict[int, int]


def words(caption: str) -> list[str]:
    """The words of a caption, lower case, without punctuation."""
    return _WORD.findall(caption.lower())


def fault(caption: str) -> str:
    """Why a caption is degenerate: `empty`, `short` (one word) or `loop`; an empty string where it is not.

    Loops are what long-context captioners are known for ("2 2 2").
    """
    said = words(caption)
    if len(said) < 2:
        return "short" if said else "empty"
    return "loop" if _loops(said) else ""


def assess(
    captions: Sequence[Sequence[str]],
    *,
    image_features: torch.Tensor | None = None,
    text_features: torch.Tensor | None = None,
) -> Quality:
    """Judge the captions of one captioner.

    Args:
        captions: Captions per image.
        image_features: Unit-norm embeddings [images, dim], with `text_features` for the CLIP score.
        text_features: Unit-norm embeddings [captions, dim], image by image.

    Returns:
        Metrics:

        - `images`, `captions`, `words/mean`, `words/p5`, `words/p95`;
        - `degenerate` and its parts `empty`, `short`, `loop`: shares of the captions;
        - `duplicates/image`: share of captions that repeat an earlier one of the same image;
          `duplicates/across`: share of captions that another image has too (both by words, case ignored);
        - `distinct1`, `distinct2`: different word n-grams over all n-grams (Li et al., arXiv 1510.03055);
        - `self_similarity`: mean Jaccard index of the word sets of two captions of one image (1 = all the same);
        - `clip_score`, where features are given: mean cosine of caption and image, not rescaled.
    """
    said = [[words(caption) for caption in row] for row in captions]
    reasons = [[fault(caption) for caption in row] for row in captions]
    flat = list(chain.from_iterable(said))
    found = Counter(chain.from_iterable(reasons))
    total = max(1, len(flat))
    lengths = Counter(len(text) for text in flat)
    metrics = {"images": float(len(captions)), "captions": float(len(flat)), **_length_metrics(flat)}
    metrics |= {"degenerate": 1 - found[""] / total if flat else 0.0}
    metrics |= {reason: found[reason] / total for reason in REASONS}
    metrics |= _duplicates(said) | {"distinct1": _distinct(flat, 1), "distinct2": _distinct(flat, 2)}
    metrics["self_similarity"] = _self_similarity(said)
    if image_features is not None and text_features is not None:
        metrics["clip_score"] = clip_score(captions, image_features, text_features)
    return Quality(metrics, reasons, dict(sorted(lengths.items())))


def clip_score(captions: Sequence[Sequence[str]], image_features: torch.Tensor, text_features: torch.Tensor) -> float:
    """Mean cosine of every caption with its image.

    Hessel et al. (arXiv 2104.08718) report 2.5 times this; the plain cosine compares with every other CLIP number.

    Args:
        captions: Captions per image.
        image_features: Unit norm [images, dim].
        text_features: Unit norm [captions, dim], image by image.
    """
    owners = torch.repeat_interleave(torch.arange(len(captions)), torch.tensor([len(row) for row in captions]))
    return float((image_features[owners] * text_features).sum(dim=1).mean())


def _loops(said: list[str]) -> bool:
    if len(said) >= _LONG_CAPTION and Counter(said).most_common(1)[0][1] * 2 > len(said):
        return True
    return any(_repeats(said, size) for size in range(1, _LONGEST_PHRASE + 1))


def _repeats(said: list[str], size: int) -> bool:
    """Whether a phrase of `size` words follows itself often enough to be a loop."""
    limit = 3 if size <= _SHORT_PHRASE else 2
    run = 0
    for place in range(size, len(said)):
        run = run + 1 if said[place] == said[place - size] else 0
        if run >= size * (limit - 1):
            return True
    return False


def _length_metrics(flat: list[list[str]]) -> dict[str, float]:
    counts = np.array([len(text) for text in flat] or [0])
    low, high = np.percentile(counts, [5, 95])
    return {"words/mean": float(counts.mean()), "words/p5": float(low), "words/p95": float(high)}


def _duplicates(said: list[list[list[str]]]) -> dict[str, float]:
    rows = [[tuple(text) for text in row] for row in said]
    total = max(1, sum(len(row) for row in rows))
    repeated = sum(len(row) - len(set(row)) for row in rows)
    images = Counter(chain.from_iterable(set(row) for row in rows))
    shared = sum(images[text] > 1 for row in rows for text in row)
    return {"duplicates/image": repeated / total, "duplicates/across": shared / total}


def _distinct(flat: Iterable[list[str]], size: int) -> float:
    grams = [tuple(text[i : i + size]) for text in flat for i in range(len(text) - size + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def _self_similarity(said: list[list[list[str]]]) -> float:
    scores = [_jaccard(set(a), set(b)) for row in said for a, b in combinations(row, 2)]
    return sum(scores) / len(scores) if scores else 0.0


def _jaccard(first: set[str], second: set[str]) -> float:
    return len(first & second) / len(first | second) if first | second else 1.0
