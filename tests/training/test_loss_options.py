"""The losses beside the papers' default: each against a literal NumPy definition in double precision, and by parts."""

import itertools
import math

import numpy as np
import pytest
import torch

from mobileclip.training.losses import (
    clip_loss,
    distill_loss,
    feature_loss,
    reinforced_loss,
    sigmoid_distill_loss,
    sigmoid_loss,
    teacher_agreement,
)
from tests.training.test_losses import BATCH, DIM, _teacher, _tensors, _unit, affinity

BIASES = (-3.0, -1.0, -8.0)


def sigma(x):
    return 1 / (1 + math.exp(-x))


def literal_cross_entropy(image, text, scale, images, texts, scales):
    """-sum P log Q per row, P the mean of the teachers' softmaxes, mean of rows and of both directions."""
    total = 0.0
    for forth in (True, False):
        own = np.array(affinity(image, text, scale) if forth else affinity(text, image, scale))
        mean = sum(
            np.array(affinity(i, t, s) if forth else affinity(t, i, s))
            for i, t, s in zip(images, texts, scales, strict=True)
        ) / len(scales)
        total -= sum(p * math.log(q) for p, q in zip(mean.ravel(), own.ravel(), strict=True))
    return total / (2 * len(image))


def literal_sigmoid(image, text, scale, bias):
    """SigLIP, algorithm 1: -log sigma(z (s u.v + b)) over all pairs, z = +1 for true pairs and -1 for others."""
    total = 0.0
    for i, u in enumerate(image):
        for j, v in enumerate(text):
            total -= math.log(sigma((1 if i == j else -1) * (scale * float(u @ v) + bias)))
    return total / len(image)


def literal_sigmoid_distill(image, text, scale, bias, images, texts, scales, biases, divergence):
    total = 0.0
    for i, j in itertools.product(range(len(image)), repeat=2):
        q = sigma(scale * float(image[i] @ text[j]) + bias)
        shares = [sigma(s * float(u[i] @ v[j]) + b) for u, v, s, b in zip(images, texts, scales, biases, strict=True)]
        if divergence == "kl":
            total += sum(
                p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)) for p in shares if 0 < p < 1
            ) / len(shares)
        else:
            p = sum(shares) / len(shares)
            total -= p * math.log(q) + (1 - p) * math.log(1 - q)
    return total / len(image)


def _student(count=2, grad=False):
    found = _tensors(_unit(BATCH, DIM, seed) for seed in range(count))
    return [f.requires_grad_() for f in found] if grad else found


def _number(value, grad=False):
    return torch.tensor(value, dtype=torch.float64, requires_grad=grad)


def _soft_teacher():
    """Three teachers with scales at which no probability is 0 or 1 in double precision."""
    images, texts, _ = _teacher()
    return images, texts[0], (9.0, 5.0, 14.0)


def test_cross_entropy_is_its_definition_and_its_gradient_is_kls():
    images, texts, scales = _soft_teacher()
    gradients, values = [], []
    for divergence in ("kl", "cross_entropy"):
        student, scale = _student(grad=True), _number(20.0, grad=True)
        loss = distill_loss(
            *student, scale, teacher_image_features=_tensors(images), teacher_text_features=_tensors(texts),
            teacher_logit_scales=scales, divergence=divergence,
        )  # fmt: skip
        loss.backward()
        values.append(float(loss))
        gradients.append([*(s.grad for s in student), scale.grad])
    arrays = [s.numpy() for s in _student()]
    assert values[1] == pytest.approx(literal_cross_entropy(*arrays, 20.0, images, texts, scales), rel=1e-10)
    assert values[1] - values[0] > 0.1  # the teachers' entropy
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_sigmoid_loss_is_its_definition():
    image, text = _student()
    found = float(sigmoid_loss(image, text, _number(7.0), _number(-4.0)))
    assert found == pytest.approx(literal_sigmoid(image.numpy(), text.numpy(), 7.0, -4.0), rel=1e-10)


@pytest.mark.parametrize("divergence", ["kl", "cross_entropy"])
def test_sigmoid_distillation_is_its_definition(divergence):
    image, text = _student()
    images, texts, scales = _soft_teacher()
    found = sigmoid_distill_loss(
        image, text, _number(7.0), _number(-4.0), teacher_image_features=_tensors(images),
        teacher_text_features=_tensors(texts), teacher_logit_scales=scales, teacher_logit_biases=BIASES,
        divergence=divergence,
    )  # fmt: skip
    literal = literal_sigmoid_distill(image.numpy(), text.numpy(), 7.0, -4.0, images, texts, scales, BIASES, divergence)
    assert float(found) == pytest.approx(literal, rel=1e-9)


