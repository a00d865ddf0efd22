"""Retrieval ranks against a sort, by hand, and chance levels against enumeration."""

import itertools

import numpy as np
import open_clip
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobileclip.evaluation.retrieval import (
    best_ranks,
    build_gallery,
    chance_median_rank,
    chance_recall,
    constant_ranks,
    join_equal,
    per_image,
    rank_pairs,
    same_text,
    top,
)


def unit(rows):
    rows = np.asarray(rows, dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def rank_by_sorting(scores, right):
    """Place of the first right candidate in the list sorted by score, wrong candidates first among equals."""
    order = sorted(range(len(scores)), key=lambda j: (-scores[j], j in right))
    return next(place for place, j in enumerate(order, start=1) if j in right)


def test_build_gallery__joins_duplicates_up_to_case_and_spacing():
    gallery = build_gallery([["A Red  Car", "a bus"], ["a red car"], ["A BUS ", "a bus", "tram"]])
    assert gallery.texts == ["A Red  Car", "a bus", "tram"]
    assert list(zip(gallery.images.tolist(), gallery.columns.tolist(), strict=True)) == [
        (0, 0), (0, 1), (1, 0), (2, 1), (2, 2),
    ]  # fmt: skip
    assert gallery.texts_per_image.tolist() == [2, 1, 2]
    assert gallery.images_per_text.tolist() == [2, 2, 1]


def test_a_perfect_model_recalls_captions_that_it_cannot_tell_apart():
    tokenizer = open_clip.SimpleTokenizer(context_length=16)
    captions = [["a dog"], ["A Dog"], ["\ufeffa dog", "a bus"], ["a &amp; b"], ["a & b"]]
    joined = join_equal(captions, tokenizer)
    assert joined == [["a dog"], ["a dog"], ["a dog", "a bus"], ["a &amp; b"], ["a &amp; b"]]
    gallery = build_gallery(joined)
    texts = np.eye(3, dtype=np.float32)
    ranks = rank_pairs(texts[[0, 0, 0, 2, 2]], texts, gallery)
    assert ranks.image_to_text.tolist() == [1] * 5
    assert ranks.text_to_image[gallery.columns != 1].tolist() == [1] * 5


def test_where_the_first_wins_ranks_are_those_of_a_stable_order():
    draw = np.random.default_rng(0)
    queries = np.eye(4, dtype=np.float32)[draw.integers(0, 4, 40)]
    candidates = np.eye(4, dtype=np.float32)[draw.integers(0, 4, 12)]
    rows, columns = np.repeat(np.arange(40), 2), np.stack([draw.permutation(12)[:2] for _ in range(40)]).reshape(-1)
    order = np.argsort(-(queries @ candidates.T), axis=1, kind="stable")
    for k in (1, 3, 5):
        right = [bool(set(order[i, :k]) & set(columns[2 * i : 2 * i + 2])) for i in range(40)]
        got = best_ranks(queries, candidates, rows, columns, first_wins=True) <= k
        assert got.tolist() == right


def test_same_text__is_what_the_tokenizer_cannot_tell_apart():
    tokenizer = open_clip.SimpleTokenizer(context_length=16)
    pair = ["A Red\n Car", "a red car"]
    assert same_text(pair[0]) == same_text(pair[1])
    tokens = tokenizer(pair)
    assert (tokens[0] == tokens[1]).all()


def test_rank_pairs__by_hand():
    images = unit([[1, 0], [0, 1]])
    texts = unit([[0.9, 0.1], [1.0, 0.05], [0.2, 1.0]])
    # Image 0 carries text 0 only: text 1 is nearer, so rank 2. Image 1 carries text 2: rank 1.
    gallery = build_gallery([["t0"], ["t2", "t1"]])
    ranks = rank_pairs(images, texts[[0, 2, 1]], gallery)
    assert ranks.image_to_text.tolist() == [2, 1]
    # Text t0 finds image 0 first, t2 image 1 first, t1 (nearest to image 0) finds its image 1 second.
    assert ranks.text_to_image.tolist() == [1, 1, 2]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 12), st.booleans())
def test_rank_pairs__equals_sorting(seed, num_images, coarse):
    rng = np.random.default_rng(seed)
    captions = [[f"w{rng.integers(0, 9)}" for _ in range(rng.integers(1, 4))] for _ in range(num_images)]
    gallery = build_gallery(captions)
    draw = (lambda n: rng.integers(-1, 2, size=(n, 2))) if coarse else (lambda n: rng.normal(size=(n, 4)))
    images, texts = draw(num_images).astype(np.float32), draw(len(gallery.texts)).astype(np.float32)
    ranks = rank_pairs(images, texts, gallery)
    pairs = list(zip(gallery.images.tolist(), gallery.columns.tolist(), strict=True))
    scores = images @ texts.T
    for image in range(num_images):
        right = {t for i, t in pairs if i == image}
        assert ranks.image_to_text[image] == rank_by_sorting(scores[image], right)
    for position, (_, text) in enumerate(pairs):
        right = {i for i, t in pairs if t == text}
        assert ranks.text_to_image[position] == rank_by_sorting(scores[:, text], right)


