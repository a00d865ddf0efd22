"""What frozen image embeddings hold beyond prompts: a linear classifier and nearest neighbors."""

import numpy as np
import torch
from numpy.typing import NDArray

from mobileclip.evaluation.statistics import Ints

Embeddings = NDArray[np.float32]
KNN_TEMPERATURE = 0.07
_STEPS = 500
_CHUNK = 1024


def linear_probe(
    train: Embeddings, labels: Ints, test: Embeddings, *, num_classes: int, l2: float
) -> NDArray[np.float64]:
    """Multinomial logistic regression on frozen embeddings (as Radford et al. 2021, section 3.2), solved by L-BFGS.

    The loss is the mean cross-entropy plus `l2 / 2` times the squared weights (not the bias): scikit-learn's
    `LogisticRegression(C=1 / (l2 * samples))`. It is convex, so the answer does not depend on a seed.

    Args:
        train: Embeddings to learn from [samples, dim].
        labels: Their classes [samples].
        test: Embeddings to classify [test, dim].
        num_classes: Number of classes.
        l2: Strength of the penalty, above 0.

    Returns:
        Scores (logits) [test, num_classes].
    """
    features, target = torch.from_numpy(train).double(), torch.from_numpy(labels)
    weight = torch.zeros(num_classes, features.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=_STEPS, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> float:
        solver.zero_grad()
        value = torch.nn.functional.cross_entropy(features @ weight.T + bias, target) + l2 / 2 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return float(value)

    solver.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        scores = torch.from_numpy(test).double() @ weight.T + bias
    return scores.numpy()  # type: ignore[no-any-return]


def knn(train: Embeddings, labels: Ints, test: Embeddings, *, num_classes: int, neighbors: int) -> NDArray[np.float64]:
    """Weighted vote of the nearest neighbors by cosine (Wu et al., arXiv 1805.01978): weight exp(cosine / 0.07).

    Args:
        train: Unit-norm embeddings with known classes [samples, dim].
        labels: Their classes [samples].
        test: Unit-norm embeddings to classify [test, dim].
        num_classes: Number of classes.
        neighbors: How many vote; all where there are fewer.

    Returns:
        Votes [test, num_classes]; the best neighbor's weight is 1.
    """
    count = min(neighbors, len(train))
    votes = np.zeros((len(test), num_classes))
    for start in range(0, len(test), _CHUNK):
        cosines = (test[start : start + _CHUNK] @ train.T).astype(np.float64)
        # A stable order: equal neighbors count in the order of the training samples.
        nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
        rows = np.arange(len(nearest))[:, None]
        best = cosines[rows, nearest]
        weights = np.exp((best - best[:, :1]) / KNN_TEMPERATURE)
        np.add.at(votes[start : start + _CHUNK], (np.broadcast_to(rows, nearest.shape), labels[nearest]), weights)
    return votes


def hits(scores: NDArray[np.float64], labels: Ints) -> NDArray[np.float64]:
    """1.0 where the true class alone has the highest score [samples]; a tie counts against the model."""
    rows = np.arange(len(labels))
    others = scores.copy()
    others[rows, labels] = -np.inf
    return (scores[rows, labels] > others.max(axis=1)).astype(np.float64)
