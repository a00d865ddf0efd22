"""The losses of multi-modal reinforced training: pure functions over tensors.

Definitions: MobileCLIP (arXiv 2311.17049) section 3.1, equations 1-3; several teachers with a logit scale each as in
MobileCLIP2 (arXiv 2508.20691) section 4; sigmoid affinities as in SigLIP (arXiv 2303.15343); the feature term as in
CLIP-KD (arXiv 2307.12732).

Every loss takes the features of the **whole** batch and, where processes share the work, the `rows` that are this
process's own: it then gives their share, and the shares of all rows add up to the loss of the whole batch.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Divergence = Literal["kl", "cross_entropy"]
"""What distillation minimizes: they differ by the teachers' entropy, so values differ and gradients are equal."""


def clip_loss(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor, *, rows: slice | None = None
) -> Tensor:
    """The contrastive loss of CLIP: mean of both directions' cross-entropy with the diagonal as target.

    Args:
        image_features: Unit-norm [batch, dim].
        text_features: Unit-norm [batch, dim]; row i belongs to image i.
        logit_scale: Scalar, 1 / temperature.
        rows: The share of these rows alone; `None` = all.

    Returns:
        Scalar, >= 0.
    """
    forth, back = _affinities(image_features, text_features, logit_scale, rows)
    target = torch.arange(len(image_features), device=image_features.device)
    if rows is None:
        return (F.cross_entropy(forth, target) + F.cross_entropy(back, target)) / 2
    own = target[rows]
    both = F.cross_entropy(forth, own, reduction="sum") + F.cross_entropy(back, own, reduction="sum")
    return both / (2 * len(target))


def distill_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    *,
    teacher_image_features: Sequence[Tensor],
    teacher_text_features: Sequence[Tensor],
    teacher_logit_scales: Sequence[float],
    divergence: Divergence = "kl",
    rows: slice | None = None,
) -> Tensor:
    """Divergence of the student's affinities from the teachers', mean of both directions.

    An affinity matrix is the softmax over the batch of scaled cosines (equation 1). `kl` is the mean over teachers of
    KL(teacher || student) (equation 2); `cross_entropy` is that against the teachers' averaged softmaxes, as the
    published code has it. Their gradients are equal: the difference is the teachers' entropy, which is constant.

    Args:
        image_features: The student's, unit-norm [batch, dim].
        text_features: The student's, unit-norm [batch, dim].
        logit_scale: The student's scale, scalar.
        teacher_image_features: Per teacher, unit-norm [batch, dim of that teacher].
        teacher_text_features: Per teacher, unit-norm [batch, dim of that teacher].
        teacher_logit_scales: Per teacher, 1 / temperature.
        divergence: See above.
        rows: The share of these rows alone; `None` = all.

    Returns:
        Scalar, >= 0; `kl` is 0 exactly where all affinities agree.
    """
    logits = _affinities(image_features, text_features, logit_scale, rows)
    student = tuple(F.log_softmax(side, dim=1) for side in logits)
    batch, teachers = len(image_features), len(teacher_logit_scales)
    total = logits[0].new_zeros(())
    mean = [torch.zeros_like(side) for side in logits] if divergence == "cross_entropy" else []
    for image, text, scale in zip(teacher_image_features, teacher_text_features, teacher_logit_scales, strict=True):
        for side, target in enumerate(_affinities(image, text, scale, rows)):
            if divergence == "cross_entropy":
                mean[side] += F.softmax(target, dim=1) / teachers
            elif rows is None:
                own = F.log_softmax(target, dim=1)
                total = total + F.kl_div(student[side], own, log_target=True, reduction="batchmean")
            else:
                own = F.log_softmax(target, dim=1)
                total = total + F.kl_div(student[side], own, log_target=True, reduction="sum") / batch
    if divergence == "kl":
        return total / (2 * teachers)
    return -sum(((p * q).sum() for p, q in zip(mean, student, strict=True)), total) / (2 * batch)


def sigmoid_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    *,
    rows: slice | None = None,
) -> Tensor:
    """SigLIP's loss: every pair of the batch is a yes-no question; summed over pairs, divided by the batch.

    Args:
        image_features: Unit-norm [batch, dim].
        text_features: Unit-norm [batch, dim]; row i belongs to image i.
        logit_scale: Scalar.
        logit_bias: Scalar, added to the scaled cosines.
        rows: The share of these images alone; `None` = all.
    """
    own = _own(image_features, rows)
    logits = logit_scale * own @ text_features.T + logit_bias
    signs = 2 * torch.eye(len(image_features), dtype=logits.dtype, device=logits.device)[rows or slice(None)] - 1
    return -F.logsigmoid(signs * logits).sum() / len(image_features)


def sigmoid_distill_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    *,
    teacher_image_features: Sequence[Tensor],
    teacher_text_features: Sequence[Tensor],
    teacher_logit_scales: Sequence[float],
    teacher_logit_biases: Sequence[float],
    divergence: Divergence = "kl",
    rows: slice | None = None,
) -> Tensor:
    """Divergence of the student's yes-no probabilities from the teachers', summed over pairs, divided by the batch.

    Args:
        image_features: The student's, unit-norm [batch, dim].
        text_features: The student's, unit-norm [batch, dim].
        logit_scale: The student's scale.
        logit_bias: The student's bias.
        teacher_image_features: Per teacher [batch, dim_k].
        teacher_text_features: Per teacher [batch, dim_k].
        teacher_logit_scales: Per teacher.
        teacher_logit_biases: Per teacher; a softmax-trained teacher has none, so one must be chosen.
        divergence: `kl` (mean over teachers) or `cross_entropy` against their averaged probabilities.
        rows: The share of these images alone; `None` = all.
    """
    own = _own(image_features, rows)
    logits = logit_scale * own @ text_features.T + logit_bias
    yes, no = F.logsigmoid(logits), F.logsigmoid(-logits)
    total = logits.new_zeros(())
    for image, text, scale, bias in zip(
        teacher_image_features, teacher_text_features, teacher_logit_scales, teacher_logit_biases, strict=True
    ):
        target = scale * _own(image, rows) @ text.T + bias
        share = torch.sigmoid(target)
        total = total - (share * yes + (1 - share) * no).sum()
        if divergence == "kl":
            total = total + (share * F.logsigmoid(target) + (1 - share) * F.logsigmoid(-target)).sum()
    return total / (len(teacher_logit_scales) * len(image_features))


