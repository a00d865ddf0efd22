"""Re-hash every file of a dataset and check its contents: counts, shapes, views inside their images, unit norms."""

import json
import logging
from typing import Any

import torch

from mobileclip import manifest, storage
from mobileclip.data.augment import FIELDS, OPS
from mobileclip.data.columns import ColumnReader, unpack_texts
from mobileclip.data.embeddings import decode_all
from mobileclip.data.shards import ShardReader
from mobileclip.errors import DataError, IntegrityError
from mobileclip.manifest import Column, Manifest, Shard

logger = logging.getLogger(__name__)

# A stored vector is rounded (int8 worst) and renormalized by nobody.
_NORM_TOLERANCE = 1e-2


def check_dataset(data: str) -> dict[str, Any]:
    """Re-hash every file of a dataset and check its contents.

    Args:
        data: Folder or URI with a manifest.

    Returns:
        Digest of the manifest, counts of shards and samples, and the number of parts per column.

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
    return {
        "manifest": content.digest(),
        "shards": len(content.shards),
        "samples": sum(shard.samples for shard in content.shards),
        "columns": {column.name: len(column.parts) for column in content.columns},
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
    if shard.index_sha256:
        _check_bytes(data, shard.index_path, shard.index_sha256)
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
