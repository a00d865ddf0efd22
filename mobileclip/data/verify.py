"""verify: re-hash every file of a dataset, check its contents, and prove that views replay to what teachers saw."""

import json
import logging
from typing import Any

import torch

from mobileclip import manifest, storage
from mobileclip.data.augment import FIELDS, OPS, apply_view
from mobileclip.data.columns import ColumnReader, unpack_texts
from mobileclip.data.embeddings import decode_all
from mobileclip.data.images import decode
from mobileclip.data.shards import ShardReader
from mobileclip.errors import DataError, IntegrityError
from mobileclip.manifest import Column, Manifest, Shard
from mobileclip.models.embed import embed_pixels
from mobileclip.models.recorded import load_recorded

logger = logging.getLogger(__name__)

# A stored vector is rounded (int8 worst) and renormalized by nobody.
_NORM_TOLERANCE = 1e-2
_MIN_COSINE = 0.999


def verify(data: str, *, teachers: str = "", samples: int = 16) -> dict[str, Any]:
    """Check a dataset.

    Args:
        data: Folder or URI with a manifest.
        teachers: train_teacher's output, where teachers are `trained:NAME`; a teacher that cannot be loaded is reported
            as not replayed.
        samples: Samples drawn for the replay.

    Returns:
        Counts, and per teacher the smallest cosine of stored and recomputed view embeddings.

    Raises:
        IntegrityError: The first damage found: the sentence names the file.
    """
    content = manifest.read(data)
    _check_record(data)
    for shard in content.shards:
        _check_bytes(data, shard.path, shard.sha256, shard.bytes)
        _check_shard(data, shard)
    by_name = {shard.name: shard for shard in content.shards}
    for column in content.columns:
        for name, part in column.parts.items():
            if name not in by_name:
                raise IntegrityError(f"column '{column.name}': has rows for shard '{name}', which the dataset lacks.")
            _check_bytes(data, part.path, part.sha256, part.bytes)
            _check_part(data, content, column, by_name[name])
    replayed = {name: _replay(data, content, name, teachers=teachers, samples=samples) for name in content.teachers()}
    return {
        "manifest": content.digest(),
        "shards": len(content.shards),
        "samples": sum(shard.samples for shard in content.shards),
        "columns": {column.name: len(column.parts) for column in content.columns},
        "replay_min_cosine": replayed,
    }


def _check_record(data: str) -> None:
    """The manifest vouches for shards and columns; the stage's record, where it lies beside, for the manifest."""
    uri = storage.join(data, "record.json")
    if not storage.exists(uri):
        return
    try:
        files = json.loads(storage.read_bytes(uri))["files"]
    except (ValueError, KeyError, TypeError):
        raise IntegrityError(f"{uri}: is no record, the file is damaged.") from None
    for name, sha256 in files.items():
        _check_bytes(data, name, sha256)


def _check_shard(data: str, shard: Shard) -> None:
    try:
        ShardReader(data, shard)  # counts and uids
    except DataError as error:
        raise IntegrityError(str(error)) from None


def _check_bytes(data: str, path: str, sha256: str, size: int | None = None) -> None:
    try:
        raw = storage.read_bytes(storage.join(data, path), sha256=sha256)
    except DataError as error:
        raise IntegrityError(str(error)) from None
    if size is not None and len(raw) != size:
        raise IntegrityError(f"{path}: has {len(raw)} bytes, the manifest promises {size}.")


def _check_part(data: str, content: Manifest, column: Column, shard: Shard) -> None:
    reader = ColumnReader(data, column, shard)
    where = f"column '{column.name}' of shard '{shard.name}'"
    if column.kind == "caption":
        for index in range(shard.samples):
            unpack_texts(reader, index)
    elif column.kind == "view":
        _check_views(reader, shard, where)
    elif column.kind == "embedding":
        _check_embedding(reader, content, column, shard, where)
    else:
        for name in reader.keys():  # noqa: SIM118 - a reader is no mapping
            if len(reader.all(name)) != shard.samples:
                raise IntegrityError(f"{where}: '{name}' has {len(reader.all(name))} rows, want {shard.samples}.")


