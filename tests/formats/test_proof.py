"""The figures that decide, against hand calculations; programs that are wrong are refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mobileclip.errors import DataError, ExportError
from mobileclip.formats import proof


def test_error_is_relative_to_the_spread():
    # Two rows at distance 1 from their mean (0, 3): spread sqrt(2). An error of 0.1 in one coordinate.
    wanted = np.array([[-1.0, 3.0], [1.0, 3.0]], dtype=np.float32)
    got = wanted + np.array([[0.1, 0.0], [0.0, 0.0]], dtype=np.float32)
    assert proof.relative_error(got, wanted) == pytest.approx(0.1 / np.sqrt(2), rel=1e-6)
    assert proof.relative_error(wanted, wanted) == 0


def test_error_of_a_collapsed_student_is_infinite():
    wanted = np.ones((3, 2), dtype=np.float32)
    assert proof.relative_error(wanted, wanted) == np.inf


def test_perfect_program(reference):
    for tower in ("image", "text"):
        figures = proof.prove(_lookup(reference, tower), tower, reference)
        assert figures["error"] == 0
        assert figures["max_abs"] == 0
        assert figures["agreement"] == 1
        assert figures["recall/change"] == 0
        assert figures["cosine_min"] == pytest.approx(1, abs=1e-6)


def test_small_error_behind_a_high_cosine_is_seen(reference):
    """Constant embeddings know nothing, yet their cosine is high where the tower's cone is narrow."""
    wanted = reference.text_features
    mean = wanted.mean(0) / np.linalg.norm(wanted.mean(0))
    figures = proof.prove(lambda rows: np.repeat(mean[None], len(rows), axis=0), "text", reference)
    assert figures["error"] > 0.9
    assert figures["cosine_min"] > 0.5
    assert figures["recall/program"] <= figures["recall/student"]


def test_worse_batch_size_counts(reference):
    perfect = _lookup(reference, "text")
    figures = proof.prove(lambda rows: perfect(rows) + np.float32(0.01 * (len(rows) == 1)), "text", reference)
    assert figures["error_batch_8"] < 1e-6 < figures["error_batch_1"] == figures["error"]


def test_refusal_names_program_error_and_budget():
    with pytest.raises(ExportError, match=r"'text\.int8\.onnx' has error 0\.3 .* its budget is 0\.25"):
        proof.check("text.int8.onnx", {"error": 0.3, "cosine_min": 0.99}, 0.25)
    proof.check("text.int8.onnx", {"error": 0.25, "cosine_min": 0.99}, 0.25)


def test_refusal_says_when_the_student_tells_nothing_apart(reference):
    flat = np.ones((len(reference.uids), 128), np.float32) + 0.01 * reference.text_features
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    figures = proof.prove(lambda rows: flat[: len(rows)], "text", replace(reference, text_features=flat))
    # Root of the mean squared distance from the mean, by hand.
    assert figures["spread"] == pytest.approx(np.sqrt(((flat - flat.mean(0)) ** 2).sum(1).mean()), rel=1e-4)
    with pytest.raises(ExportError, match=r"hardly differ \(spread 0\.00\d+, at most 1\)"):
        proof.check("text.float16.onnx", figures | {"error": 0.5}, 0.03)
    with pytest.raises(ExportError) as caught:
        proof.check("text.float16.onnx", figures | {"error": 0.5, "spread": 0.5}, 0.03)
    assert "hardly differ" not in str(caught.value)


def test_not_a_number_is_refused(reference):
    figures = proof.prove(lambda rows: np.full((len(rows), 128), np.nan, np.float32), "image", reference)
    with pytest.raises(ExportError):
        proof.check("image", figures, 1e9)


def test_reference_is_the_students_own(clip, samples, reference):
    np.testing.assert_allclose(
        reference.text_features, clip.encode_text([s.captions[0] for s in samples]).numpy(), atol=1e-6
    )
    assert reference.pixels.shape == (10, 3, 64, 64)
    assert 0 <= reference.pixels.min() <= reference.pixels.max() <= 1


def test_figures_do_not_depend_on_threads(clip, samples, reference):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        again = proof.refer(clip, samples)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(again.image_features, reference.image_features)
    assert np.array_equal(again.text_features, reference.text_features)


def _lookup(reference, tower):
    """A program that gives each known row the student's own embedding."""
    pairs = zip(reference.inputs(tower), reference.features(tower), strict=True)
    table = {row.tobytes(): features for row, features in pairs}
    return lambda rows: np.stack([table[row.tobytes()] for row in rows])


def test_zero_shot_against_a_hand_count(clip, samples):
    """A text program that answers every prompt with the first class's embedding is right for that class alone."""
    labeled = [replace(s, metadata={**s.metadata, "kind": "xyz"[i % 3] if i else ""}) for i, s in enumerate(samples)]
    reference = proof.refer(clip, labeled, class_field="kind", template="a {} picture")
    assert reference.labels.tolist() == [-1, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    wanted = clip.encode_text(["a x picture", "a y picture", "a z picture"]).numpy()
    np.testing.assert_allclose(reference.class_features, wanted, atol=1e-6)
    guesses = (reference.image_features @ wanted.T).argmax(1)[1:]
    own = float((guesses == reference.labels[1:]).mean())
    first = {row.tobytes(): wanted[0] for row in reference.class_tokens}
    known = dict(zip((row.tobytes() for row in reference.tokens), reference.text_features, strict=True))
    figures = proof.prove(
        lambda rows: np.stack([(first | known)[row.tobytes()] for row in rows]), "text", reference
    )  # fmt: skip
    assert figures["zero_shot/student"] == pytest.approx(own)
    assert figures["zero_shot/program"] == pytest.approx(3 / 9)
    assert figures["zero_shot/change"] == pytest.approx(3 / 9 - own)
    assert figures["zero_shot/change_low"] <= figures["zero_shot/change"] <= figures["zero_shot/change_high"]
    assert figures["recall/change"] == 0


def test_field_that_no_sample_has(clip, samples):
    with pytest.raises(DataError, match=r"zero_shot_field: got 'kindd', the samples have the fields .*captions"):
        proof.refer(clip, samples, class_field="kindd")
    one = [replace(s, metadata={**s.metadata, "kind": "x"}) for s in samples]
    assert len(proof.refer(clip, one, class_field="kind").labels) == 0


def test_without_classes_there_is_no_zero_shot_figure(reference):
    figures = proof.prove(_lookup(reference, "image"), "image", reference)
    assert not [name for name in figures if name.startswith("zero_shot")]


def test_refusal_names_the_worst_layers():
    with pytest.raises(ExportError, match=r"lose most: stem/Conv 0\.2, head/Gemm 0\.1; nothing"):
        proof.check("x.onnx", {"error": 1, "cosine_min": 0.5}, 0.25, layers="stem/Conv 0.2, head/Gemm 0.1")
