"""Zero-shot scores by hand and against independent definitions."""

import numpy as np
import open_clip
import pytest
import torch

from mobileclip.evaluation.zero_shot import (
    chance_share,
    class_embeddings,
    classify,
    confusion_matrix,
    equal_rows,
    majority_share,
)


def test_class_embeddings__mean_of_unit_prompts_renormalized():
    table = {"a photo of a cat": [1.0, 0.0], "cat {x}": [0.6, 0.8], "a photo of a dog": [0.0, 1.0], "dog {x}": [0, 1.0]}
    result = class_embeddings(
        lambda texts: np.array([table[t] for t in texts], dtype=np.float32),
        ["cat", "dog"],
        ["a photo of a {}", "{} {x}"],
    )
    np.testing.assert_allclose(result, [np.array([0.8, 0.4]) / np.sqrt(0.8), [0, 1]], atol=1e-6)


def test_class_embeddings__a_name_with_braces_is_only_a_name():
    seen = []
    class_embeddings(lambda texts: seen.extend(texts) or np.ones((len(texts), 2), np.float32), ["{0}"], ["an {}"])
    assert seen == ["an {0}"]


def test_classify__by_hand():
    images = np.array([[1, 0], [0, 1], [0.6, 0.8]], dtype=np.float32)
    classes = np.array([[1, 0], [0, 1], [0.8, 0.6]], dtype=np.float32)
    result = classify(images, classes, np.array([0, 0, 2]), logit_scale=2.0)
    assert result.ranks.tolist() == [1, 3, 1]
    assert result.predicted.tolist() == [0, 1, 2]
    assert result.hits().tolist() == [1, 0, 1]
    assert result.hits(3).tolist() == [1, 1, 1]
    softmax = np.exp([2.0, 0.0, 1.6])
    assert result.confidences[0] == pytest.approx(softmax[0] / softmax.sum(), abs=1e-6)


def test_classify__equals_torch_softmax():
    rng = np.random.default_rng(0)
    images, classes = rng.normal(size=(50, 6)).astype(np.float32), rng.normal(size=(9, 6)).astype(np.float32)
    labels = rng.integers(0, 9, size=50)
    result = classify(images, classes, labels, logit_scale=7.0)
    probabilities = torch.softmax(7.0 * torch.from_numpy(images @ classes.T), dim=1)
    best = probabilities.max(dim=1)
    np.testing.assert_array_equal(result.predicted, best.indices.numpy())
    np.testing.assert_allclose(result.confidences, best.values.numpy(), rtol=1e-4)
    top5 = probabilities.topk(5, dim=1).indices.numpy()
    np.testing.assert_array_equal(
        result.hits(5), [float(label in row) for label, row in zip(labels, top5, strict=True)]
    )


def test_classify__ties_count_against_the_model():
    same = np.ones((4, 2), dtype=np.float32)
    result = classify(same, np.ones((3, 2), dtype=np.float32), np.array([0, 1, 2, 0]), logit_scale=1.0)
    assert result.ranks.tolist() == [3, 3, 3, 3]
    assert (result.predicted != np.array([0, 1, 2, 0])).all()


def test_classes_that_the_tokenizer_reads_as_one_share_an_answer():
    """A perfect model scores 1.0 of labels that differ by case, which it cannot see."""
    names, labels = ["Red", "blue", "red", "\ufeffred"], np.array([0, 1, 2, 3, 2])
    same = equal_rows(open_clip.SimpleTokenizer(context_length=16), names, ["a {} dot", "{}"])
    assert same.tolist() == [0, 1, 0, 0]
    classes = np.eye(2, dtype=np.float32)[[0, 1, 0, 0]]
    result = classify(classes[labels], classes, labels, logit_scale=1.0, same=same)
    assert result.ranks.tolist() == [1] * 5
    assert result.predicted.tolist() == labels.tolist()
    wrong = classify(classes[[1, 0]], classes, labels[[0, 1]], logit_scale=1.0, same=same)
    assert wrong.ranks.tolist() == [2, 4]


def test_the_suite_gives_the_first_of_equal_classes_as_argmax_does():
    # As ImageNet's list, where `missile` and `sunglasses` stand twice: the field's argmax answers the first of them.
    classes = np.eye(3, dtype=np.float32)[[0, 1, 0, 2, 1]]
    labels = np.arange(5)
    result = classify(classes[labels], classes, labels, logit_scale=1.0, first_wins=True)
    wanted = (classes[labels] @ classes.T).argmax(axis=1)
    assert result.predicted.tolist() == wanted.tolist() == [0, 1, 0, 3, 1]
    assert result.ranks.tolist() == [1, 1, 2, 1, 2]


def test_confusion_matrix__diagonal_is_top_1():
    labels, predicted = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0])
    assert confusion_matrix(labels, predicted, 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_baselines__by_hand():
    labels = np.array([2, 2, 2, 0, 0, 1])
    assert majority_share(labels) == 0.5
    assert majority_share(labels, 2) == pytest.approx(5 / 6)
    assert chance_share(8) == 0.125
    assert chance_share(8, 5) == 0.625
    assert chance_share(3, 5) == 1
