"""CIDEr-D and BLEU against the numbers of the COCO caption evaluation (pycocoevalcap 1.2), and by hand."""

import math

import pytest

from mobileclip.evaluation.caption_scores import bleu4, cider

REFERENCES = [
    ["a red apple on a wooden table", "an apple lying on the table"],
    ["two dogs run over the green grass", "dogs running in a field", "a pair of dogs at play"],
    ["a small boat on a calm lake"],
    [
        "a man rides a brown horse along the beach", "man riding a horse",
        "a rider on a beach with his horse", "the horse and its rider by the sea",
    ],
]  # fmt: skip
CAPTIONS = [
    "a red apple on the table",
    "two dogs running on green grass grass",
    "a boat sails across the lake at dawn with a crew of many",
    "a man riding a horse along the beach",
]


def test_cider_equals_the_coco_evaluation():
    # pycocoevalcap.cider.cider.Cider().compute_score on the same lower-case, tokenized texts.
    expected = [4.252494354051405, 1.3243661905717201, 0.4759204185268113, 2.6795615291949466]
    assert cider(CAPTIONS, REFERENCES) == pytest.approx(expected, rel=1e-9)


def test_cider_by_hand():
    """Two images without a common word: every weight is log 2, so cosines are plain counts."""
    references = [["red apple"], ["blue boat"]]
    perfect, partial = cider(["red apple", "blue car"], references)
    assert perfect == pytest.approx(10 * (1 + 1) / 4)  # no 3- and 4-grams: two of four sizes match wholly
    # "blue car": unigrams (blue, car), car has document frequency 0 -> max(1, 0) -> log 2 too; one of two matches.
    assert partial == pytest.approx(10 * (1 / 2) / 4)


def test_cider_clips_counts_and_damps_length():
    references = [["red apple"], ["blue boat"]]
    once = cider(["red apple", "x"], references)[0]
    again = cider(["red red red red red apple", "x"], references)[0]
    # Unigrams: clipped product 1 + 1, norms sqrt(26) and sqrt(2); bigrams: red-red 4, red-apple 1.
    size1, size2 = 2 / math.sqrt(26 * 2), 1 / math.sqrt(17)
    assert again == pytest.approx(10 * (size1 + size2) / 4 * math.exp(-(4**2) / 72))
    assert again < once


def test_cider_edge_cases():
    assert cider(["a cat"], [["a cat"]]) == [0.0]
    assert cider(["", "boat"], [["red apple"], ["blue boat"]])[0] == 0.0


def test_cider_ignores_case_and_punctuation():
    assert cider(["A RED apple, on the table."], [REFERENCES[0]]) == cider([CAPTIONS[0]], [REFERENCES[0]])


def test_bleu_equals_the_coco_evaluation():
    # pycocoevalcap.bleu.bleu.Bleu(4).compute_score: BLEU-4 0.33381861220277304.
    assert bleu4(CAPTIONS, REFERENCES) == pytest.approx(33.381861220277304, rel=1e-6)


def test_bleu_bounds():
    perfect = ["two dogs run over the green grass", "a small boat on a calm lake"]
    assert bleu4(perfect, [[text] for text in perfect]) == pytest.approx(100)
    assert bleu4([text.upper() + "!" for text in perfect], [[text] for text in perfect]) == pytest.approx(100)
    assert bleu4(["x y z", "q r s"], [[text] for text in perfect]) < 5
