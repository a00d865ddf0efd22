"""Linear probe and nearest neighbors against scikit-learn's."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from mobileclip.evaluation import probes


@pytest.fixture(scope="module")
def clouds():
    """Unit vectors around four centers that overlap: train, labels, test, labels."""
    rng = np.random.default_rng(4)
    centers = rng.normal(size=(4, 8))

    def draw(count):
        labels = rng.integers(0, 4, count)
        points = centers[labels] + rng.normal(scale=1.2, size=(count, 8))
        return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32), labels

    return *draw(160), *draw(90)


@pytest.mark.parametrize("l2", [1e-3, 0.1])
def test_the_probe_is_scikit_learns_logistic_regression(clouds, l2):
    train, labels, test, truth = clouds
    model = LogisticRegression(C=1 / (l2 * len(train)), tol=1e-10, max_iter=10_000).fit(train.astype(float), labels)
    found = probes.linear_probe(train, labels, test, num_classes=4, l2=l2)
    odds = np.exp(found) / np.exp(found).sum(axis=1, keepdims=True)
    assert np.abs(odds - model.predict_proba(test.astype(float))).max() < 1e-4
    assert probes.hits(found, truth).mean() == model.score(test.astype(float), truth)
    assert 0.4 < model.score(test.astype(float), truth) < 1


@pytest.mark.parametrize("neighbors", [1, 7, 500])
def test_the_vote_is_scikit_learns(clouds, neighbors):
    train, labels, test, truth = clouds
    count = min(neighbors, len(train))
    model = KNeighborsClassifier(
        count, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / probes.KNN_TEMPERATURE)
    ).fit(train.astype(float), labels)
    votes = probes.knn(train, labels, test, num_classes=4, neighbors=neighbors)
    shares = votes / votes.sum(axis=1, keepdims=True)
    assert np.abs(shares - model.predict_proba(test.astype(float))).max() < 1e-5
    assert probes.hits(votes, truth).mean() == model.score(test.astype(float), truth)


def test_a_class_that_was_never_seen_is_never_right(clouds):
    train, labels, test, _ = clouds
    truth = np.full(len(test), 4)
    for scores in (
        probes.linear_probe(train, labels, test, num_classes=5, l2=1e-3),
        probes.knn(train, labels, test, num_classes=5, neighbors=5),
    ):
        assert probes.hits(scores, truth).sum() == 0


def test_a_tie_counts_against_the_model():
    assert probes.hits(np.array([[1.0, 1.0], [2.0, 1.0]]), np.array([0, 0])).tolist() == [0.0, 1.0]
