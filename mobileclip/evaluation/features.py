"""The evaluation split as models see it: embeddings of its pictures and texts, one decode for all models."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mobileclip.data.images import decode, resize
from mobileclip.data.progress import progress_bar
from mobileclip.data.shards import read_samples
from mobileclip.errors import DataError, IntegrityError
from mobileclip.manifest import Manifest
from mobileclip.models.embed import embed_pixels, embed_texts
from mobileclip.models.zoo import Clip

Features = NDArray[np.float32]
Change = Callable[[NDArray[np.uint8], str], NDArray[np.uint8]]
"""A picture and its uid to a picture of the same size."""


@dataclass(frozen=True)
class EvaluationSet:
    """The samples of a split without their pictures, in order.

    Attributes:
        uids: Sample ids.
        metadata: Every field of each sample.
        image_features: Unit-norm image embeddings [samples, dim] by model.
    """

    uids: list[str]
    metadata: list[dict[str, Any]]
    image_features: dict[str, Features]


def embed_split(
    models: Mapping[str, Clip],
    data: str,
    content: Manifest,
    *,
    split: str,
    batch_size: int,
    change: Change | None = None,
    size: int = 0,
) -> EvaluationSet:
    """Read a split once and embed its pictures with every model.

    Args:
        models: Models by name.
        data: Dataset folder or URI.
        content: Its manifest.
        split: train, validation or test.
        batch_size: Pictures per forward pass.
        change: What is done to each picture at the model's input size, uint8 [height, width, 3], with its uid.
        size: Input size in pixels instead of the models' own; 0 = their own.

    Raises:
        DataError: The split is empty, or a model takes no other input size.
        IntegrityError: A model gives values that are not finite.
    """
    total = sum(shard.samples for shard in content.split(split))
    if total == 0:
        splits = sorted({shard.split for shard in content.shards})
        raise DataError(f"evaluate.split: got '{split}', which has no samples; the dataset has {', '.join(splits)}.")
    uids: list[str] = []
    metadata: list[dict[str, Any]] = []
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in models}
    samples = progress_bar(read_samples(data, content, split), total=total, desc="embed", unit="sample")
    stream = iter(samples)
    while batch := list(islice(stream, batch_size)):
        uids += [sample.uid for sample in batch]
        metadata += [sample.metadata for sample in batch]
        pictures = [decode(sample.image) for sample in batch]
        for name, clip in models.items():
            preprocess = replace(clip.preprocess, size=size or clip.preprocess.size)
            resized = [resize(picture, preprocess) for picture in pictures]
            if change:
                resized = [_changed(pixels, change, sample.uid) for pixels, sample in zip(resized, batch, strict=True)]
            parts[name].append(_embed(name, clip, torch.stack(resized), batch_size, size))
    features = {name: _finite(name, torch.cat(part)) for name, part in parts.items()}
    return EvaluationSet(uids, metadata, features)


def _changed(pixels: torch.Tensor, change: Change, uid: str) -> torch.Tensor:
    found = change(pixels.permute(1, 2, 0).numpy(), uid)
    return torch.from_numpy(found).permute(2, 0, 1)


def _embed(name: str, clip: Clip, pixels: torch.Tensor, batch_size: int, size: int) -> torch.Tensor:
    try:
        return embed_pixels(clip, pixels, batch_size=batch_size)
    except (RuntimeError, AssertionError) as error:
        if not size:
            raise
        reason = str(error).partition("\n")[0]
        raise DataError(f"evaluate.resolutions: got {size}, which the {name} does not take ({reason}).") from None


def text_features(name: str, clip: Clip, texts: list[str], *, batch_size: int) -> Features:
    """Unit-norm text embeddings [texts, dim] of the model called `name`.

    Raises:
        IntegrityError: The model gives values that are not finite.
    """
    return _finite(name, embed_texts(clip, texts, batch_size=batch_size))


def caption_lists(metadata: list[dict[str, Any]], *, field: str, limit: int) -> list[list[str]]:
    """The first `limit` captions of each sample.

    Raises:
        DataError: A sample has none in that field.
    """
    rows = [_texts(fields.get(field))[:limit] for fields in metadata]
    missing = sum(not row for row in rows)
    if missing:
        raise DataError(f"evaluate.retrieval_field: got '{field}', {missing} of {len(rows)} samples have no such text.")
    return rows


def field_values(metadata: list[dict[str, Any]], field: str, *, key: str) -> list[str | None]:
    """A metadata field as class names; `None` where a sample lacks it.

    Args:
        metadata: Fields of each sample.
        field: Field name.
        key: Key of params.yaml that named the field, for the error.

    Raises:
        DataError: No sample has the field, or one holds a list or mapping.
    """
    values = [fields.get(field) for fields in metadata]
    odd = next((v for v in values if isinstance(v, list | dict)), None)
    if odd is not None:
        raise DataError(f"{key}: got '{field}', which holds {type(odd).__name__}s, want one value per sample.")
    if all(value is None for value in values):
        known = sorted({name for fields in metadata for name in fields})
        raise DataError(f"{key}: got '{field}', no sample has it; the samples have {', '.join(known)}.")
    return [None if value is None else _name(value) for value in values]


def _name(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value] if value.strip() else []
    return [str(text) for text in value if str(text).strip()] if isinstance(value, list) else []


def _finite(name: str, features: torch.Tensor) -> Features:
    if not torch.isfinite(features).all():
        raise IntegrityError(f"evaluate: the {name} gives embeddings that are not finite; its training diverged.")
    return features.numpy()  # type: ignore[no-any-return]
