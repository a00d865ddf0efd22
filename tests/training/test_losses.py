"""The losses against a literal definition in double precision: loops over samples, teachers and directions."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mobileclip.training.losses import clip_loss, distill_loss, reinforced_loss

BATCH, DIM = 6, 5
TEACHERS = ((7, 40.0), (4, 12.5), (9, 100.0))
"""(embedding width, logit scale)."""


def _unit(rows, columns, seed):
    values = np.random.default_rng(seed).normal(size=(rows, columns))
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def _teacher(count=3, offset=0):
    """Image features, ground-truth and synthetic text features, scales."""
    image = [_unit(BATCH, dim, 10 + offset + k) for k, (dim, _) in enumerate(TEACHERS[:count])]
    texts = [
        [_unit(BATCH, dim, 20 + offset + 10 * kind + k) for k, (dim, _) in enumerate(TEACHERS[:count])]
        for kind in (0, 1)
    ]
    return image, texts, [scale for _, scale in TEACHERS[:count]]


# arXiv 2311.17049, equations 1 to 3, word for word.


def affinity(image, text, scale):
    """Equation 1: S_tau(U, V)_ij = exp(u_i . v_j / tau) / sum_j' exp(u_i . v_j' / tau), with scale = 1 / tau."""
    rows = []
    for u in image:
        products = [scale * sum(a * b for a, b in zip(u, v, strict=True)) for v in text]
        largest = max(products)
        powers = [math.exp(p - largest) for p in products]
        rows.append([p / sum(powers) for p in powers])
    return rows


def kl(target, own):
    """KL(P || Q) of two matrices of row distributions, mean over the batch."""
    total = 0.0
    for p_row, q_row in zip(target, own, strict=True):
        total += sum(p * math.log(p / q) for p, q in zip(p_row, q_row, strict=True) if p > 0)
    return total / len(target)


def literal_distill(image, text, scale, teacher_images, teacher_texts, teacher_scales):
    """Equation 2: mean over teachers of half the sum of both directions' KL."""
    total = 0.0
    for t_image, t_text, t_scale in zip(teacher_images, teacher_texts, teacher_scales, strict=True):
        image_to_text = kl(affinity(t_image, t_text, t_scale), affinity(image, text, scale))
        text_to_image = kl(affinity(t_text, t_image, t_scale), affinity(text, image, scale))
        total += 0.5 * (image_to_text + text_to_image)
    return total / len(teacher_scales)


def literal_clip(image, text, scale):
    """The contrastive loss of CLIP: the true pair's -log probability, mean of both directions."""
    forth, back = affinity(image, text, scale), affinity(text, image, scale)
    return sum(-0.5 * (math.log(forth[i][i]) + math.log(back[i][i])) for i in range(len(image))) / len(image)


def literal_total(image, texts, scale, weight, teacher_images, teacher_texts, teacher_scales):
    """Equation 3: (1 - lambda) CLIP + lambda distillation, for ground truth plus synthetic captions."""
    total = 0.0
    for text, of_teachers in zip(texts, teacher_texts, strict=True):
        total += (1 - weight) * literal_clip(image, text, scale)
        total += weight * literal_distill(image, text, scale, teacher_images, of_teachers, teacher_scales)
    return total


def _tensors(values):
    return [torch.from_numpy(v) for v in values]


def _reinforced(student, scale, weight, teacher):
    image, texts, scales = teacher
    return reinforced_loss(
        student[0], student[1:], scale, distill_weight=weight, teacher_image_features=_tensors(image),
        teacher_texts=[_tensors(kind) for kind in texts[: len(student) - 1]], teacher_logit_scales=scales,
    )  # fmt: skip


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("kinds", [1, 2])
@pytest.mark.parametrize("teachers", [1, 3])
def test_loss_and_gradients_are_the_papers(weight, kinds, teachers):
    image, texts, scales = _teacher(teachers)
    arrays = [_unit(BATCH, DIM, seed) for seed in range(1 + kinds)]
    student = [torch.from_numpy(a).requires_grad_() for a in arrays]
    scale = torch.tensor(20.0, dtype=torch.float64, requires_grad=True)
    found = _reinforced(student, scale, weight, (image, texts, scales))
    found["loss"].backward()

    def literal(values, student_scale):
        return literal_total(values[0], values[1:], student_scale, weight, image, texts[:kinds], scales)

    assert float(found["loss"]) == pytest.approx(literal(arrays, 20.0), rel=1e-9)
    h = 1e-5
    for which, (row, column) in itertools.product(range(1 + kinds), [(0, 0), (3, 2), (5, 4)]):
        moved = [[a.copy() for a in arrays] for _ in range(2)]
        moved[0][which][row, column] += h
        moved[1][which][row, column] -= h
        numeric = (literal(moved[0], 20.0) - literal(moved[1], 20.0)) / (2 * h)
        assert float(student[which].grad[row, column]) == pytest.approx(numeric, rel=1e-6, abs=1e-8)
    numeric = (literal(arrays, 20.0 + h) - literal(arrays, 20.0 - h)) / (2 * h)
    assert float(scale.grad) == pytest.approx(numeric, rel=1e-6, abs=1e-8)


