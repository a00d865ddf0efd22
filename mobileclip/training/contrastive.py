"""Training image and text towers on a prepared or reinforced dataset: what train_teacher and distill share."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mobileclip import storage
from mobileclip.config import Training
from mobileclip.data.loader import PairDataset, batches, collate_teachers
from mobileclip.data.preprocess import image_tensor
from mobileclip.manifest import spec_digest
from mobileclip.models.zoo import Clip
from mobileclip.training.bank import Bank, bank_divergence
from mobileclip.training.loop import Batch, Objective, Report, Result, train
from mobileclip.training.losses import Divergence, reinforced_loss, teacher_agreement
from mobileclip.training.objective import Features, Losses
from mobileclip.training.projected import Projected
from mobileclip.training.world import World, join

logger = logging.getLogger(__name__)

_TEXTS = ("text", "synthetic_text")
_KINDS = {"text": "text", "synthetic_text": "synthetic"}
# What SigLIP starts from (arXiv 2303.15343, section 3.2).
_SIGMOID_SCALE, _SIGMOID_BIAS = math.log(10.0), -10.0
# Keys of `Training` that change no result: a run goes on under other ones.
FREE = {"workers", "checkpoint_every", "keep_checkpoints", "resume"}


@dataclass(frozen=True)
class Reinforcement:
    """What the distillation term needs.

    Attributes:
        distill_weight: Lambda.
        teachers: Names in the ensemble's order; empty = plain CLIP.
        logit_scales: Per teacher, 1 / temperature.
        divergence: `kl` or `cross_entropy`: values differ, gradients do not.
        affinity: `softmax` (CLIP) or `sigmoid` (SigLIP): which loss both terms are.
        logit_biases: Per teacher, for sigmoid affinities; empty = SigLIP's -10 for each.
        feature_weight: Weight of the distance of projected features from the teachers' own; 0 = not computed.
        feature_distance: `cosine` or `mse`.
        bank_weight: Weight of the affinities to a bank of stored embeddings; 0 = not computed.
    """

    distill_weight: float = 0.0
    teachers: tuple[str, ...] = ()
    logit_scales: tuple[float, ...] = ()
    divergence: Divergence = "kl"
    affinity: Literal["softmax", "sigmoid"] = "softmax"
    logit_biases: tuple[float, ...] = ()
    feature_weight: float = 0.0
    feature_distance: Literal["cosine", "mse"] = "cosine"
    bank_weight: float = 0.0


TeacherFeatures = Callable[[Batch], Batch]
"""A batch to its `teacher_image.NAME`, `teacher_text.NAME`, ...: teachers that run in the step instead of before it."""


def train_clip(
    clip: Clip,
    dataset: PairDataset,
    config: Training,
    *,
    reinforcement: Reinforcement,
    seed: int,
    key: Mapping[str, Any],
    folder: str,
    title: str,
    validate: Callable[[], dict[str, float]] | None = None,
    online: TeacherFeatures | None = None,
    bank: Bank | None = None,
    report: Report | None = None,
) -> Result:
    """Train a CLIP model in place with the reinforced loss (plain CLIP where lambda is 0).

    Args:
        clip: Its model is trained.
        dataset: Pairs, with teacher embeddings where `reinforcement` names teachers.
        config: Length and step size.
        reinforcement: Lambda, teachers and their scales.
        seed: Seed of the order.
        key: All that decides the result, for the checkpoint.
        folder: Checkpoint folder.
        title: Name of the run.
        validate: Scores at every point of the curve.
        online: Runs the teachers in every step, see `mobileclip.training.online`; `None` = stored embeddings.
        bank: Where `reinforcement` needs one, see `mobileclip.training.bank`.
        report: Gets the points of the curve as they come.
    """
    world = join()
    model = clip.model.to(memory_format=torch.channels_last)  # twice as fast on CPU for depthwise convolutions
    if reinforcement.affinity == "sigmoid":
        add_logit_bias(clip)
    trained: nn.Module = model
    if reinforcement.feature_weight:
        trained = Projected(model, clip.embed_dim, _teacher_dims(dataset, reinforcement.teachers, online))
    objective = clip_objective(
        clip, reinforcement, config, world, trained=trained, online=online,
        bank=bank.to(world.device) if bank is not None else None,
    )  # fmt: skip
    if config.grad_checkpointing:
        set_grad_checkpointing(model)
    return train(
        trained, objective, batch_source(dataset, config, seed, world), config,
        key=run_key(key, config, title), folder=checkpoints(folder), title=title, validate=validate, report=report,
    )  # fmt: skip


def checkpoints(folder: str) -> str:
    """Where a run that writes into `folder` keeps its checkpoints."""
    return storage.join(folder, "checkpoint")


def run_key(key: Mapping[str, Any], config: Training, title: str) -> str:
    """Digest of all that decides a run."""
    return spec_digest({**key, "training": config.model_dump(mode="json", exclude=FREE), "title": title})


def set_grad_checkpointing(model: Any) -> None:
    """Recompute activations in the backward pass, in every tower that can."""
    model.set_grad_checkpointing(True)


def batch_source(
    dataset: PairDataset, config: Training, seed: int, world: World
) -> Callable[[int, int], Iterator[Batch]]:
    """The loader of a run as a function of its first and last step: this process's rows of every batch.

    A batch larger than the data holds samples several times, which count as each other's negatives: that is said.
    """
    if world.main and config.batch_size > len(dataset):
        logger.warning(
            "training.batch_size: got %d, the data have %d samples: a batch holds some of them several times.",
            config.batch_size, len(dataset),
        )  # fmt: skip

    def source(first: int, last: int) -> Iterator[Batch]:
        return batches(
            dataset, batch_size=config.batch_size, first_step=first, last_step=last, seed=seed, workers=config.workers,
            rows=world.rows(config.batch_size),
        )  # fmt: skip

    return source


def clip_objective(
    clip: Clip,
    reinforcement: Reinforcement,
    config: Training,
    world: World,
    *,
    trained: nn.Module,
    online: TeacherFeatures | None = None,
    bank: Bank | None = None,
) -> Objective:
    """The reinforced loss in two halves.

    Args:
        clip: The student.
        reinforcement: The loss.
        config: Its batch size is that of the whole batch, over all processes.
        world: The processes.
        trained: The student's model, or `Projected` around it.
        online: See `train_clip`.
        bank: See `train_clip`, on this process's device.
    """
    model: Any = clip.model
    encode_image, encode_text = model.encode_image, model.encode_text
    if config.compile:
        encode_image, encode_text = torch.compile(encode_image), torch.compile(encode_text)
    total = config.batch_size

    def encode(batch: Batch) -> Features:
        images = image_tensor(batch["image"], clip.preprocess).contiguous(memory_format=torch.channels_last)
        names = [name for name in _TEXTS if name in batch]
        image = encode_image(images, normalize=True)
        # One pass of the text tower for both kinds of captions.
        texts = encode_text(torch.cat([batch[name] for name in names]), normalize=True).chunk(len(names))
        return {"image": image, **dict(zip(names, texts, strict=True))}

    def criterion(features: Features, batch: Batch) -> Losses:
        if online is not None:
            batch = batch | online(batch)
        names = [name for name in _TEXTS if name in features]
        image, *texts = _gather(world, [features["image"], *(features[name] for name in names)], total)
        wanted = reinforcement.distill_weight > 0
        teachers = _teachers(world, batch, reinforcement, names, total) if wanted else [[]]
        losses = reinforced_loss(
            image,
            texts,
            model.logit_scale.exp(),
            distill_weight=reinforcement.distill_weight,
            teacher_image_features=teachers[0],
            teacher_texts=teachers[1:],
            teacher_logit_scales=reinforcement.logit_scales,
            divergence=reinforcement.divergence,
            logit_bias=model.logit_bias if reinforcement.affinity == "sigmoid" else None,
            teacher_logit_biases=_biases(reinforcement),
            rows=None if world.size == 1 else world.rows(total),
        )
        weights = {"feature": reinforcement.feature_weight, "bank": reinforcement.bank_weight}
        for name, value in _teacher_space_terms(trained, features, batch, reinforcement, bank, total).items():
            losses[name] = value
            losses["loss"] = losses["loss"] + weights[name] * value
        return losses

    def measure(features: Features, batch: Batch) -> dict[str, float]:
        if online is not None:
            batch = batch | online(batch)
        teachers = _teachers(world, batch, reinforcement, ["text"], total)
        image, text = _gather(world, [features["image"], features["text"]], total)
        share = teacher_agreement(
            image, text, teacher_image_features=teachers[0], teacher_text_features=teachers[1],
            teacher_logit_scales=reinforcement.logit_scales,
        )  # fmt: skip
        return {"teacher_agreement": share}

    return Objective(encode, criterion, measure if reinforcement.teachers else None)


def add_logit_bias(clip: Clip) -> None:
    """Give a model SigLIP's bias, and a scale to go with it, where it has none; its configuration says so."""
    model: Any = clip.model
    if getattr(model, "logit_bias", None) is None:
        model.logit_bias = nn.Parameter(torch.tensor(_SIGMOID_BIAS))
        with torch.no_grad():
            model.logit_scale.fill_(_SIGMOID_SCALE)
        clip.config |= {"init_logit_bias": _SIGMOID_BIAS, "init_logit_scale": _SIGMOID_SCALE}


