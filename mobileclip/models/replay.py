"""Verify a dataset whole: its bytes and contents, and that stored views replay to what the teachers saw."""

from typing import Any

import torch

from mobileclip import manifest
from mobileclip.data.augment import apply_view
from mobileclip.data.columns import ColumnReader
from mobileclip.data.embeddings import decode_all
from mobileclip.data.images import decode
from mobileclip.data.shards import ShardReader
from mobileclip.data.verify import check_dataset
from mobileclip.errors import IntegrityError
from mobileclip.manifest import Manifest
from mobileclip.models.embed import embed_pixels
from mobileclip.models.recorded import load_recorded

_MIN_COSINE = 0.999


def verify(data: str, *, teachers: str = "", samples: int = 16) -> dict[str, Any]:
    """Check a dataset's files, then replay stored views of every teacher.

    Args:
        data: Folder or URI with a manifest.
        teachers: train_teacher's output, where teachers are `trained:NAME`; a teacher that cannot be loaded is reported
            as not replayed.
        samples: Samples drawn for the replay.

    Returns:
        What `check_dataset` counts, and per teacher the smallest cosine of stored and recomputed view embeddings.

    Raises:
        IntegrityError: The first damage found: the sentence names the file.
    """
    report = check_dataset(data)
    content = manifest.read(data)
    names = content.teachers()
    return report | {
        "replay_min_cosine": {n: _replay(data, content, n, teachers=teachers, samples=samples) for n in names}
    }


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
