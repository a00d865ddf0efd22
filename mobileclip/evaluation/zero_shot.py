"""Zero-shot classification by prompts, with the baselines that make a score readable."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobileclip.evaluation.retrieval import similarities
from mobileclip.evaluation.statistics import Floats, Ints

Encoder = Callable[[Sequence[str]], NDArray[np.float32]]
"""Texts to unit-norm embeddings [texts, dim]."""


@dataclass(frozen=True)
class Predictions:
    """What a model answers.

    Attributes:
        ranks: Rank of the true class [samples], 1 = first; ties (to six decimals) count against the model.
        predicted: Predicted class [samples]: the true one exactly where its rank is 1.
        confidences: Softmax probability of the prediction [samples], 0 to 1.
    """

    ranks: Ints
    predicted: Ints
    confidences: Floats

    def hits(self, k: int = 1) -> Floats:
        """1.0 where the true class is among the first k [samples]."""
        return (self.ranks <= k).astype(np.float64)


def class_embeddings(encode: Encoder, names: Sequence[str], templates: Sequence[str]) -> NDArray[np.float32]:
    """Class embeddings: mean of the unit-norm prompt embeddings, renormalized (Radford et al. 2021, section 3.1.4).

    Args:
        encode: Text tower.
        names: Class names.
        templates: Prompts; every `{}` takes the class name, other braces stay as they are.

    Returns:
        Unit-norm [classes, dim].
    """
    prompts = [template.replace("{}", name) for name in names for template in templates]
    features = encode(prompts).reshape(len(names), len(templates), -1)
    mean = features.astype(np.float64).mean(axis=1)
    norms = np.linalg.norm(mean, axis=1, keepdims=True)
    return (mean / np.maximum(norms, np.finfo(np.float64).tiny)).astype(np.float32)


def classify(
    image_features: NDArray[np.float32],
    class_features: NDArray[np.float32],
    labels: Ints,
    *,
    logit_scale: float,
    same: Ints | None = None,
    first_wins: bool = False,
) -> Predictions:
    """Classify images by their nearest class embedding.

    Args:
        image_features: Unit-norm [samples, dim].
        class_features: Unit-norm [classes, dim].
        labels: True classes [samples].
        logit_scale: Scale of the softmax (1 / temperature); changes confidences alone.
        same: Number of each class [classes], equal where the model reads two names as one (`equal_rows`): such classes
            share an answer; None = all differ.
        first_wins: Of classes that tie the first in their order ranks first, as the field's argmax does; otherwise the
            true one comes last.
    """
    rows = np.arange(len(labels))
    others = similarities(image_features, class_features)
    true = others[rows, labels]
    if same is None:
        others[rows, labels] = -np.inf
    else:
        others[same[None, :] == same[labels][:, None]] = -np.inf
    ahead = others >= true[:, None]
    if first_wins:  # what is not a number counts against the model all the same
        later = np.arange(len(class_features))[None, :] > labels[:, None]
        ahead &= ~(later & (others == true[:, None]))
    ranks = 1 + ahead.sum(axis=1)
    predicted = np.where(ranks == 1, labels, others.argmax(axis=1))
    logits = (image_features @ class_features.T).astype(np.float64)
    shifted = np.exp(logit_scale * (logits - logits.max(axis=1, keepdims=True)))
    return Predictions(ranks, predicted, 1 / shifted.sum(axis=1))


def equal_rows(tokenize: Callable[[Sequence[str]], Any], names: Sequence[str], templates: Sequence[str]) -> Ints:
    """Number of each class [classes], the same for classes whose prompts are the same tokens: `red` and `Red`.

    Args:
        tokenize: Texts to token ids [texts, context].
        names: Class names.
        templates: Prompts, as for `class_embeddings`.
    """
    numbers: dict[bytes, int] = {}
    rows = (np.asarray(tokenize([template.replace("{}", name) for template in templates])) for name in names)
    return np.array([numbers.setdefault(row.tobytes(), len(numbers)) for row in rows])


def confusion_matrix(labels: Ints, predicted: Ints, num_classes: int) -> Ints:
    """Counts [true class, predicted class]."""
    flat = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes)


def majority_share(labels: Ints, k: int = 1) -> float:
    """Top-k score of always answering the k most frequent classes, 0 to 1."""
    counts = np.sort(np.bincount(labels))[::-1]
    return float(counts[:k].sum() / counts.sum())


def chance_share(num_classes: int, k: int = 1) -> float:
    """Top-k score of a random order of the classes, 0 to 1."""
    return min(k, num_classes) / num_classes
