"""Training behind frozen pretrained trunks, on features that are computed once: CLIP heads, and any other pairs."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mobileclip.config import Training
from mobileclip.models.zoo import Clip
from mobileclip.training.contrastive import checkpoints, run_key
from mobileclip.training.loop import Batch, Report, Result, train
from mobileclip.training.losses import clip_loss
from mobileclip.training.objective import Features, Halves, Losses
from mobileclip.training.world import join


def train_heads(
    clip: Clip, image: Tensor, text: Tensor, owners: Tensor, config: Training, *, seed: int, key: Mapping[str, Any],
    folder: str, title: str, dropout: float = 0.0, validate: Callable[[], dict[str, float]] | None = None,
    report: Report | None = None,
) -> Result:  # fmt: skip
    """Train the projections and the logit scale alone.

    Args:
        clip: A model whose towers end in projections: timm image tower with `timm_proj`, Hugging Face text tower with
            `hf_proj_type`.
        image: Pooled trunk features float32 [images, width].
        text: Pooled trunk features float32 [texts, width].
        owners: int64 [texts]: the image each text belongs to.
        config: Length and step size.
        seed: Seed of order and draws.
        key: All that decides the result.
        folder: Checkpoint folder.
        title: Name of the run.
        dropout: Share of the features that is dropped at every step.
        validate: Scores at every point of the curve.
        report: Gets the points of the curve as they come.
    """
    world = join()
    heads = LockedHeads(clip, dropout)
    total = min(config.batch_size, len(image))
    own = world.rows(total)

    def encode(batch: Batch) -> Features:
        image_features, text_features = heads(batch["image"], batch["text"])
        return {"image": image_features, "text": text_features}

    def criterion(features: Features, _: Batch) -> Losses:
        every = [world.gather(features[name], total) for name in ("image", "text")]
        rows = None if world.size == 1 else own
        return {"loss": clip_loss(every[0], every[1], heads.logit_scale.exp(), rows=rows)}

    return train(
        heads, Halves(encode, criterion), cached_pairs(image, text, owners, total=total, own=own, seed=seed), config,
        key=run_key(key, config, title), folder=checkpoints(folder), title=title, total=total, validate=validate,
        report=report,
    )  # fmt: skip


def cached_pairs(
    image: Tensor, text: Tensor, owners: Tensor, *, total: int, own: slice, seed: int
) -> Callable[[int, int], Iterator[Batch]]:
    """Batches of images without repetition, each with one of its texts, as a function of the first and last step.

    Every step draws anew from all images: none comes twice in a batch, but steps are independent of each other, so that
    an image may be in neighboring steps or in none of them, and there are no epochs. A batch depends on seed and step
    alone, which a resumed run gets again.

    Args:
        image: One row per image.
        text: One row per text.
        owners: int64 [texts], ascending: the image each text belongs to.
        total: Rows of the whole batch.
        own: This process's rows of it.
        seed: Seed of order and draws.
    """
    starts = torch.searchsorted(owners, torch.arange(len(image) + 1))

    def source(first: int, last: int) -> Iterator[Batch]:
        for step in range(first, last):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
            rows = torch.randperm(len(image), generator=generator)[:total]
            counts = starts[rows + 1] - starts[rows]
            draws = (torch.rand(len(rows), generator=generator) * counts).long()
            yield {"image": image[rows[own]], "text": text[starts[rows[own]] + draws[own]]}

    return source


def drop(features: Tensor, share: float, *, training: bool) -> Tensor:
    """Dropout on cached features, where a frozen trunk's own augmentation would be.

    Masks come from torch's own generator, of which the loop gives every process a stream that checkpoints keep: so
    processes draw different masks, and a resumed run draws those it would have drawn.

    Args:
        features: Of any shape.
        share: Share that becomes 0; the rest grows by 1 / (1 - share).
        training: Else nothing is dropped.
    """
    return functional.dropout(features, share, training)


class LockedHeads(torch.nn.Module):
    """The trainable rest of a CLIP model whose two trunks are frozen."""

    def __init__(self, clip: Clip, dropout: float = 0.0) -> None:
        """Share the projections and the logit scale with `clip`'s model.

        Args:
            clip: See `train_heads`.
            dropout: Share of the trunks' features that is dropped in training.
        """
        super().__init__()
        self.dropout = dropout
        model: Any = clip.model
        self.image_head = model.visual.head
        self.text_head = model.text.proj
        self.logit_scale = model.logit_scale

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Trunk features to unit-norm embeddings."""
        image, text = (drop(features, self.dropout, training=self.training) for features in (image, text))
        normalize = functional.normalize
        return normalize(self.image_head(image), dim=-1), normalize(self.text_head(text), dim=-1)