def test_terms_are_reported_and_add_up():
    student = _tensors(_unit(BATCH, DIM, seed) for seed in range(3))
    scale = torch.tensor(20.0, dtype=torch.float64)
    found = _reinforced(student, scale, 0.3, _teacher())
    assert float(found["loss"]) == pytest.approx(0.7 * float(found["clip"]) + 0.3 * float(found["distill"]), rel=1e-12)
    expected = sum(literal_clip(student[0].numpy(), text.numpy(), 20.0) for text in student[1:])
    assert float(found["clip"]) == pytest.approx(expected, rel=1e-9)


def test_float32_is_the_definition_to_a_millionth():
    image, texts, scales = _teacher()
    student = [torch.from_numpy(_unit(BATCH, DIM, seed)).float() for seed in range(3)]
    found = reinforced_loss(
        student[0], student[1:], torch.tensor(20.0), distill_weight=0.7,
        teacher_image_features=[t.float() for t in _tensors(image)],
        teacher_texts=[[t.float() for t in _tensors(kind)] for kind in texts], teacher_logit_scales=scales,
    )  # fmt: skip
    expected = literal_total(
        student[0].double().numpy(),
        [s.double().numpy() for s in student[1:]],
        20.0,
        0.7,
        image,
        texts,
        scales,
    )
    assert float(found["loss"]) == pytest.approx(expected, rel=1e-6)


def test_gradcheck():
    teacher = _teacher(2)
    student = [torch.from_numpy(_unit(BATCH, DIM, seed)).requires_grad_() for seed in range(3)]
    scale = torch.tensor(15.0, dtype=torch.float64, requires_grad=True)

    def total(image, truth, synthetic, student_scale):
        return _reinforced([image, truth, synthetic], student_scale, 0.6, teacher)["loss"]

    assert torch.autograd.gradcheck(total, (*student, scale), atol=1e-6, rtol=1e-5)


def _distill(image, text, scale, teacher_images, teacher_texts, scales):
    return distill_loss(
        image, text, scale, teacher_image_features=teacher_images, teacher_text_features=teacher_texts,
        teacher_logit_scales=scales,
    )  # fmt: skip


def test_zero_exactly_where_affinities_agree():
    image, text = _tensors([_unit(BATCH, DIM, 0), _unit(BATCH, DIM, 1)])
    rotation = torch.linalg.qr(torch.from_numpy(_unit(DIM, DIM, 3)))[0]
    scale = torch.tensor(30.0, dtype=torch.float64, requires_grad=True)
    image.requires_grad_()
    # A rotated copy of the student has the same cosines in another space.
    loss = _distill(image, text, scale, [(image @ rotation).detach()], [text @ rotation], [30.0])
    loss.backward()
    assert abs(float(loss)) < 1e-14
    assert float(image.grad.abs().max()) < 1e-13
    assert float(_distill(image, text, scale, [image], [text], [31.0])) > 1e-6
    rng = np.random.default_rng(0)
    for seed in rng.integers(0, 1000, 20):
        assert (
            float(
                _distill(
                    image,
                    text,
                    scale,
                    *[[t] for t in _tensors([_unit(BATCH, 4, seed), _unit(BATCH, 4, seed + 1)])],
                    [9.0],
                )
            )
            > 0
        )


