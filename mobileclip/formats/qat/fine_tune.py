"""Quantization-aware fine-tuning: an image tower learns to give its embeddings through the rounding of static int8.

The result is a float32 tower of the same layers, so it is quantized and exported like any other. It is asked for the
float tower's own embeddings and, where the dataset has them, for the teachers' affinities, as distillation was.
"""

import logging
from collections.abc import Callable, Iterable
from copy import deepcopy
from math import ceil

import torch
from torch import Tensor, nn

from mobileclip.config import Export
from mobileclip.data.loader import Item, PairDataset, Recipe, batches, collate_teachers
from mobileclip.data.progress import progress_bar
from mobileclip.formats.export_job import BATCH
from mobileclip.formats.proof import Reference, one_thread
from mobileclip.formats.qat.fake_quant import observe, with_rounding
from mobileclip.formats.towers import Towers
from mobileclip.manifest import Manifest
from mobileclip.models.zoo import Clip
from mobileclip.training.losses import distill_loss

logger = logging.getLogger(__name__)

Loss = Callable[[Tensor, Tensor, Item], Tensor]

_RANGES = 10  # how often the ranges are taken in a run: they move with the weights
_LARGEST_GRADIENT = 1.0


def tune(
    config: Export, clip: Clip, towers: Towers, data: str, content: Manifest, calibration: Reference
) -> nn.Module:  # fmt: skip
    """Fine-tune the image tower of a student on the samples of `calibration_split`.

    Args:
        config: The `export` section.
        clip: The student.
        towers: The student, split; stays as it is.
        data: Dataset; with teachers' embeddings their affinities are learned too.
        content: Its manifest.
        calibration: Samples that the ranges are taken from, as the program's will be.

    Returns:
        A float32 image tower; the same for the same section, student and dataset.

    Raises:
        DataError: The split has no samples.
    """
    teachers = tuple(content.teachers()) if config.qat_teacher_weight else ()
    dataset = PairDataset(
        data, content, _recipe(config, clip, content, teachers), splits=(config.calibration_split,)
    )  # fmt: skip
    drawn = batches(
        dataset, batch_size=config.qat_batch_size, first_step=0, last_step=config.qat_steps, seed=config.qat_seed,
        workers=0,
    )  # fmt: skip
    taught = f", with affinities of {', '.join(teachers)}" if teachers else ""
    logger.info("quantization-aware fine-tuning towards the tower's own embeddings%s", taught)
    with one_thread():
        return fine_tune(
            towers.image,
            torch.from_numpy(calibration.pixels),
            progress_bar(drawn, desc="qat", unit="step", total=config.qat_steps),
            _loss(config, clip, towers, content, teachers),
            steps=config.qat_steps,
            learning_rate=config.qat_learning_rate,
        )


def fine_tune(
    tower: nn.Module, calibration: Tensor, drawn: Iterable[Item], loss: Loss, *, steps: int, learning_rate: float
) -> nn.Module:
    """Train a copy of a tower under rounding.

    Args:
        tower: Image tower in eval mode; running statistics and all else but parameters stay.
        calibration: Inputs that the ranges are taken from, float32 [samples, 3, size, size].
        drawn: A batch for each step, with `image` uint8 [batch, 3, size, size].
        loss: Of the rounded tower's embeddings, the tower's own, and the batch.
        steps: Steps of Adam.
        learning_rate: Of the first step; it falls to 0 along a cosine.
    """
    tuned = deepcopy(tower)
    rounded = with_rounding(tuned, calibration[:2]).requires_grad_()
    optimizer = torch.optim.Adam(rounded.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step, batch in enumerate(drawn):
        if step % ceil(steps / _RANGES) == 0:
            observe(rounded, calibration.tensor_split(ceil(len(calibration) / BATCH)))
        pixels = batch["image"].float() / 255
        with torch.no_grad():
            wanted = tower(pixels)
        optimizer.zero_grad()
        loss(rounded(pixels), wanted, batch).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(rounded.parameters(), _LARGEST_GRADIENT)
        optimizer.step()
        schedule.step()
    tuned.load_state_dict(dict(rounded.named_parameters()), strict=False)
    return tuned


def relative_loss(got: Tensor, wanted: Tensor) -> Tensor:
    """The square of the proof's error: squared distance [batch, dim] relative to the spread of what is wanted."""
    return (got - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()


def _recipe(config: Export, clip: Clip, content: Manifest, teachers: tuple[str, ...]) -> Recipe:
    field = content.column(f"{teachers[0]}.captions").spec.get("field", "captions") if teachers else "captions"
    return Recipe(
        clip.preprocess, clip.tokenizer, field, (), teachers, views="stored" if content.has("views") else "whole",
        seed=config.qat_seed,
    )  # fmt: skip


def _loss(config: Export, clip: Clip, towers: Towers, content: Manifest, teachers: tuple[str, ...]) -> Loss:
    specs = {name: content.column(f"{name}.views").spec for name in teachers}
    scales = [float(content.scales.get(name, spec["logit_scale"])) for name, spec in specs.items()]

    def loss(got: Tensor, wanted: Tensor, batch: Item) -> Tensor:
        own = relative_loss(got, wanted)
        if not teachers:
            return own
        with torch.no_grad():
            texts = towers.text(batch["text"].to(torch.int32))
        return own + config.qat_teacher_weight * distill_loss(
            got, texts, got.new_tensor(clip.logit_scale),
            teacher_image_features=collate_teachers(batch, "image", teachers),
            teacher_text_features=collate_teachers(batch, "text", teachers), teacher_logit_scales=scales,
        )  # fmt: skip

    return loss
