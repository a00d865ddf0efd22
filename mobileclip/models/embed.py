"""Embedding pictures and texts with a frozen CLIP model, each with its own preprocessing and tokenizer.

On a GPU where there is one. `precision` "bfloat16" runs the towers under autocast; normalization and what is returned
are float32 in any case. A batch that does not fit into memory is halved, and so are all later ones of that model.
"""

import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import TypeVar
from weakref import WeakKeyDictionary, WeakSet

import torch

from mobileclip.data.preprocess import image_tensor
from mobileclip.errors import IntegrityError, MobileClipError
from mobileclip.models.checkpoints import is_shortage
from mobileclip.models.zoo import Clip

logger = logging.getLogger(__name__)

Batch = TypeVar("Batch", torch.Tensor, list[str])

# Largest batch of (pictures, texts) that a model was seen to take, where a larger one did not fit.
_FITTING: WeakKeyDictionary[torch.nn.Module, dict[str, int]] = WeakKeyDictionary()

_PLACED: WeakSet[torch.nn.Module] = WeakSet()


def embed_pixels(clip: Clip, pixels: torch.Tensor, *, batch_size: int, precision: str = "float32") -> torch.Tensor:
    """uint8 [n, 3, size, size] at the model's own size to unit-norm float32 [n, dim], on the CPU.

    Raises:
        MobileClipError: Not even one picture fits into memory.
    """
    device = _place(clip)

    def encode(part: torch.Tensor) -> torch.Tensor:
        # Bytes travel to the device, four times fewer than numbers would.
        return clip.encode_image(image_tensor(part.to(device, non_blocking=True), clip.preprocess))

    with _autocast(device, precision):
        return _unit(_in_batches(clip, "pictures", pixels, encode, batch_size))


def embed_texts(clip: Clip, texts: Sequence[str], *, batch_size: int, precision: str = "float32") -> torch.Tensor:
    """Texts to unit-norm float32 [len(texts), dim], on the CPU; equal texts are embedded once.

    Distinct texts are embedded in a fixed order, so a text's vector depends on the set of texts alone; that order goes
    by length, which keeps padding short.

    Raises:
        MobileClipError: Not even one text fits into memory.
    """
    if not texts:
        return torch.zeros(0, clip.embed_dim)
    device = _place(clip)
    distinct = sorted(set(texts), key=lambda text: (len(text), text))
    with _autocast(device, precision):
        features = _unit(_in_batches(clip, "texts", distinct, clip.encode_text, batch_size))
    place = {text: index for index, text in enumerate(distinct)}
    return features[[place[text] for text in texts]]


def check_finite(features: torch.Tensor, *, model: str, where: str) -> None:
    """Refuse vectors that are not finite where they are made, before anything is written or trained with them.

    Args:
        features: Embeddings of any shape.
        model: Who made them, as the sentence names it: `teacher 'laion'`.
        where: What they are of: `shard 'train-00003'`.

    Raises:
        IntegrityError: At least one value is NaN or infinite.
    """
    bad = int((~torch.isfinite(features)).flatten(1).any(dim=1).sum())
    if bad:
        raise IntegrityError(
            f"{model}: {bad} of {len(features)} embeddings of {where} are not finite; its weights or its precision "
            "are at fault."
        )


def _in_batches(
    clip: Clip, kind: str, items: Batch, encode: Callable[[Batch], torch.Tensor], batch_size: int
) -> torch.Tensor:
    fitting = _FITTING.setdefault(clip.model, {})
    parts: list[torch.Tensor] = []
    start = 0
    while start < len(items):
        size = min(batch_size, fitting.get(kind, batch_size))
        try:
            parts.append(encode(items[start : start + size]).float().cpu())
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not is_shortage(error):
                raise
            size = min(size, len(items) - start)
            if size == 1:
                raise MobileClipError(f"memory: '{clip.name}' cannot embed even one of the {kind}: {error}.") from None
        else:
            start += size
            continue
        # Out here, where the failed batch's tensors are no longer held by the error.
        fitting[kind] = size // 2
        logger.warning("%s: %d %s do not fit into memory, going on with %d", clip.name, size, kind, size // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return torch.cat(parts)


def _place(clip: Clip) -> torch.device:
    """Where the model computes; it is moved and laid out for convolutions once, as even a look at all weights costs."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if clip.model not in _PLACED or next(clip.model.parameters()).device.type != device.type:
        clip.model.to(device).to(memory_format=torch.channels_last)
        _PLACED.add(clip.model)
    return device


def _autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    if precision == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def _unit(features: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(features.float(), dim=-1)