def test_gradient_is_that_of_the_cross_entropy_with_averaged_softmaxes():
    teacher_images, teacher_texts, scales = _teacher()
    gradients = []
    for averaged in (False, True):
        image, text = [torch.from_numpy(_unit(BATCH, DIM, seed)).requires_grad_() for seed in (0, 1)]
        scale = torch.tensor(20.0, dtype=torch.float64, requires_grad=True)
        if averaged:
            logits = scale * image @ text.T
            loss = torch.zeros((), dtype=torch.float64)
            for transpose in (False, True):
                targets = [
                    s * i @ t.T
                    for i, t, s in zip(_tensors(teacher_images), _tensors(teacher_texts[0]), scales, strict=True)
                ]
                mean = torch.stack([F.softmax(t.T if transpose else t, dim=1) for t in targets]).mean(dim=0)
                loss = loss + F.cross_entropy(logits.T if transpose else logits, mean) / 2
        else:
            loss = _distill(image, text, scale, _tensors(teacher_images), _tensors(teacher_texts[0]), scales)
        loss.backward()
        gradients.append([image.grad, text.grad, scale.grad])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_the_order_of_the_batch_does_not_matter():
    image, texts, scales = _teacher()
    order = np.random.default_rng(0).permutation(BATCH)
    student = [_unit(BATCH, DIM, seed) for seed in range(3)]
    scale = torch.tensor(20.0, dtype=torch.float64)
    plain = _reinforced(_tensors(student), scale, 0.5, (image, texts, scales))
    mixed = ([i[order] for i in image], [[t[order] for t in kind] for kind in texts], scales)
    permuted = _reinforced(_tensors(s[order] for s in student), scale, 0.5, mixed)
    for name, value in plain.items():
        assert float(permuted[name]) == pytest.approx(float(value), rel=1e-12)
    # But images must stay with their own captions.
    wrong = _reinforced(_tensors([student[0][order], *student[1:]]), scale, 0.5, (image, texts, scales))
    assert float(wrong["loss"]) != pytest.approx(float(plain["loss"]), rel=1e-3)


def test_the_order_of_teachers_does_not_matter():
    image, texts, scales = _teacher()
    student = _tensors(_unit(BATCH, DIM, seed) for seed in range(2))
    scale = torch.tensor(20.0, dtype=torch.float64)
    forth = _distill(*student, scale, _tensors(image), _tensors(texts[0]), scales)
    back = _distill(*student, scale, _tensors(image[::-1]), _tensors(texts[0][::-1]), scales[::-1])
    assert float(forth) == pytest.approx(float(back), rel=1e-12)


class _Operations(TorchDispatchMode):
    """Names of the operations that ran."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.name())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("weight", "clip", "kl_"), [(0.0, True, False), (0.5, True, True), (1.0, False, True)])
def test_a_term_of_weight_zero_is_not_computed(weight, clip, kl_):
    student = _tensors(_unit(BATCH, DIM, seed) for seed in range(3))
    with _Operations() as ran:
        found = _reinforced(student, torch.tensor(20.0, dtype=torch.float64), weight, _teacher())
    assert ("aten::nll_loss_forward" in ran.names) == clip
    assert ("aten::exp" in ran.names) == kl_  # the targets' probabilities; cross-entropy needs none
    assert (float(found["clip"]) > 0, float(found["distill"]) > 0) == (clip, kl_)


def test_lambda_zero_ignores_teachers_that_are_not_numbers():
    image, texts, scales = _teacher(1)
    student = [torch.from_numpy(_unit(BATCH, DIM, seed)).requires_grad_() for seed in range(3)]
    broken = ([i * math.nan for i in image], [[t * math.nan for t in kind] for kind in texts], scales)
    found = _reinforced(student, torch.tensor(20.0, dtype=torch.float64), 0.0, broken)
    found["loss"].backward()
    assert math.isfinite(float(found["loss"]))
    assert all(torch.isfinite(s.grad).all() for s in student)


def test_a_very_sure_teacher_gives_finite_numbers():
    image = torch.eye(BATCH)
    student = torch.from_numpy(_unit(BATCH, DIM, 0)).float().requires_grad_()
    loss = _distill(student, student.detach(), torch.tensor(100.0), [image], [image], [1e4])
    loss.backward()
    assert math.isfinite(float(loss))
    assert torch.isfinite(student.grad).all()


def test_clip_loss_of_equal_pairs_is_log_of_the_batch():
    same = torch.ones(8, 4) / 2
    assert float(clip_loss(same, same, torch.tensor(50.0))) == pytest.approx(math.log(8), rel=1e-6)
    eye = torch.eye(8)
    assert float(clip_loss(eye, eye, torch.tensor(100.0))) < 1e-6
