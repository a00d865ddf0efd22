"""What frozen image trunks see in whole pictures, computed once for a whole training."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mobileclip.data.images import decode, resize
from mobileclip.data.loader import PairDataset
from mobileclip.data.preprocess import Preprocess, image_tensor
from mobileclip.data.progress import progress_bar
from mobileclip.data.shards import Sample, read_samples
from mobileclip.errors import DataError
from mobileclip.manifest import Manifest
from mobileclip.models.clip import Clip
from mobileclip.parallel import run_forked
from mobileclip.training.locked import cached_pairs
from mobileclip.training.objective import Batch

_BATCH = 32


@torch.no_grad()
def look(
    see: Callable[[torch.Tensor], torch.Tensor], samples: Sequence[Sample], preprocess: Preprocess, *,
    quiet: bool = False,
) -> torch.Tensor:  # fmt: skip
    """What a trunk sees in whole pictures.

    Args:
        see: Normalized images [batch, 3, size, size] to features [batch, ...].
        samples: At least one.
        preprocess: The trunk's.
        quiet: Draw no progress bar.

    Returns:
        float32 [samples, ...].
    """
    found = []
    for start in progress_bar(range(0, len(samples), _BATCH), desc="image trunk", quiet=quiet):
        pictures = (decode(sample.image) for sample in samples[start : start + _BATCH])
        pixels = [resize(picture, preprocess) for picture in pictures]
        found.append(see(image_tensor(torch.stack(pixels), preprocess)))
    return torch.cat(found)


@torch.no_grad()
def read(clip: Clip, tokens: torch.Tensor) -> torch.Tensor:
    """Pooled features of a Hugging Face text trunk.

    Args:
        clip: Its text tower is an `HFTextEncoder`.
        tokens: int64 [texts, context]; the padding that all of them share is not computed.

    Returns:
        float32 [texts, width].
    """
    text: Any = clip.model.text
    padding = text.config.pad_token_id
    tokens = tokens[:, : max(1, int((tokens != padding).sum(dim=1).max()))]
    mask = (tokens != padding).long()
    return text.pooler(text.transformer(input_ids=tokens, attention_mask=mask), mask)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class FrozenTrunk:
    """A trunk's feature maps of whole pictures.

    Attributes:
        features: float32 [images, places, channels].
        rows: Row by uid.
        clip: Whose trunk it is.
        dropout: Share of the features that the objective is to drop at every step.
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
            for batch in inner(first, last):
                yield {"features": self.features[batch["image"]], "text": batch["text"]}

        return source


def freeze_trunk(clip: Clip, data: str, content: Manifest, *, dropout: float = 0.0) -> FrozenTrunk:
    """Freeze the image trunk of a captioner and run it over the training pictures.

    Args:
        clip: A CoCa with a `TrunkTower`.
        data: Prepared dataset.
        content: Its manifest.
        dropout: Share of the features that the objective is to drop at every step.

    Raises:
        DataError: There is no training picture.
    """
    visual: Any = clip.model.visual
    visual.trunk.requires_grad_(False)
    samples = list(read_samples(data, content, "train"))
    if not samples:
        raise DataError(f"data: no sample of split train in '{data}'.")

    def work(part: int, parts: int) -> np.ndarray[Any, Any]:
        mine = samples[len(samples) * part // parts : len(samples) * (part + 1) // parts]
        return look(visual.features, mine, clip.preprocess, quiet=part > 0).contiguous().numpy()

    features = torch.from_numpy(np.concatenate(run_forked(work, len(samples) // _BATCH)))
    return FrozenTrunk(features, {sample.uid: row for row, sample in enumerate(samples)}, clip, dropout)
