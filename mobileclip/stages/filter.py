"""filter: score image-text pairs with a CLIP model and keep the best, as a selection column (no shard is rewritten)."""

import json
import logging

import torch

from mobileclip import manifest, storage
from mobileclip.config import Filter
from mobileclip.data.columns import ColumnPlan, ColumnReader, Tensors, build_columns, collect
from mobileclip.data.images import decode, resize
from mobileclip.data.progress import write_timings
from mobileclip.data.shards import ShardReader
from mobileclip.errors import DataError
from mobileclip.manifest import Manifest, Shard
from mobileclip.models import zoo
from mobileclip.models.embed import check_finite, embed_pixels, embed_texts
from mobileclip.reports.figures import save_histogram
from mobileclip.tracking.protocol import Tracker

logger = logging.getLogger(__name__)


def run(config: Filter, *, out: str, tracker: Tracker, data: str, teachers: str = "") -> dict[str, float]:
    """Write the columns `scores` (cosine of image and first caption) and `selection` (kept or not).

    Data filtering networks (arXiv 2309.17425): a CLIP model's own cosine ranks the pairs.

    Args:
        config: The `filter` section.
        out: Output folder or URI.
        tracker: Gets the histogram.
        data: Prepared dataset.
        teachers: Folder of train_teacher, for `trained:NAME`.

    Returns:
        Pairs seen and kept, the cosine at the cut, mean cosine of kept and dropped pairs; nothing where the filter is
        off, which leaves a manifest without these columns.

    Raises:
        DataError: No training pair is there, or none is kept.
    """
    content = manifest.read(data)
    if not config.enabled:
        manifest.write(out, content.moved(data, out))
        return {}
    clip = zoo.load(config.model, pretrained=config.pretrained, trained=teachers)
    shards = content.split("train")
    if not shards:
        raise DataError(f"filter: '{data}' has no shard of the split train.")
    scores_plan = ColumnPlan(
        "scores", "selection", {"model": clip.sha256, "batch_size": config.batch_size, "version": 1}
    )
    work = build_columns(out, [scores_plan], shards, lambda shard, _: {"scores": _score(clip, data, shard, config)})
    write_timings(out, work)
    scored = collect(out, [scores_plan], shards, content.moved(data, out))
    column = scored.column("scores")
    scores = [ColumnReader(out, column, shard).all("score") for shard in shards]
    flat = torch.cat(scores)
    kept = max(1, round(config.keep_share * len(flat)))
    cut = max(float(flat.sort(descending=True).values[kept - 1]), config.min_score)
    if cut > float(flat.max()):
        raise DataError(f"filter.min_score: got {cut}, no pair scores as high, the best has {float(flat.max()):.4f}.")
    spec = {**scores_plan.spec, "cut": cut, "keep_share": config.keep_share, "min_score": config.min_score}
    plan = ColumnPlan("selection", "selection", spec, computed_on=["scores"])
    by_name = {shard.name: values for shard, values in zip(shards, scores, strict=True)}
    build_columns(out, [plan], shards, lambda s, _: {"selection": {"keep": (by_name[s.name] >= cut).to(torch.uint8)}})
    manifest.write(out, collect(out, [plan], shards, scored))
    keep = flat >= cut
    _write_figure(out, flat, cut, tracker)
    _write_worst(out, data, content, by_name)
    return {
        "pairs": float(len(flat)),
        "kept": float(keep.sum()),
        "cut": cut,
        "cosine/kept": float(flat[keep].mean()),
        "cosine/dropped": float(flat[~keep].mean()) if bool((~keep).any()) else 0.0,
    }


def _score(clip: zoo.Clip, data: str, shard: Shard, config: Filter) -> Tensors:
    reader = ShardReader(data, shard)
    samples = [reader.sample(index) for index in range(len(reader))]
    pixels = torch.stack([resize(decode(sample.image), clip.preprocess) for sample in samples])
    image = embed_pixels(clip, pixels, batch_size=config.batch_size)
    text = embed_texts(clip, [sample.captions[0] for sample in samples], batch_size=config.batch_size)
    score = (image * text).sum(dim=1)
    check_finite(score[:, None], model=f"filter model '{clip.name}'", where=f"shard '{shard.name}'")
    return {"score": score}


def _write_figure(out: str, scores: torch.Tensor, cut: float, tracker: Tracker) -> None:
    target = storage.join(out, "scores.png")
    storage.write_bytes(target, save_histogram(scores.tolist(), mark=cut, label="cosine of image and caption"))
    if not storage.is_s3(target):
        tracker.log_file(target, folder="filter")


def _write_worst(out: str, data: str, content: Manifest, scores: dict[str, torch.Tensor]) -> None:
    """The twenty worst pairs by uid and caption, for a look at what is thrown away."""
    rows = []
    for shard in content.split("train"):
        reader = ShardReader(data, shard)
        for index in scores[shard.name].argsort()[:20].tolist():
            sample = reader.sample(index)
            rows.append({"uid": sample.uid, "caption": sample.captions[0], "cosine": float(scores[shard.name][index])})
    rows.sort(key=lambda row: (row["cosine"], row["uid"]))
    storage.write_bytes(storage.join(out, "worst.json"), (json.dumps(rows[:20], indent=1) + "\n").encode())
