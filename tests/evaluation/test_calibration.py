"""The search against a literal count in double precision, and its limits."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from mobileclip.errors import IntegrityError
from mobileclip.evaluation import calibration

SCALES = (2.0, 8.0, 30.0, 100.0)


def _batches(noise: dict[str, float], *, count: int = 3, rows: int = 12):
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        batch = {}
        for name, level in noise.items():
            text = normalize(torch.randn(rows, 32, generator=generator), dim=1)
            batch[name] = (normalize(text + level * torch.randn(rows, 32, generator=generator) / 6, dim=1), text)
        found.append(batch)
    return found


def _literal(batch, scales):
    total, count = 0.0, 0
    for transpose, row in itertools.product((False, True), range(len(next(iter(batch.values()))[0]))):
        probability = 0.0
        for name, scale in scales.items():
            image, text = (np.asarray(t, dtype=np.float64) for t in batch[name])
            powers = np.exp(scale * (image @ text[row] if transpose else text @ image[row]))
            probability += powers[row] / powers.sum() / len(scales)
        total -= math.log(probability)
        count += 1
    return total / count


@pytest.fixture(scope="module")
def three():
    return _batches({"sharp": 2.0, "vague": 5.0, "noise": 60.0})


@pytest.fixture(scope="module")
def found(three):
    return calibration.likelihoods(three, SCALES)


def test_curve_is_the_literal_count(three, found):
    for name in ("sharp", "vague", "noise"):
        literal = [np.mean([_literal(b, {name: s}) for b in three]) for s in SCALES]
        assert calibration.curve(found, name) == pytest.approx(literal, rel=1e-9)


def test_joint_search_is_the_best_of_all_combinations_with_its_standard_error(three, found):
    grid = [dict(zip(("sharp", "vague"), pair, strict=True)) for pair in itertools.product(SCALES, repeat=2)]
    scored = [[_literal(b, scales) for b in three] for scales in grid]
    best = min(range(len(grid)), key=lambda i: np.mean(scored[i]))
    result = calibration.joint(found, ["sharp", "vague"])
    assert result.scales == grid[best]
    assert result.nll == pytest.approx(np.mean(scored[best]), rel=1e-9)
    assert result.error == pytest.approx(np.std(scored[best], ddof=1) / len(three) ** 0.5, rel=1e-6)


def test_descent_ends_where_no_single_change_helps(found, monkeypatch):
    monkeypatch.setattr(calibration, "_EXHAUSTIVE", 1)
    result = calibration.joint(found, ["sharp", "vague", "noise"])
    places = {name: SCALES.index(scale) for name, scale in result.scales.items()}
    for name, place in itertools.product(places, range(len(SCALES))):
        assert calibration._score(found, {**places, name: place}).nll >= result.nll


def test_a_search_ends_where_a_teacher_is_not_finite_and_its_vectors_are_refused():
    batches = _batches({"sharp": 0.1, "vague": 1.0})
    table = calibration.likelihoods(batches, [10.0, 30.0])
    spoiled = dataclasses.replace(table, **{
        field.name: {name: [[part * math.nan for part in row] for row in rows] for name, rows in value.items()}
        for field in dataclasses.fields(table) if isinstance(value := getattr(table, field.name), dict)
    })  # fmt: skip
    assert len(calibration.grow(spoiled, ["sharp", "vague"]).scales) == 1
    image, text = batches[1]["vague"]
    batches[1]["vague"] = (image, text * math.inf)
    with pytest.raises(IntegrityError, match=r"^calibrate: the stored embeddings of teacher 'vague' are not finite\.$"):
        calibration.likelihoods(batches, [10.0])


def test_comparison_holds_every_ensemble_best_first_and_growing_finds_the_best_pair(found):
    ranked = calibration.compare(found, ["sharp", "vague", "noise"])
    assert len({frozenset(e.scales) for e in ranked}) == len(ranked) == 7
    assert [e.nll for e in ranked] == sorted(e.nll for e in ranked)
    grown = calibration.grow(found, ["sharp", "vague", "noise"])
    assert grown.nll == ranked[0].nll
    assert "noise" not in grown.scales
    assert ranked[-1].scales.keys() == {"noise"}


def test_of_many_teachers_single_ones_and_the_chosen_ensemble_are_compared():
    names = [f"t{i}" for i in range(6)]
    found = calibration.likelihoods(_batches(dict.fromkeys(names, 3.0), count=1), SCALES[:2])
    chosen = calibration.joint(found, names)
    ranked = calibration.compare(found, names, also=[chosen])
    assert sorted(len(e.scales) for e in ranked) == [1] * 6 + [6]
    assert all(e.error == 0 for e in ranked)  # one batch


def test_a_sharp_scale_does_not_underflow():
    batch = {"a": (torch.eye(2)[[1, 0]], torch.eye(2))}  # every pair is wrong
    found = calibration.likelihoods([batch], [1e4])
    assert calibration.curve(found, "a") == pytest.approx([1e4])
