"""Teachers that run inside the training step: what stored embeddings save, for comparison.

They read the same view and captions as the stored embeddings were made of, each at its own size, with its own
normalization and tokenizer. (Feeding the student's tensors to the teachers, as is often done, gives them pixels of
another size and normalization without a word.)
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional

from mobileclip.data.loader import TeacherInput
from mobileclip.data.preprocess import image_tensor
from mobileclip.errors import ConfigError, DataError, MobileClipError
from mobileclip.manifest import Manifest
from mobileclip.models.recorded import load_recorded
from mobileclip.models.zoo import Clip
from mobileclip.training.clip_objective import TeacherFeatures
from mobileclip.training.loop import Batch

logger = logging.getLogger(__name__)


def load_teachers(content: Manifest, names: Sequence[str], *, trained: str) -> dict[str, Clip]:
    """The models whose embeddings a dataset stores, by teacher.

    Args:
        content: The dataset's manifest.
        names: Teachers in it.
        trained: Folder of train_teacher, for those that are from there.

    Raises:
        ConfigError: One cannot be loaded.
        DataError: One has other weights than those that made the embeddings.
    """
    found = {}
    for name in names:
        spec = content.column(f"{name}.views").spec
        whose = f"distill.online_teachers: teacher '{name}'"
        try:
            found[name] = load_recorded(spec, trained=trained)
        except MobileClipError as error:
            raise ConfigError(f"{whose} cannot be loaded: {error}") from None
        if not spec["sha256"]:
            logger.warning("%s: the dataset does not say which weights made its embeddings.", whose)
        elif found[name].sha256 != spec["sha256"]:
            raise DataError(
                f"{whose} has weights {found[name].sha256[:12]}, the stored embeddings are of {spec['sha256'][:12]}."
            )
    return found


def precisions(content: Manifest, names: Sequence[str]) -> dict[str, str]:
    """In which precision each teacher made its stored embeddings."""
    return {name: str(content.column(f"{name}.views").spec.get("precision", "float32")) for name in names}


def teacher_inputs(teachers: Mapping[str, Clip]) -> tuple[TeacherInput, ...]:
    """What the loader must prepare for these teachers (`Recipe.online`)."""
    return tuple(TeacherInput(name, clip.preprocess, clip.tokenizer) for name, clip in teachers.items())


def online_teachers(teachers: Mapping[str, Clip], *, precision: Mapping[str, str] | None = None) -> TeacherFeatures:
    """A function that adds teacher features to a batch, as `train_clip` takes it.

    Args:
        teachers: Models by name; put into eval mode on their device, never trained.
        precision: `bfloat16` for those that run under autocast; the others, and those without, compute in float32.
    """
    for clip in teachers.values():
        clip.model.eval().requires_grad_(False)
    half = {name for name, value in (precision or {}).items() if value == "bfloat16"}

    @torch.no_grad()
    def run(batch: Batch) -> Batch:
        found: Batch = {}
        device = batch["image"].device
        for name, clip in teachers.items():
            model: Any = clip.model.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=name in half):
                found[f"teacher_image.{name}"] = clip.encode_image(
                    image_tensor(batch[f"online_image.{name}"], clip.preprocess)
                )
                for kind in ("text", "synthetic"):
                    if f"online_{kind}.{name}" in batch:
                        tokens = batch[f"online_{kind}.{name}"]
                        found[f"teacher_{kind}.{name}"] = model.encode_text(tokens, normalize=True)
        return {name: functional.normalize(value.float(), dim=-1) for name, value in found.items()}

    return run
