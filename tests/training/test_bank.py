"""The bank of stored embeddings: each quantity against its definition, by parts, and what is drawn from a dataset."""

import math

import numpy as np
import pytest
import torch

from mobileclip import manifest
from mobileclip.data.columns import ColumnPlan, ColumnReader, build_columns, collect
from mobileclip.data.embeddings import decode_all
from mobileclip.training.bank import (
    Bank,
    bank_divergence,
    bank_loss,
    join_teachers,
    principal_directions,
    read_bank,
)
from tests.training.test_losses import _tensors, _unit, affinity

SCALES = (40.0, 12.5)
ROWS, WIDTH = 6, 5


def _joint(rows, seed):
    return join_teachers(_tensors([_unit(rows, dim, seed + dim) for dim in (7, 4)]), SCALES)


def _bank(width=WIDTH):
    images, texts = _joint(9, 100), _joint(13, 200)
    return Bank(SCALES, principal_directions(images, texts, width).double(), images, texts)


def _student(seed=0):
    return torch.from_numpy(_unit(ROWS, WIDTH, 300 + seed))


def test_scaled_cosines_of_the_joint_embedding_are_the_mean_of_the_teachers():
    bank = _bank()
    own, other = ([_unit(ROWS, dim, seed + dim) for dim in (7, 4)] for seed in (1, 2))
    expected = sum(s * u @ v.T for s, u, v in zip(SCALES, own, other, strict=True)) / 2
    joint = [bank.join(_tensors(side)) for side in (own, other)]
    np.testing.assert_allclose(bank.scale * joint[0] @ joint[1].T, expected, rtol=1e-12)
    assert torch.allclose(joint[0].norm(dim=1), torch.ones(ROWS, dtype=torch.float64))


def test_the_directions_keep_most_of_the_second_moment():
    """Eckart and Young: no orthonormal set of that many directions keeps more, images and texts weighing alike."""
    images, texts = _joint(9, 100), _joint(40, 200)
    moment = (images.T @ images / 9 + texts.T @ texts / 40).numpy()
    found = principal_directions(images, texts, 4).double().numpy()
    np.testing.assert_allclose(found.T @ found, np.eye(4), atol=1e-6)
    best = np.sort(np.linalg.eigvalsh(moment))[::-1]
    assert np.trace(found.T @ moment @ found) == pytest.approx(best[:4].sum(), rel=1e-6)
    assert np.diag(found.T @ moment @ found) == pytest.approx(best[:4], rel=1e-5)
    assert (np.abs(found).max(axis=0) == found.max(axis=0)).all()


@pytest.mark.parametrize("width", [11, 16])
def test_a_student_as_wide_as_the_teachers_loses_nothing(width):
    """Of two teachers, 7 and 4 wide; then the teachers' own place is the optimum and the loss there 0."""
    bank, joint = _bank(width), _joint(ROWS, 1)
    own = bank.compress(joint)
    assert own.shape == (ROWS, width)
    np.testing.assert_allclose(own @ own.T, joint @ joint.T, atol=1e-6)
    assert 0 <= float(bank_loss(own, joint, bank, total=ROWS)) < 1e-10
    other = own.roll(1, dims=0)
    assert float(bank_loss(other, joint, bank, total=ROWS)) > 0.1


def test_bank_loss_is_its_definition():
    bank, joint, student = _bank(), _joint(ROWS, 1), _student()
    literal = 0.0
    for columns in (bank.images, bank.texts):
        short = [c @ bank.directions.numpy() for c in columns.numpy()]
        short = [c / np.linalg.norm(c) for c in short]
        scale = sum(SCALES) / 2
        target, own = affinity(joint.numpy(), columns.numpy(), scale), affinity(student.numpy(), short, scale)
        for p_row, q_row in zip(target, own, strict=True):
            literal += sum(p * math.log(p / q) for p, q in zip(p_row, q_row, strict=True) if p > 0) / (2 * ROWS)
    assert float(bank_loss(student, joint, bank, total=ROWS)) == pytest.approx(literal, rel=1e-9)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda f: bank_loss(f, joint, bank, total=ROWS), [student], rtol=1e-5)
    parts = [bank_loss(student[rows], joint[rows], bank, total=ROWS) for rows in (slice(0, 2), slice(2, ROWS))]
    assert float(sum(parts)) == pytest.approx(literal, rel=1e-9)


def test_images_weigh_as_much_as_all_texts():
    bank = _bank()
    features = {name: _student(k) for k, name in enumerate(("image", "text", "synthetic_text"))}
    joint = {name: _joint(ROWS, 10 * k) for k, name in enumerate(features)}
    each = {name: float(bank_loss(features[name], joint[name], bank, total=ROWS)) for name in features}
    found = float(bank_divergence(features, joint, bank, total=ROWS))
    assert found == pytest.approx(each["image"] / 2 + (each["text"] + each["synthetic_text"]) / 4, rel=1e-12)


def _stored(folder, content, kinds, *, every=1):
    """All stored vectors of these columns of every n-th training sample of a shard, by their bytes."""
    found = set()
    for shard in content.split("train"):
        for kind in kinds:
            rows, ends = decode_all(ColumnReader(folder, content.column(f"first.{kind}"), shard))
            for sample in range(0, shard.samples, every):
                found |= {row.numpy().tobytes() for row in rows[ends[sample] : ends[sample + 1]]}
    return found


@pytest.mark.parametrize("selection", [True, False])
def test_a_large_bank_holds_what_is_stored_of_the_selected_samples(tiny_reinforced, tmp_path, selection):
    content = manifest.read(tiny_reinforced).moved(tiny_reinforced, str(tmp_path))
    plan, shards = ColumnPlan("selection", "selection", {}), content.split("train")
    build_columns(
        str(tmp_path), [plan], shards,
        lambda shard, _: {"selection": {"keep": (torch.arange(shard.samples) % 3 == 0).to(torch.uint8)}},
    )  # fmt: skip
    content = collect(str(tmp_path), [plan], shards, content)
    bank = read_bank(
        str(tmp_path), content, {"first": 20.0}, columns=("captions", "coca"), width=8, size=10_000, seed=0,
        selection=selection,
    )  # fmt: skip
    for side, kinds in ((bank.images, ("views",)), (bank.texts, ("captions", "coca"))):
        expected = _stored(str(tmp_path), content, kinds, every=3 if selection else 1)
        assert {row.numpy().tobytes() for row in side} == expected
    assert len(bank.texts) == len({row.numpy().tobytes() for row in bank.texts})


def test_a_small_bank_is_a_draw_by_the_seed(tiny_reinforced):
    content = manifest.read(tiny_reinforced)
    draws = [
        read_bank(tiny_reinforced, content, {"first": 20.0}, columns=("captions",), width=8, size=5, seed=seed)
        for seed in (0, 0, 1)
    ]
    stored = _stored(tiny_reinforced, content, ("views",))
    assert all(len(bank.images) == 5 == len(bank.texts) for bank in draws)
    assert all(row.numpy().tobytes() in stored for row in draws[0].images)
    assert torch.equal(draws[0].images, draws[1].images)
    assert torch.equal(draws[0].texts, draws[1].texts)
    assert not torch.equal(draws[0].images, draws[2].images)
