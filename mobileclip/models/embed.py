"""Embedding pictures and texts with a frozen CLIP model, each with its own preprocessing and tokenizer."""

from collections.abc import Sequence

import torch

from mobileclip.models.zoo import Clip, image_tensor


def embed_pixels(clip: Clip, pixels: torch.Tensor, *, batch_size: int) -> torch.Tensor:
    """uint8 [n, 3, size, size] at the model's own size to unit-norm float32 [n, dim]."""
    clip.model.to(memory_format=torch.channels_last)
    parts = [clip.encode_image(image_tensor(part, clip.preprocess)) for part in torch.split(pixels, batch_size)]
    return _unit(torch.cat(parts))


def embed_texts(clip: Clip, texts: Sequence[str], *, batch_size: int) -> torch.Tensor:
    """Texts to unit-norm float32 [len(texts), dim]; equal texts are embedded once.

    Distinct texts are embedded in a fixed order, so a text's vector depends on the set of texts alone; that order goes
    by length, which keeps padding short.
    """
    if not texts:
        return torch.zeros(0, clip.embed_dim)
    distinct = sorted(set(texts), key=lambda text: (len(text), text))
    parts = [clip.encode_text(distinct[i : i + batch_size]) for i in range(0, len(distinct), batch_size)]
    place = {text: index for index, text in enumerate(distinct)}
    return _unit(torch.cat(parts))[[place[text] for text in texts]]


def _unit(features: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(features.float(), dim=-1)
