"""Caption quality on small texts whose numbers can be counted by hand."""

import pytest
import torch

from mobileclip.evaluation.captions import assess, clip_score, fault, words
from mobileclip.reports.figures import draw_lengths


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        ("", "empty"),
        (" .,! ", "empty"),
        ("dog", "short"),
        ("dog .", "short"),
        ("2 2 2", "loop"),
        ("a cat and a cat and a cat", "loop"),
        ("the cat the cat the cat", "loop"),
        ("a picture of an apple a picture of an apple", "loop"),
        ("red red apple red green red red", "loop"),
        ("a photo of the sea , the sea , the sea", "loop"),
        ("a red apple", ""),
        ("bye bye", ""),
        ("new york , new york at night", ""),
        ("they walked on and on and on", ""),
        ("a dog and a cat and a bird in a tree", ""),
        ("day after day after day it rains", ""),
        ("ein Äpfelchen, grün", ""),
        ("it's a dog's life", ""),
    ],
)
def test_faults(caption, reason):
    assert fault(caption) == reason


def test_words_keep_apostrophes_and_drop_punctuation():
    assert words("It's a Dog-house, n°5!") == ["it's", "a", "dog", "house", "n", "5"]


def test_shares_and_duplicates():
    captions = [["a red apple", "A red apple.", "2 2 2"], ["a red apple", "blue boat", ""]]
    quality = assess(captions)
    assert quality.reasons == [["", "", "loop"], ["", "", "empty"]]
    metrics = quality.metrics
    assert metrics["images"] == 2
    assert metrics["captions"] == 6
    assert metrics["degenerate"] == pytest.approx(2 / 6)
    assert metrics["loop"] == metrics["empty"] == pytest.approx(1 / 6)
    assert metrics["short"] == 0
    assert metrics["duplicates/image"] == pytest.approx(1 / 6)  # one repeats within the first image
    assert metrics["duplicates/across"] == pytest.approx(3 / 6)  # "a red apple" on both
    assert quality.lengths == {0: 1, 2: 1, 3: 4}
    assert metrics["words/mean"] == pytest.approx(14 / 6)


def test_distinct_ngrams():
    metrics = assess([["a b a"], ["a b"]]).metrics
    assert metrics["distinct1"] == pytest.approx(2 / 5)
    assert metrics["distinct2"] == pytest.approx(2 / 3)  # ab, ba, ab


def test_self_similarity_is_the_mean_jaccard_index():
    assert assess([["a b", "a b"]]).metrics["self_similarity"] == 1
    assert assess([["a b", "c d"]]).metrics["self_similarity"] == 0
    assert assess([["a b", "b c", "a b"]]).metrics["self_similarity"] == pytest.approx((1 / 3 + 1 + 1 / 3) / 3)
    assert assess([["a b"]]).metrics["self_similarity"] == 0  # nothing to compare


def test_clip_score_is_the_mean_cosine_with_the_own_image():
    image = torch.eye(3)[:2]
    text = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 1, 0], [0.6, 0.8, 0]])
    captions = [["x y"], ["x y", "x z", "y z"]]
    expected = (1 + 1 + 1 + 0.8) / 4
    assert clip_score(captions, image, text) == pytest.approx(expected)
    assert assess(captions, image_features=image, text_features=text).metrics["clip_score"] == pytest.approx(expected)
    assert "clip_score" not in assess(captions).metrics


def test_nothing_to_judge():
    metrics = assess([]).metrics
    assert metrics["captions"] == 0
    assert metrics["degenerate"] == 0


def test_figure_is_deterministic():
    first = draw_lengths({2: 5, 3: 1})
    assert first == draw_lengths({2: 5, 3: 1})
    assert first.startswith(b"\x89PNG")
    assert first != draw_lengths({2: 5, 3: 2})
