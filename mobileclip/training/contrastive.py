"""Training image and text towers on a prepared or reinforced dataset: what train_teacher and distill share."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mobileclip import storage
from mobileclip.config import Training
from mobileclip.data.loader import PairDataset, Recipe, batches, collate_teachers
from mobileclip.manifest import Manifest, spec_digest
from mobileclip.models.zoo import Clip, image_tensor
from mobileclip.report import Tracker
from mobileclip.training.loop import Batch, Result, train
from mobileclip.training.losses import clip_loss, reinforced_loss


@dataclass(frozen=True)
class Reinforcement:
    """What the distillation term needs.

    Attributes:
        distill_weight: Lambda.
        teachers: Names in the ensemble's order; empty = plain CLIP.
        logit_scales: Per teacher, 1 / temperature.
    """

    distill_weight: float = 0.0
    teachers: tuple[str, ...] = ()
    logit_scales: tuple[float, ...] = ()


def train_clip(
    clip: Clip,
    dataset: PairDataset,
    config: Training,
    *,
    reinforcement: Reinforcement,
    seed: int,
    key: Mapping[str, Any],
    folder: str,
    title: str,
    validate: Callable[[], dict[str, float]] | None = None,
) -> Result:
    """Train a CLIP model in place with the reinforced loss (plain CLIP where lambda is 0).

    Args:
        clip: Its model is trained.
        dataset: Pairs, with teacher embeddings where `reinforcement` names teachers.
        config: Length and step size.
        reinforcement: Lambda, teachers and their scales.
        seed: Seed of the order.
        key: All that decides the result, for the checkpoint.
        folder: Checkpoint folder.
        title: Name of the run.
        validate: Scores at every point of the curve.
    """
    model = clip.model.to(memory_format=torch.channels_last)  # twice as fast on CPU for depthwise convolutions
    loss = partial(_loss, clip, reinforcement)
    source = batch_source(dataset, config, seed)
    digest = spec_digest({**key, "training": config.model_dump(mode="json"), "title": title})
    return train(
        model, loss, source, config, key=digest, folder=storage.join(folder, "checkpoint"),
        title=title, validate=validate,
    )  # fmt: skip


def batch_source(dataset: PairDataset, config: Training, seed: int) -> Callable[[int, int], Iterator[Batch]]:
    """The loader of a run as a function of its first and last step."""

    def source(first: int, last: int) -> Iterator[Batch]:
        return batches(
            dataset, batch_size=config.batch_size, first_step=first, last_step=last, seed=seed, workers=config.workers
        )

    return source


def _loss(clip: Clip, reinforcement: Reinforcement, batch: Batch) -> dict[str, Tensor]:
    model: Any = clip.model
    images = image_tensor(batch["image"], clip.preprocess).contiguous(memory_format=torch.channels_last)
    tokens = [batch[name] for name in ("text", "synthetic_text") if name in batch]
    image_features = model.encode_image(images, normalize=True)
    # One pass of the text tower for both kinds of captions.
    text_features = model.encode_text(torch.cat(tokens), normalize=True).chunk(len(tokens))
    scale = model.logit_scale.exp()
    names = reinforcement.teachers
    kinds = ("text", "synthetic")[: len(tokens)]
    return reinforced_loss(
        image_features,
        text_features,
        scale,
        distill_weight=reinforcement.distill_weight,
        teacher_image_features=collate_teachers(batch, "image", names),
        teacher_texts=[collate_teachers(batch, kind, names) for kind in kinds],
        teacher_logit_scales=reinforcement.logit_scales,
    )


def retrieval_validation(
    clip: Clip, folder: str, manifest: Manifest, *, caption_field: str, limit: int = 1000, batch_size: int = 128
) -> Callable[[], dict[str, float]] | None:
    """A function that scores image-to-text retrieval on the validation split; `None` where the split is empty.

    Returns:
        Recall at 1 and 10 over at most `limit` pairs (share 0-1; equal captions all count as right).
    """
    if not manifest.split("validation"):
        return None
    recipe = Recipe(clip.preprocess, clip.tokenizer, caption_field, views="whole", selection=False)
    dataset = PairDataset(folder, manifest, recipe, splits=("validation",))
    items = [dataset[0, index] for index in range(min(limit, len(dataset)))]
    pixels = torch.stack([item["image"] for item in items])
    tokens = torch.stack([item["text"] for item in items])

    def score() -> dict[str, float]:
        image = torch.cat(
            [clip.encode_image(image_tensor(p, clip.preprocess)) for p in torch.split(pixels, batch_size)]
        )
        model: Any = clip.model
        text = torch.cat([model.encode_text(t, normalize=True).float() for t in torch.split(tokens, batch_size)])
        scores = image @ text.T
        right = (tokens[:, None] == tokens[None]).all(dim=2)
        best = torch.where(right, scores, -torch.inf).amax(dim=1, keepdim=True)
        rank = (scores > best).sum(dim=1)
        return {"i2t/r1": float((rank < 1).float().mean()), "i2t/r10": float((rank < 10).float().mean())}

    return score


def train_heads(
    clip: Clip, image: Tensor, text: Tensor, owners: Tensor, config: Training, *, seed: int, key: Mapping[str, Any],
    folder: str, title: str,
) -> Result:  # fmt: skip
    """Locked tuning on cached features: train the projections and the logit scale alone.

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
    """
    heads = LockedHeads(clip)
    starts = torch.searchsorted(owners, torch.arange(len(image) + 1))

    def source(first: int, last: int) -> Iterator[Batch]:
        for step in range(first, last):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
            rows = torch.randperm(len(image), generator=generator)[: config.batch_size]
            counts = starts[rows + 1] - starts[rows]
            draws = (torch.rand(len(rows), generator=generator) * counts).long()
            yield {"image": image[rows], "text": text[starts[rows] + draws]}

    def loss(batch: Batch) -> dict[str, Tensor]:
        image_features, text_features = heads(batch["image"], batch["text"])
        return {"loss": clip_loss(image_features, text_features, heads.logit_scale.exp())}

    digest = spec_digest({**key, "training": config.model_dump(mode="json"), "title": title})
    return train(heads, loss, source, config, key=digest, folder=storage.join(folder, "checkpoint"), title=title)


class LockedHeads(torch.nn.Module):
    """The trainable rest of a CLIP model whose two trunks are frozen."""

    def __init__(self, clip: Clip) -> None:
        """Share the projections and the logit scale with `clip`'s model."""
        super().__init__()
        model: Any = clip.model
        self.image_head = model.visual.head
        self.text_head = model.text.proj
        self.logit_scale = model.logit_scale

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Trunk features to unit-norm embeddings."""
        normalize = torch.nn.functional.normalize
        return normalize(self.image_head(image), dim=-1), normalize(self.text_head(text), dim=-1)


def log_history(tracker: Tracker, result: Result) -> None:
    """Send a learning curve to the tracker, point by point."""
    for point in result.history:
        numbers = {k: v for k, v in point.items() if isinstance(v, float)}
        tracker.log_metrics({f"{point['model']}/{k}": v for k, v in numbers.items()}, step=point["step"])


def write_history(folder: str, histories: Sequence[Result]) -> None:
    """Write `history.jsonl`: the learning curves of a stage, one point a line."""
    lines = [json.dumps(point, sort_keys=True) + "\n" for result in histories for point in result.history]
    storage.write_bytes(storage.join(folder, "history.jsonl"), "".join(lines).encode())


def write_timings(folder: str, results: Mapping[str, Result], samples: Mapping[str, int]) -> None:
    """Write `timings.json`: seconds, share of waiting for data, samples per second."""
    rows = {
        name: {
            "seconds": round(r.seconds, 3),
            "wait_share": round(r.wait_seconds / max(r.seconds, 1e-9), 4),
            "samples_per_second": round(samples[name] / max(r.seconds, 1e-9), 2),
        }
        for name, r in results.items()
    }
    storage.write_bytes(storage.join(folder, "timings.json"), (json.dumps(rows, indent=2) + "\n").encode())
