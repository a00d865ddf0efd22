"""calibrate: choose the teachers' logit scales from stored embeddings alone, and write them into the manifest."""

import itertools
import json
import math

import torch
from torch.nn import functional as F

from mobileclip import manifest, storage
from mobileclip.config import Calibrate
from mobileclip.data.columns import ColumnReader
from mobileclip.data.embeddings import decode_all
from mobileclip.errors import DataError
from mobileclip.evaluation.figures import save_curves
from mobileclip.manifest import Manifest
from mobileclip.report import Tracker


def run(config: Calibrate, *, out: str, tracker: Tracker, data: str) -> dict[str, float]:
    """Publish a manifest with calibrated scales.

    A proxy that needs no teacher and no student: over batches as the student will see them, the averaged teacher
    affinities should give the true pair a high likelihood and no more certainty than they earn. The scale (of each
    teacher alone, then of the ensemble jointly) that minimizes the negative log-likelihood of the true pair, both
    directions, is temperature scaling (Guo et al., arXiv 1706.04599) on in-batch retrieval.

    Args:
        config: The `calibrate` section.
        out: Output folder or URI.
        tracker: Gets the figure.
        data: Reinforced dataset.

    Returns:
        Chosen scale per teacher of the ensemble (a teacher that was left out has none), negative log-likelihood of
        every teacher alone and of the ensemble.

    Raises:
        DataError: No teacher's embeddings are there.
    """
    content = manifest.read(data)
    names = content.teachers()
    if not names:
        raise DataError(f"calibrate: '{data}' has no teacher embeddings, want the output of reinforce.")
    own = {name: float(content.column(f"{name}.views").spec["logit_scale"]) for name in names}
    metrics: dict[str, float] = {}
    scales = own
    if config.enabled:
        batches = [_batch(config, data, content, names, index) for index in range(config.batches)]
        curves = {
            name: [_mean_nll([{name: b[name]} for b in batches], {name: s}) for s in config.scales] for name in names
        }
        scales, best = _choose(config, batches, names) if config.select else _joint(config, batches, names)
        for name, curve in curves.items():
            metrics[f"nll/{name}"] = min(curve)
            metrics[f"scale_alone/{name}"] = config.scales[curve.index(min(curve))]
        metrics["nll/ensemble"] = best
        figure = save_curves(
            {name: (config.scales, curve) for name, curve in curves.items()},
            x="teacher logit scale", y="negative log-likelihood of the true pair", log_x=True,
        )  # fmt: skip
        storage.write_bytes(storage.join(out, "scales.png"), figure)
        if not storage.is_s3(out):
            tracker.log_file(storage.join(out, "scales.png"), folder="calibrate")
        table = {"scales": config.scales, "nll": curves}
        storage.write_bytes(storage.join(out, "curves.json"), (json.dumps(table, indent=1) + "\n").encode())
    manifest.write(out, content.moved(data, out).model_copy(update={"scales": scales}))
    return metrics | {f"scale/{name}": scale for name, scale in scales.items()}


def _batch(
    config: Calibrate, data: str, content: Manifest, names: list[str], index: int
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """One random batch of (view, ground-truth caption) embeddings per teacher; every teacher gets the same rows."""
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + index)
    shards = [s for s in content.shards if s.name in content.column(f"{names[0]}.views").parts]
    shard = shards[int(torch.randint(len(shards), (), generator=generator))]
    rows = torch.randperm(shard.samples, generator=generator)[: config.batch_size]
    draws = torch.rand(2, len(rows), generator=generator)
    found = {}
    for name in names:
        pair = []
        for kind, draw in zip(("views", "captions"), draws, strict=True):
            features, counts = decode_all(ColumnReader(data, content.column(f"{name}.{kind}"), shard))
            lengths = counts[rows + 1] - counts[rows]
            pair.append(features[counts[rows] + (draw * lengths).long()])
        found[name] = (pair[0], pair[1])
    return found


def _mean_nll(batches: list[dict[str, tuple[torch.Tensor, torch.Tensor]]], scales: dict[str, float]) -> float:
    """Mean over batches and directions of -log of the averaged probability of the true pair."""
    total = 0.0
    for batch in batches:
        for transpose in (False, True):
            logs = []
            for name, (image, text) in batch.items():
                if name not in scales:
                    continue
                logits = scales[name] * image @ text.T
                logs.append(F.log_softmax(logits.T if transpose else logits, dim=1).diagonal())
            # The logarithm of the mean over teachers, without leaving logarithms: a sharp scale underflows otherwise.
            mean = torch.stack(logs).logsumexp(dim=0) - math.log(len(logs))
            total -= float(mean.mean())
    return total / (2 * len(batches))


def _choose(
    config: Calibrate, batches: list[dict[str, tuple[torch.Tensor, torch.Tensor]]], names: list[str]
) -> tuple[dict[str, float], float]:
    """Scales of the best ensemble: from the best single teacher on, one is added as long as it helps."""
    scales, best = min((_joint(config, batches, [name]) for name in names), key=lambda found: found[1])
    while True:
        rest = [name for name in names if name not in scales]
        # The manifest's order of teachers is kept, whichever came in first.
        grown = [_joint(config, batches, [n for n in names if n in scales or n == name]) for name in rest]
        if not grown or min(found[1] for found in grown) >= best:
            return scales, best
        scales, best = min(grown, key=lambda found: found[1])


def _joint(
    config: Calibrate, batches: list[dict[str, tuple[torch.Tensor, torch.Tensor]]], names: list[str]
) -> tuple[dict[str, float], float]:
    """Scales of the ensemble: the full grid for up to two teachers, coordinate descent beyond."""
    if len(names) <= 2:
        grid = [dict(zip(names, c, strict=True)) for c in itertools.product(config.scales, repeat=len(names))]
        scored = [(_mean_nll(batches, scales), index) for index, scales in enumerate(grid)]
        best, index = min(scored)
        return grid[index], best
    scales = dict.fromkeys(names, config.scales[len(config.scales) // 2])
    best = _mean_nll(batches, scales)
    for _ in range(3):
        for name in names:
            options = [(_mean_nll(batches, {**scales, name: s}), s) for s in config.scales]
            best, scales[name] = min(options)
    return scales, best
