"""The losses of multi-modal reinforced training: pure functions over tensors.

Definitions: MobileCLIP (arXiv 2311.17049) section 3.1, equations 1-3; several teachers with a logit scale each as in
MobileCLIP2 (arXiv 2508.20691) section 4.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def clip_loss(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    """The contrastive loss of CLIP: mean of both directions' cross-entropy with the diagonal as target.

    Args:
        image_features: Unit-norm [batch, dim].
        text_features: Unit-norm [batch, dim]; row i belongs to image i.
        logit_scale: Scalar, 1 / temperature.

    Returns:
        Scalar, >= 0.
    """
    logits = logit_scale * image_features @ text_features.T
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def distill_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    *,
    teacher_image_features: Sequence[Tensor],
    teacher_text_features: Sequence[Tensor],
    teacher_logit_scales: Sequence[float],
) -> Tensor:
    """Mean over teachers and directions of KL(teacher affinities || student affinities).

    An affinity matrix is the softmax over the batch of scaled cosines (equation 1). The gradient equals that of the
    cross-entropy against the teachers' averaged probabilities, as KL differs from it by the teachers' entropy.

    Args:
        image_features: The student's, unit-norm [batch, dim].
        text_features: The student's, unit-norm [batch, dim].
        logit_scale: The student's scale, scalar.
        teacher_image_features: Per teacher, unit-norm [batch, dim of that teacher].
        teacher_text_features: Per teacher, unit-norm [batch, dim of that teacher].
        teacher_logit_scales: Per teacher, 1 / temperature.

    Returns:
        Scalar, >= 0; 0 exactly where all affinities agree.
    """
    logits = logit_scale * image_features @ text_features.T
    student = (F.log_softmax(logits, dim=1), F.log_softmax(logits.T, dim=1))
    total = logits.new_zeros(())
    for image, text, scale in zip(teacher_image_features, teacher_text_features, teacher_logit_scales, strict=True):
        targets = scale * image @ text.T
        for own, target in zip(student, (targets, targets.T), strict=True):
            total = total + F.kl_div(own, F.log_softmax(target, dim=1), log_target=True, reduction="batchmean")
    return total / (2 * len(teacher_logit_scales))


def reinforced_loss(
    image_features: Tensor,
    texts: Sequence[Tensor],
    logit_scale: Tensor,
    *,
    distill_weight: float,
    teacher_image_features: Sequence[Tensor] = (),
    teacher_texts: Sequence[Sequence[Tensor]] = (),
    teacher_logit_scales: Sequence[float] = (),
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

    Returns:
        `loss` and its terms `clip` and `distill`, each a sum over the caption kinds.
    """
    zero = image_features.new_zeros(())
    clip, distill = zero, zero
    for index, text in enumerate(texts):
        if distill_weight < 1:
            clip = clip + clip_loss(image_features, text, logit_scale)
        if distill_weight > 0:
            distill = distill + distill_loss(
                image_features, text, logit_scale,
                teacher_image_features=teacher_image_features,
                teacher_text_features=teacher_texts[index],
                teacher_logit_scales=teacher_logit_scales,
            )  # fmt: skip
    return {"loss": (1 - distill_weight) * clip + distill_weight * distill, "clip": clip, "distill": distill}
