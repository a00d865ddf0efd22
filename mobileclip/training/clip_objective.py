"""The reinforced loss of a CLIP student as an objective: what it learns from, its towers, and its terms."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mobileclip.data.loader import collate_teachers
from mobileclip.data.preprocess import image_tensor
from mobileclip.models.zoo import Clip
from mobileclip.training.bank import Bank, bank_divergence
from mobileclip.training.losses import Divergence, reinforced_loss, teacher_agreement
from mobileclip.training.objective import Batch, Features, Losses
from mobileclip.training.projected import Projected
from mobileclip.training.world import World

SIGMOID_BIAS = -10.0
"""Bias that SigLIP starts from (arXiv 2303.15343, section 3.2)."""

_KINDS = {"text": "text", "synthetic_text": "synthetic"}

TeacherFeatures = Callable[[Batch], Batch]
"""A batch to its `teacher_image.NAME`, `teacher_text.NAME`, ...: teachers that run in the step instead of before it."""


@dataclass(frozen=True)
class TeacherAffinity:
    """How a teacher's cosines become affinities.

    Attributes:
        name: Of its embedding columns.
        logit_scale: Factor on its cosines, 1 / temperature.
        logit_bias: Added to its scaled cosines where affinities are sigmoids.
    """

    name: str
    logit_scale: float
    logit_bias: float = SIGMOID_BIAS


@dataclass(frozen=True, kw_only=True)
class Reinforcement:
    """What a student learns from beside its captions; the default is plain CLIP.

    Attributes:
        teachers: In the ensemble's order; empty = plain CLIP.
        distill_weight: Lambda in 0..1; 0 = not computed.
        divergence: `kl` or `cross_entropy`: values differ, gradients do not.
        affinity: `softmax` (CLIP) or `sigmoid` (SigLIP): which loss both terms are.
        feature_weight: Weight of the distance of projected features from the teachers' own; 0 = not computed.
        feature_distance: `cosine` or `mse`.
        bank_weight: Weight of the affinities to a bank of stored embeddings; 0 = not computed.
    """

    teachers: tuple[TeacherAffinity, ...] = ()
    distill_weight: float = 0.0
    divergence: Divergence = "kl"
    affinity: Literal["softmax", "sigmoid"] = "softmax"
    feature_weight: float = 0.0
    feature_distance: Literal["cosine", "mse"] = "cosine"
    bank_weight: float = 0.0

    @property
    def names(self) -> tuple[str, ...]:
        """Teachers by name."""
        return tuple(teacher.name for teacher in self.teachers)

    @property
    def scales(self) -> dict[str, float]:
        """Logit scale by teacher."""
        return {teacher.name: teacher.logit_scale for teacher in self.teachers}


class ClipObjective:
    """The reinforced loss in two halves, see `mobileclip.training.objective.Objective`."""

    def __init__(
        self, clip: Clip, reinforcement: Reinforcement, world: World, *, total: int, trained: nn.Module | None = None,
        online: TeacherFeatures | None = None, bank: Bank | None = None, compiled: bool = False,
    ) -> None:  # fmt: skip
        """Take the towers of `clip`.

        Args:
            clip: The student.
            reinforcement: The loss.
            world: The processes.
            total: Rows of the whole batch, over all processes.
            trained: `Projected` around the student's model where features are compared; `None` = the model.
            online: Runs the teachers in every step; `None` = their embeddings come with the batch.
            bank: Where `reinforcement` needs one, on this process's device.
            compiled: Compile the towers.
        """
        self._model: Any = clip.model
        self._preprocess = clip.preprocess
        self._reinforcement, self._world, self._total = reinforcement, world, total
        self._projected = trained if isinstance(trained, Projected) else None
        self._online, self._bank = online, bank
        model: Any = clip.model
        encode_image, encode_text = model.encode_image, model.encode_text
        if compiled:
            encode_image, encode_text = torch.compile(encode_image), torch.compile(encode_text)
        self._encode_image, self._encode_text = encode_image, encode_text

    def encode(self, batch: Batch) -> Features:
        """Unit-norm `image`, `text` and, where the batch has it, `synthetic_text` [rows, width]."""
        images = image_tensor(batch["image"], self._preprocess).contiguous(memory_format=torch.channels_last)
        names = [name for name in _KINDS if name in batch]
        image = self._encode_image(images, normalize=True)
        # One pass of the text tower for both kinds of captions.
        texts = self._encode_text(torch.cat([batch[name] for name in names]), normalize=True).chunk(len(names))
        return {"image": image, **dict(zip(names, texts, strict=True))}

    def criterion(self, features: Features, batch: Batch) -> Losses:
        """This process's share of `loss`, its terms `clip` and `distill`, and `feature` and `bank` where wanted."""
        spec = self._reinforcement
        batch = self._with_teachers(batch)
        names = [name for name in _KINDS if name in features]
        image, *texts = self._gather([features["image"], *(features[name] for name in names)])
        teachers = self._teachers(batch, names) if spec.distill_weight > 0 else [[]]
        losses = reinforced_loss(
            image,
            texts,
            self._model.logit_scale.exp(),
            distill_weight=spec.distill_weight,
            teacher_image_features=teachers[0],
            teacher_texts=teachers[1:],
            teacher_logit_scales=[teacher.logit_scale for teacher in spec.teachers],
            divergence=spec.divergence,
            logit_bias=self._model.logit_bias if spec.affinity == "sigmoid" else None,
            teacher_logit_biases=[teacher.logit_bias for teacher in spec.teachers],
            rows=None if self._world.size == 1 else self._world.rows(self._total),
        )
        weights = {"feature": spec.feature_weight, "bank": spec.bank_weight}
        for name, value in self._teacher_space_terms(features, batch).items():
            losses[name] = value
            losses["loss"] = losses["loss"] + weights[name] * value
        return losses

    def measure(self, features: Features, batch: Batch) -> dict[str, float]:
        """`teacher_agreement` (share 0-1) with the ground-truth captions; nothing without teachers."""
        if not self._reinforcement.teachers:
            return {}
        teachers = self._teachers(self._with_teachers(batch), ["text"])
        image, text = self._gather([features["image"], features["text"]])
        share = teacher_agreement(
            image, text, teacher_image_features=teachers[0], teacher_text_features=teachers[1],
            teacher_logit_scales=[teacher.logit_scale for teacher in self._reinforcement.teachers],
        )  # fmt: skip
        return {"teacher_agreement": share}

    def _with_teachers(self, batch: Batch) -> Batch:
        return batch if self._online is None else batch | self._online(batch)

    def _teacher_space_terms(self, features: Features, batch: Batch) -> Losses:
        """The terms that compare features with the teachers' own, this process's share, by name."""
        spec = self._reinforcement
        kinds = {"image": "image"} | {name: kind for name, kind in _KINDS.items() if name in features}
        own = {name: collate_teachers(batch, kind, spec.names) for name, kind in kinds.items()}
        found: Losses = {}
        if self._projected is not None:
            found["feature"] = self._projected.distance(features, own, kind=spec.feature_distance, total=self._total)
        if self._bank is not None:
            joint: Mapping[str, Tensor] = {name: self._bank.join(teachers) for name, teachers in own.items()}
            found["bank"] = bank_divergence(features, joint, self._bank, total=self._total)
        return found

    def _teachers(self, batch: Batch, names: Sequence[str]) -> list[list[Tensor]]:
        """Per kind (image, then captions) each teacher's features of the whole batch."""
        own = self._reinforcement.names
        kinds = ("image", *(_KINDS[name] for name in names))
        with torch.no_grad():
            whole = self._gather([t for kind in kinds for t in collate_teachers(batch, kind, own)])
        return [whole[start : start + len(own)] for start in range(0, len(whole), len(own))]

    def _gather(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """All processes' rows of some [rows, width] tensors, in one message."""
        if self._world.size == 1 or not tensors:
            return list(tensors)
        joined = self._world.gather(torch.cat(list(tensors), dim=1), self._total)
        return list(torch.split(joined, [t.shape[1] for t in tensors], dim=1))
