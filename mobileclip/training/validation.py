"""Scores on the validation split while a model trains: image-to-text retrieval."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from mobileclip.data.loader import PairDataset, Recipe
from mobileclip.evaluation.retrieval import best_ranks
from mobileclip.manifest import Manifest
from mobileclip.models.zoo import Clip, image_tensor


def retrieval_validation(
    clip: Clip, folder: str, manifest: Manifest, *, caption_field: str, limit: int = 1000, batch_size: int = 128
) -> Callable[[], dict[str, float]] | None:
    """A function that scores image-to-text retrieval on the validation split; `None` where the split is empty.

    Returns:
        `i2t/r1` and `i2t/r10`: recall at 1 and 10 over at most `limit` pairs (share 0-1). As in the final evaluation
        equal captions are one candidate and any image that carries it is right, and ties count against the model.
    """
    if not manifest.split("validation"):
        return None
    recipe = Recipe(clip.preprocess, clip.tokenizer, caption_field, views="whole", selection=False)
    dataset = PairDataset(folder, manifest, recipe, splits=("validation",))
    items = [dataset[0, index] for index in range(min(limit, len(dataset)))]
    pixels = torch.stack([item["image"] for item in items])
    # Equal captions have equal tokens, and one of each is a candidate.
    tokens, own = torch.unique(torch.stack([item["text"] for item in items]), dim=0, return_inverse=True)

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
        rows = np.arange(len(own))
        ranks = best_ranks(image.cpu().numpy(), text.cpu().numpy(), rows, own.numpy())
        return {f"i2t/r{k}": float((ranks <= k).mean()) for k in (1, 10)}

    return score