def test_rank_pairs__more_queries_than_one_chunk():
    rng = np.random.default_rng(0)
    features = unit(rng.normal(size=(1500, 8)))
    ranks = rank_pairs(features, features, build_gallery([[f"t{i}"] for i in range(1500)]))
    assert (ranks.image_to_text == 1).all()
    assert (ranks.text_to_image == 1).all()


def test_rank_pairs__a_collapsed_model_is_never_right():
    same = unit(np.ones((6, 3)))
    ranks = rank_pairs(same, same, build_gallery([[f"t{i}"] for i in range(6)]))
    assert (ranks.image_to_text == 6).all()
    assert (ranks.text_to_image == 6).all()


def test_rank_pairs__what_is_no_number_is_never_right():
    rows = unit(np.random.default_rng(0).normal(size=(6, 4)))
    gallery = build_gallery([[f"t{i}"] for i in range(6)])
    nothing = np.full_like(rows, np.nan)
    for ranks in (rank_pairs(nothing, rows, gallery), rank_pairs(rows, nothing, gallery)):
        assert (ranks.image_to_text >= 6).all()
        assert (ranks.text_to_image >= 6).all()
    partly = rows.copy()
    partly[2] = np.nan  # the third picture knows nothing, and to every text it seems the better one
    ranks = rank_pairs(partly, rows, gallery)
    assert ranks.image_to_text[2] >= 6
    assert (np.delete(ranks.image_to_text, 2) == 1).all()
    assert (np.delete(ranks.text_to_image, 2) == 2).all()


def test_per_image__gives_the_mean_over_all_captions():
    gallery = build_gallery([["a", "b"], ["c"], ["d", "e", "f"]])
    hits = np.array([1.0, 0, 1, 1, 1, 0])
    sums, counts = per_image(hits, gallery)
    assert sums.tolist() == [1, 1, 2]
    assert counts.tolist() == [2, 1, 3]
    assert sums.sum() / counts.sum() == hits.mean()


@pytest.mark.parametrize("k", [1, 2, 3, 5, 9])
def test_chance_recall__equals_enumeration(k):
    answers = np.array([1, 3, 1])
    expected = 0.0
    for right in answers:
        subsets = list(itertools.combinations(range(5), min(k, 5)))
        expected += sum(min(s) < right for s in subsets) / len(subsets) / len(answers)
    assert chance_recall(answers, 5, k) == pytest.approx(expected)


def test_chance_levels__equal_a_random_order():
    rng = np.random.default_rng(0)
    answers = np.array([1] * 30 + [4] * 10)
    ranks = np.array([[rng.permutation(40)[:right].min() + 1 for right in answers] for _ in range(2000)])
    assert chance_recall(answers, 40, 5) == pytest.approx((ranks <= 5).mean(), abs=0.005)
    assert chance_median_rank(answers, 40) == pytest.approx(np.median(ranks), abs=1)


def test_chance_median_rank__one_answer_each():
    assert chance_median_rank(np.ones(9, dtype=np.int64), 9) == 5


def test_constant_ranks__most_frequent_text_first():
    ranks = constant_ranks(build_gallery([["x"], ["y"], ["y"], ["z"]]))
    assert ranks.image_to_text.tolist() == [2, 1, 1, 3]
    assert ranks.text_to_image.tolist() == [1, 2, 2, 4]


def test_top__a_right_candidate_comes_after_the_wrong_ones_it_ties():
    scores = np.array([[0.5, 0.9, 0.9, 0.1], [0.2, 0.2, 0.2, 0.2]], dtype=np.float32)
    right = np.array([[False, True, False, False], [True, False, False, False]])
    assert top(scores, right, 3).tolist() == [[2, 1, 0], [1, 2, 3]]


def test_rank_pairs__what_differs_by_rounding_alone_is_a_tie():
    images = unit([[1.0, 0.0]])
    texts = unit([[1.0, 1e-4], [1.0, 0.0]])  # cosines 1 - 5e-9 and 1
    gallery = build_gallery([["right"]])
    assert rank_pairs(images, texts[1:], gallery).image_to_text.tolist() == [1]
    assert best_ranks(images, texts[::-1].copy(), np.array([0]), np.array([0])).tolist() == [2]
