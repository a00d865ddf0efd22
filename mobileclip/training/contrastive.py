"""Training image and text towers on a prepared or reinforced dataset: what train_teacher and distill share."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mobileclip import storage
from mobileclip.config import Training
from mobileclip.data.loader import PairDataset, batches
from mobileclip.manifest import spec_digest
from mobileclip.models.zoo import Clip
from mobileclip.training.bank import Bank
from mobileclip.training.clip_objective import SIGMOID_BIAS, ClipObjective, Reinforcement, TeacherFeatures
from mobileclip.training.loop import Batch, Report, Result, train
from mobileclip.training.projected import Projected
from mobileclip.training.world import World, join

logger = logging.getLogger(__name__)

# What SigLIP starts from (arXiv 2303.15343, section 3.2).
_SIGMOID_SCALE = math.log(10.0)
# Keys of `Training` that change no result: a run goes on under other ones.
FREE = {"workers", "checkpoint_every", "keep_checkpoints", "resume"}


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
        trained = Projected(model, clip.embed_dim, _teacher_dims(dataset, reinforcement.names, online))
    objective = ClipObjective(
        clip, reinforcement, world, total=config.batch_size, compiled=config.compile, trained=trained, online=online,
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


def add_logit_bias(clip: Clip) -> None:
    """Give a model SigLIP's bias, and a scale to go with it, where it has none; its configuration says so."""
    model: Any = clip.model
    if getattr(model, "logit_bias", None) is None:
        model.logit_bias = nn.Parameter(torch.tensor(SIGMOID_BIAS))
        with torch.no_grad():
            model.logit_scale.fill_(_SIGMOID_SCALE)
        clip.config |= {"init_logit_bias": SIGMOID_BIAS, "init_logit_scale": _SIGMOID_SCALE}


def _teacher_dims(dataset: PairDataset, teachers: Sequence[str], online: TeacherFeatures | None) -> dict[str, int]:
    batch = {name: value[None] for name, value in dataset[0, 0].items()}
    if online is not None:
        batch = online(batch)
    return {name: int(batch[f"teacher_image.{name}"].shape[1]) for name in teachers}