def _check_views(reader: ColumnReader, shard: Shard, where: str) -> None:
    views, sizes = reader.all("views"), reader.all("sizes")
    if views.ndim != 3 or views.shape[0] != shard.samples or views.shape[2] != FIELDS:
        raise IntegrityError(f"{where}: views have shape {list(views.shape)}, want [{shard.samples}, N, {FIELDS}].")
    top, left, height, width = views[..., 0], views[..., 1], views[..., 2], views[..., 3]
    inside = (top >= 0) & (left >= 0) & (height > 0) & (width > 0)
    inside &= (left + width <= sizes[:, None, 0]) & (top + height <= sizes[:, None, 1])
    known = (views[..., 4] >= 0) & (views[..., 4] < len(OPS)) & (views[..., 6] >= 0) & (views[..., 6] < len(OPS))
    if not bool((inside & known).all()):
        raise IntegrityError(f"{where}: a view lies outside its picture or names an unknown operation.")


def _check_embedding(reader: ColumnReader, content: Manifest, column: Column, shard: Shard, where: str) -> None:
    features, counts = decode_all(reader)
    if len(counts) != shard.samples + 1 or int(counts[-1]) != len(features):
        raise IntegrityError(f"{where}: {len(features)} rows for counts up to {int(counts[-1])}.")
    if features.shape[1] != column.spec["dim"]:
        raise IntegrityError(f"{where}: vectors have {features.shape[1]} values, the spec says {column.spec['dim']}.")
    norms = features.norm(dim=1)
    if not bool(torch.isfinite(features).all()) or bool(((norms - 1).abs() > _NORM_TOLERANCE).any()):
        raise IntegrityError(f"{where}: a vector is not finite or not of unit norm.")
    if "views" in column.computed_on:
        expected = content.column("views").spec["num_views"]
        if not bool((counts[1:] - counts[:-1] == expected).all()):
            raise IntegrityError(f"{where}: a sample has not {expected} view embeddings.")


def _replay(data: str, content: Manifest, teacher: str, *, teachers: str, samples: int) -> float | str:
    """Re-apply stored views to the stored pictures, embed them again and compare with what is stored."""
    column = content.column(f"{teacher}.views")
    model = str(column.spec["model"])
    if model.startswith("trained") and not teachers:
        return "not replayed: the `teachers` folder was not given"
    if not column.spec["sha256"]:
        return "not replayed: the column does not say which weights made it"
    clip = load_recorded(column.spec, trained=teachers)
    if clip.sha256 != column.spec["sha256"]:
        raise IntegrityError(f"teacher '{teacher}': its weights are {clip.sha256[:12]}, not those the column names.")
    generator = torch.Generator().manual_seed(0)
    shards = [shard for shard in content.shards if shard.name in column.parts]
    lowest = 1.0
    for _ in range(samples):
        shard = shards[int(torch.randint(len(shards), (), generator=generator))]
        row = int(torch.randint(shard.samples, (), generator=generator))
        image = decode(ShardReader(data, shard).sample(row).image)
        views = ColumnReader(data, content.column("views"), shard).row("views", row).numpy()
        pre = clip.preprocess
        pixels = torch.stack([apply_view(image, v, size=pre.size, interpolation=pre.interpolation) for v in views])
        features, counts = decode_all(ColumnReader(data, column, shard))
        stored = torch.nn.functional.normalize(features[counts[row] : counts[row + 1]], dim=1)
        again = embed_pixels(
            clip, pixels, batch_size=len(pixels), precision=str(column.spec.get("precision", "float32"))
        )
        lowest = min(lowest, float((stored * again).sum(dim=1).min()))
    if lowest < _MIN_COSINE:
        raise IntegrityError(
            f"teacher '{teacher}': a stored view embeds to cosine {lowest:.4f} with the stored vector, "
            f"want at least {_MIN_COSINE}; views and embeddings do not belong together."
        )
    return lowest
