"""Rank the images of an index by a text or an image, and give each the most likely of several labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mobileclip.errors import ConfigError
from mobileclip.formats.bundle import prompt_bank
from mobileclip.formats.image_input import ImageLike, to_pixels
from mobileclip.formats.runtime import softmax
from mobileclip.search.index import Index
from mobileclip.search.model import Model

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Hit:
    """One image that was found.

    Attributes:
        name: Relative to the folder.
        score: Cosine with the query.
    """

    name: str
    score: float


@dataclass(frozen=True)
class Guess:
    """One image with its most likely label.

    Attributes:
        name: Relative to the folder.
        label: The most likely one.
        probability: Of that label.
        probabilities: Of every label, in the order given.
    """

    name: str
    label: str
    probability: float
    probabilities: list[float]


def embed_query(model: Model, query: str | Sequence[ImageLike]) -> Floats:
    """The direction that is looked for, unit-norm float32 [dim].

    Args:
        model: Of the index.
        query: A text, or example images, of which the mean direction is taken.

    Raises:
        ConfigError: The query is empty.
        DataError: An example cannot be read.
    """
    if not (query.strip() if isinstance(query, str) else query):
        raise ConfigError("query: got none, want a text or example images.")
    if isinstance(query, str):
        return model.encode_texts([query])[0]
    mean = model.encode_pixels(np.stack([to_pixels(image, model.geometry) for image in query])).mean(axis=0)
    return mean / np.float32(max(float(np.linalg.norm(mean)), 1e-12))


def nearest(index: Index, wanted: Floats, *, top: int) -> list[Hit]:
    """The images nearest to a direction, best first; of equal scores by name.

    Args:
        index: Of the folder.
        wanted: From `embed_query`.
        top: Most hits.
    """
    names = index.names
    # Summed row by row: a matrix product may round equal rows differently, depending on where they stand.
    scores = np.einsum("nd,d->n", index.embeddings(names), wanted)
    return [Hit(names[row], float(scores[row])) for row in np.argsort(-scores, kind="stable")[:top]]


def classify(index: Index, model: Model, labels: Sequence[str], *, templates: Sequence[str]) -> list[Guess]:
    """The most likely label of every image, in the order of their names.

    Args:
        index: Of the folder.
        model: The one that made the index.
        labels: Class names, each once.
        templates: Prompts with `{}` for the label.

    Raises:
        DataError: No labels, one of them twice, or a template without `{}`.
    """
    classes = prompt_bank.embed(model.encode_texts, labels, templates).features
    names = index.names
    shares = softmax(model.logit_scale * index.embeddings(names) @ classes.T)
    best = shares.argmax(axis=1)
    return [
        Guess(name, labels[column], float(row[column]), [float(value) for value in row])
        for name, column, row in zip(names, best, shares, strict=True)
    ]
