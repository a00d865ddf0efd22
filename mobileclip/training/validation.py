"""Scores on the validation split while a model trains: image-to-text retrieval."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mobileclip.data.loader import PairDataset, Recipe
from mobileclip.data.preprocess import image_tensor
from mobileclip.errors import EmptyError
from mobileclip.evaluation.retrieval import best_ranks
from mobileclip.manifest import Manifest
from mobileclip.models.zoo import Clip
from mobileclip.training.frozen import read
from mobileclip.training.locked import LockedHeads

Validate = Callable[[], dict[str, float]]
"""Scores the model as it is now."""


def retrieval_validation(
    clip: Clip, folder: str, manifest: Manifest, *, caption_field: str, limit: int = 1000, batch_size: int = 128
) -> Validate | None:
    """A function that scores image-to-text retrieval on the validation split; `None` where it has no such captions.

    Returns:
        `i2t/r1` and `i2t/r10`: recall at 1 and 10 over at most `limit` pairs (share 0-1). As in the final evaluation
        equal captions are one candidate and any image that carries it is right, and ties count against the model.
    """
    held_out = _held_out(clip, folder, manifest, caption_field, limit)
    if held_out is None:
        return None
    pixels, tokens, own = held_out

    @torch.no_grad()
    def score() -> dict[str, float]:
        model: Any = clip.model
        device = next(model.parameters()).device
        image = torch.cat(
            [clip.encode_image(image_tensor(p.to(device), clip.preprocess)) for p in torch.split(pixels, batch_size)]
        )
        text = torch.cat(
            [model.encode_text(t.to(device), normalize=True).float() for t in torch.split(tokens, batch_size)]
        )
        return _recall(image, text, own)

    return score


@torch.no_grad()
def locked_validation(
    clip: Clip, folder: str, manifest: Manifest, *, caption_field: str, limit: int = 1000, batch_size: int = 32
) -> Validate | None:
    """The same scores of a model whose two trunks are frozen: they see the pairs once, a score takes the heads alone.

    Args:
        clip: As `mobileclip.training.locked.train_heads` takes it, in eval mode.
        folder: Prepared dataset.
        manifest: Its manifest.
        caption_field: Whose captions are the candidates.
        limit: Most pairs.
        batch_size: Pairs that the trunks see at once.
    """
    held_out = _held_out(clip, folder, manifest, caption_field, limit)
    if held_out is None:
        return None
    pixels, tokens, own = held_out
    model: Any = clip.model
    pictures = (image_tensor(part, clip.preprocess) for part in torch.split(pixels, batch_size))
    image = torch.cat([model.visual.trunk(part) for part in pictures])
    text = torch.cat([read(clip, part) for part in torch.split(tokens, batch_size)])
    heads = LockedHeads(clip)

    @torch.no_grad()
    def score() -> dict[str, float]:
        device = next(heads.parameters()).device
        image_features, text_features = heads.eval()(image.to(device), text.to(device))
        return _recall(image_features, text_features, own)

    return score


def _held_out(
    clip: Clip, folder: str, manifest: Manifest, caption_field: str, limit: int
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Pixels of pairs of the validation split, the tokens of their different captions, and each picture's caption."""
    pairs = held_out_pairs(clip, folder, manifest, caption_field=caption_field, limit=limit)
    if pairs is None:
        return None
    # Equal captions have equal tokens, and one of each is a candidate.
    tokens, own = torch.unique(pairs[1], dim=0, return_inverse=True)
    return pairs[0], tokens, own


def held_out_pairs(
    clip: Clip, folder: str, manifest: Manifest, *, caption_field: str, limit: int
) -> tuple[Tensor, Tensor] | None:
    """Pixels of whole pictures of the validation split and the tokens of a caption each; `None` without any."""
    recipe = Recipe(clip.preprocess, clip.tokenizer, caption_field, views="whole", selection=False)
    try:
        dataset = PairDataset(folder, manifest, recipe, splits=("validation",))
    except EmptyError:
        return None
    items = [dataset[0, index] for index in range(min(limit, len(dataset)))]
    return torch.stack([item["image"] for item in items]), torch.stack([item["text"] for item in items])


def _recall(image: Tensor, text: Tensor, own: Tensor) -> dict[str, float]:
    ranks = best_ranks(image.cpu().numpy(), text.cpu().numpy(), np.arange(len(own)), own.numpy())
    return {f"i2t/r{k}": float((ranks <= k).mean()) for k in (1, 10)}
