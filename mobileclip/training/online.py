"""Teachers that run inside the training step: what stored embeddings save, for comparison.

They read the same view and captions as the stored embeddings were made of, each at its own size, with its own
normalization and tokenizer. (Feeding the student's tensors to the teachers, as is often done, gives them pixels of
another size and normalization without a word.)
"""

from collections.abc import Mapping
from typing import Any

import torch

from mobileclip.data.loader import TeacherInput
from mobileclip.models.zoo import Clip, image_tensor
from mobileclip.training.contrastive import TeacherFeatures
from mobileclip.training.loop import Batch


def teacher_inputs(teachers: Mapping[str, Clip]) -> tuple[TeacherInput, ...]:
    """What the loader must prepare for these teachers (`Recipe.online`)."""
    return tuple(TeacherInput(name, clip.preprocess, clip.tokenizer) for name, clip in teachers.items())


def online_teachers(teachers: Mapping[str, Clip]) -> TeacherFeatures:
    """A function that adds teacher features to a batch, as `train_clip` takes it.

    Args:
        teachers: Models by name; put into eval mode on their device, never trained.
    """
    for clip in teachers.values():
        clip.model.eval().requires_grad_(False)

    @torch.no_grad()
    def run(batch: Batch) -> Batch:
        found: Batch = {}
        for name, clip in teachers.items():
            model: Any = clip.model.to(batch["image"].device)
            found[f"teacher_image.{name}"] = clip.encode_image(
                image_tensor(batch[f"online_image.{name}"], clip.preprocess)
            )
            for kind in ("text", "synthetic"):
                if f"online_{kind}.{name}" in batch:
                    tokens = batch[f"online_{kind}.{name}"]
                    found[f"teacher_{kind}.{name}"] = model.encode_text(tokens, normalize=True).float()
        return found

    return run
