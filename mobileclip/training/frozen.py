"""What a captioner's frozen image trunk sees, computed once for a whole training."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from mobileclip.data.images import decode, resize
from mobileclip.data.loader import PairDataset
from mobileclip.data.shards import read_samples
from mobileclip.manifest import Manifest
from mobileclip.models.clip import Clip
from mobileclip.models.zoo import image_tensor
from mobileclip.parallel import run_forked
from mobileclip.training.locked import cached_pairs
from mobileclip.training.objective import Batch

_BATCH = 32


@dataclass(frozen=True)
class FrozenTrunk:
    """A trunk's feature maps of whole pictures.

    Attributes:
        features: float32 [images, places, channels].
        rows: Row by uid.
        clip: Whose trunk it is.
        dropout: Share of the features that is dropped at every step.
    """

    features: torch.Tensor
    rows: dict[str, int]
    clip: Clip
    dropout: float = 0.0

    def source(
        self, dataset: PairDataset, *, total: int, own: slice, seed: int
    ) -> Callable[[int, int], Iterator[Batch]]:
        """Batches `features` [rows, places, channels] and `text` int64 [rows, context], as a function of the steps.

        Args:
            dataset: Names the pairs.
            total: Rows of the whole batch, at most one of each sample.
            own: This process's rows of it.
            seed: Seed of order and draws.
        """
        pairs = list(dataset.pairs())
        places = torch.tensor([self.rows[uid] for uid, _ in pairs])
        text = self.clip.tokenizer([caption for _, captions in pairs for caption in captions])
        owners = torch.repeat_interleave(torch.tensor([len(captions) for _, captions in pairs]))
        inner = cached_pairs(places, text, owners, total=total, own=own, seed=seed)

        def source(first: int, last: int) -> Iterator[Batch]:
            for step, batch in enumerate(inner(first, last), first):
                yield {"features": self._drop(self.features[batch["image"]], seed, step), "text": batch["text"]}

        return source

    def _drop(self, features: torch.Tensor, seed: int, step: int) -> torch.Tensor:
        """Dropout by (seed, step) alone, so that a resumed run sees the same."""
        if not self.dropout:
            return features
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        kept = torch.rand(features.shape, generator=generator) >= self.dropout
        return features * kept / (1 - self.dropout)


@torch.no_grad()
def freeze_trunk(clip: Clip, data: str, content: Manifest, *, dropout: float = 0.0) -> FrozenTrunk:
    """Freeze the image trunk of a captioner and run it over the training pictures.

    Args:
        clip: A CoCa with a `TrunkTower`.
        data: Prepared dataset.
        content: Its manifest.
        dropout: Share of the features that is dropped at every step.
    """
    visual: Any = clip.model.visual
    visual.trunk.requires_grad_(False)
    samples = list(read_samples(data, content, "train"))

    def work(part: int, parts: int) -> np.ndarray[Any, Any]:
        mine = samples[len(samples) * part // parts : len(samples) * (part + 1) // parts]
        found = []
        for start in tqdm(range(0, len(mine), _BATCH), desc="image trunk", disable=True if part else None):
            pixels = [
                resize(decode(s.image), clip.preprocess.size, clip.preprocess.interpolation)
                for s in mine[start : start + _BATCH]
            ]
            found.append(visual.features(image_tensor(torch.stack(pixels), clip.preprocess)))
        return torch.cat(found).contiguous().numpy()

    features = torch.from_numpy(np.concatenate(run_forked(work, len(samples) // _BATCH)))
    return FrozenTrunk(features, {sample.uid: row for row, sample in enumerate(samples)}, clip, dropout)