def feature_loss(
    projected: Sequence[Tensor], teachers: Sequence[Tensor], *, kind: Literal["cosine", "mse"], total: int
) -> Tensor:
    """Distance of the student's projected features from each teacher's, mean over teachers, summed over rows / `total`.

    Args:
        projected: Per teacher, the student's features in that teacher's width [rows, dim_k], of any length.
        teachers: Per teacher, unit-norm [rows, dim_k].
        kind: `cosine` = 1 - cosine; `mse` = squared Euclidean distance.
        total: Rows of the whole batch.
    """
    value = projected[0].new_zeros(())
    for own, target in zip(projected, teachers, strict=True):
        if kind == "cosine":
            value = value + (1 - F.cosine_similarity(own, target, dim=1)).sum()
        else:
            value = value + (own - target).square().sum()
    return value / (len(teachers) * total)


def reinforced_loss(
    image_features: Tensor,
    texts: Sequence[Tensor],
    logit_scale: Tensor,
    *,
    distill_weight: float,
    teacher_image_features: Sequence[Tensor] = (),
    teacher_texts: Sequence[Sequence[Tensor]] = (),
    teacher_logit_scales: Sequence[float] = (),
    divergence: Divergence = "kl",
    logit_bias: Tensor | None = None,
    teacher_logit_biases: Sequence[float] = (),
    rows: slice | None = None,
) -> dict[str, Tensor]:
    """Total loss: for ground truth **plus** synthetic captions, (1 - lambda) CLIP + lambda distillation (equation 3).

    Args:
        image_features: The student's, unit-norm [batch, dim].
        texts: The student's text features per caption kind (ground truth, synthetic), each [batch, dim].
        logit_scale: The student's scale.
        distill_weight: Lambda in 0..1; a term of weight 0 is not computed.
        teacher_image_features: Per teacher [batch, dim_k].
        teacher_texts: Per caption kind, per teacher [batch, dim_k].
        teacher_logit_scales: Per teacher.
        divergence: `kl` or `cross_entropy`.
        logit_bias: The student's bias: with it both terms are sigmoid ones (SigLIP), without it softmax ones.
        teacher_logit_biases: Per teacher, for sigmoid terms.
        rows: The share of these rows alone; `None` = all.

    Returns:
        `loss` and its terms `clip` and `distill`, each a sum over the caption kinds.
    """
    zero = image_features.new_zeros(())
    clip, distill = zero, zero
    for index, text in enumerate(texts):
        if distill_weight < 1:
            if logit_bias is None:
                clip = clip + clip_loss(image_features, text, logit_scale, rows=rows)
            else:
                clip = clip + sigmoid_loss(image_features, text, logit_scale, logit_bias, rows=rows)
        if distill_weight > 0 and logit_bias is None:
            distill = distill + distill_loss(
                image_features, text, logit_scale,
                teacher_image_features=teacher_image_features,
                teacher_text_features=teacher_texts[index],
                teacher_logit_scales=teacher_logit_scales, divergence=divergence, rows=rows,
            )  # fmt: skip
        elif distill_weight > 0 and logit_bias is not None:
            distill = distill + sigmoid_distill_loss(
                image_features, text, logit_scale, logit_bias,
                teacher_image_features=teacher_image_features,
                teacher_text_features=teacher_texts[index],
                teacher_logit_scales=teacher_logit_scales, teacher_logit_biases=teacher_logit_biases,
                divergence=divergence, rows=rows,
            )  # fmt: skip
    return {"loss": (1 - distill_weight) * clip + distill_weight * distill, "clip": clip, "distill": distill}


@torch.no_grad()
def teacher_agreement(
    image_features: Tensor,
    text_features: Tensor,
    *,
    teacher_image_features: Sequence[Tensor],
    teacher_text_features: Sequence[Tensor],
    teacher_logit_scales: Sequence[float],
) -> float:
    """Share of the batch's queries, both directions, whose best match is the one the averaged teachers choose (0-1)."""
    own = image_features @ text_features.T
    sides = [torch.zeros_like(own), torch.zeros_like(own)]
    for image, text, scale in zip(teacher_image_features, teacher_text_features, teacher_logit_scales, strict=True):
        for side, target in enumerate(_affinities(image, text, scale, None)):
            sides[side] += F.softmax(target, dim=1)
    same = [a.argmax(dim=1) == b.argmax(dim=1) for a, b in zip((own, own.T), sides, strict=True)]
    return float(torch.cat(same).float().mean())


def _affinities(image: Tensor, text: Tensor, scale: Tensor | float, rows: slice | None) -> tuple[Tensor, Tensor]:
    """Scaled cosines image to text and text to image, [rows, batch] each."""
    if rows is None:
        logits = scale * image @ text.T
        return logits, logits.T
    return scale * image[rows] @ text.T, scale * text[rows] @ image.T


def _own(features: Tensor, rows: slice | None) -> Tensor:
    return features if rows is None else features[rows]