def _teacher_space_terms(
    trained: nn.Module, features: Features, batch: Batch, reinforcement: Reinforcement, bank: Bank | None, total: int
) -> Losses:
    """The terms that compare features with the teachers' own, this process's share, by name."""
    kinds = {"image": "image"} | {name: kind for name, kind in _KINDS.items() if name in features}
    own = {n: collate_teachers(batch, kind, reinforcement.teachers) for n, kind in kinds.items()}
    found: Losses = {}
    if isinstance(trained, Projected):
        found["feature"] = trained.distance(features, own, kind=reinforcement.feature_distance, total=total)
    if bank is not None:
        joint = {name: bank.join(teachers) for name, teachers in own.items()}
        found["bank"] = bank_divergence(features, joint, bank, total=total)
    return found


def _teacher_dims(dataset: PairDataset, teachers: Sequence[str], online: TeacherFeatures | None) -> dict[str, int]:
    batch = {name: value[None] for name, value in dataset[0, 0].items()}
    if online is not None:
        batch = online(batch)
    return {name: int(batch[f"teacher_image.{name}"].shape[1]) for name in teachers}


def _biases(reinforcement: Reinforcement) -> tuple[float, ...]:
    return reinforcement.logit_biases or (_SIGMOID_BIAS,) * len(reinforcement.teachers)


def _gather(world: World, tensors: Sequence[Tensor], total: int) -> list[Tensor]:
    """All processes' rows of some [rows, width] tensors, in one message."""
    if world.size == 1 or not tensors:
        return list(tensors)
    joined = world.gather(torch.cat(list(tensors), dim=1), total)
    return list(torch.split(joined, [t.shape[1] for t in tensors], dim=1))


def _teachers(
    world: World, batch: Batch, reinforcement: Reinforcement, names: Sequence[str], total: int
) -> list[list[Tensor]]:
    """Per kind (image, then captions) each teacher's features of the whole batch."""
    count = len(reinforcement.teachers)
    kinds = ("image", *(_KINDS[name] for name in names))
    flat = [t for kind in kinds for t in collate_teachers(batch, kind, reinforcement.teachers)]
    with torch.no_grad():
        whole = _gather(world, flat, total)
    return [whole[start : start + count] for start in range(0, len(whole), count)]