def test_sigmoid_distillation_is_zero_where_all_agree():
    image, text = _student()
    arguments = {"teacher_text_features": [text], "teacher_logit_scales": [7.0], "teacher_logit_biases": [-4.0]}
    loss = sigmoid_distill_loss(image, text, _number(7.0), _number(-4.0), teacher_image_features=[image], **arguments)
    assert abs(float(loss)) < 1e-14


@pytest.mark.parametrize("kind", ["cosine", "mse"])
def test_feature_loss_is_its_definition(kind):
    teachers = [_unit(BATCH, dim, dim) for dim in (7, 4)]
    projected = [2.5 * _unit(BATCH, dim, 30 + dim) for dim in (7, 4)]
    literal = 0.0
    for own, target in zip(projected, teachers, strict=True):
        for p, t in zip(own, target, strict=True):
            literal += (
                (1 - p @ t / (np.linalg.norm(p) * np.linalg.norm(t))) if kind == "cosine" else ((p - t) ** 2).sum()
            )
    found = feature_loss(_tensors(projected), _tensors(teachers), kind=kind, total=BATCH)
    assert float(found) == pytest.approx(literal / (2 * BATCH), rel=1e-10)
    tensors = [t.requires_grad_() for t in _tensors(projected)]
    assert torch.autograd.gradcheck(
        lambda *p: feature_loss(p, _tensors(teachers), kind=kind, total=BATCH), tensors, atol=1e-6, rtol=1e-5
    )


def _total(student, scale, bias, rows=None, *, weight=0.6, divergence="kl"):
    images, texts, scales = _teacher()
    scales = (9.0, 5.0, 14.0)
    return reinforced_loss(
        student[0], student[1:], scale, distill_weight=weight, teacher_image_features=_tensors(images),
        teacher_texts=[_tensors(kind) for kind in texts], teacher_logit_scales=scales, divergence=divergence,
        logit_bias=bias, teacher_logit_biases=BIASES, rows=rows,
    )  # fmt: skip


@pytest.mark.parametrize("divergence", ["kl", "cross_entropy"])
@pytest.mark.parametrize("sigmoid", [False, True])
def test_gradcheck(divergence, sigmoid):
    inputs = [*_student(3, grad=True), _number(6.0, grad=True), _number(-2.0, grad=sigmoid)]

    def total(image, truth, synthetic, scale, bias):
        return _total([image, truth, synthetic], scale, bias if sigmoid else None, divergence=divergence)["loss"]

    assert torch.autograd.gradcheck(total, inputs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("divergence", ["kl", "cross_entropy"])
@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("weight", [0.0, 0.6, 1.0])
def test_the_shares_of_rows_add_up_in_value_and_gradient(divergence, sigmoid, weight):
    """Processes hold 1, 3 and 2 of six rows: what each computes adds up to the whole batch's loss."""
    found = []
    for parts in ([None], [slice(0, 1), slice(1, 4), slice(4, 6)]):
        student, scale = _student(3, grad=True), _number(6.0, grad=True)
        bias = _number(-2.0, grad=True) if sigmoid else None
        shares = [_total(student, scale, bias, rows, weight=weight, divergence=divergence) for rows in parts]
        sum(share["loss"] for share in shares).backward()
        terms = {name: float(sum(share[name] for share in shares)) for name in shares[0]}
        found.append((terms, [s.grad for s in student] + [scale.grad]))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-12)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)


def test_plain_clip_by_parts():
    image, text = _student()
    whole = float(clip_loss(image, text, _number(20.0)))
    parts = [float(clip_loss(image, text, _number(20.0), rows=slice(a, a + 2))) for a in (0, 2, 4)]
    assert sum(parts) == pytest.approx(whole, rel=1e-12)


def test_agreement_counts_queries_with_the_same_best_match():
    eye = torch.eye(4)
    shifted = eye[[1, 2, 3, 0]]
    swapped = eye[[1, 0, 2, 3]]

    def agreement(text, teacher_text):
        return teacher_agreement(
            eye, text, teacher_image_features=[eye], teacher_text_features=[teacher_text], teacher_logit_scales=[10.0]
        )

    assert agreement(eye, eye) == 1.0
    assert agreement(shifted, eye) == 0.0
    assert agreement(swapped, eye) == 0.5
    # The surer of two teachers decides.
    both = teacher_agreement(
        eye, eye, teacher_image_features=[eye, eye], teacher_text_features=[eye, shifted],
        teacher_logit_scales=[20.0, 1.0],
    )  # fmt: skip
    assert both == 1.0
