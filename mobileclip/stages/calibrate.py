"""calibrate: choose the teachers' logit scales from stored embeddings alone, and write them into the manifest."""

import json
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mobileclip import manifest, storage
from mobileclip.config import Calibrate
from mobileclip.data.columns import ColumnReader
from mobileclip.data.embeddings import decode_all
from mobileclip.data.loader import PairDataset, Recipe
from mobileclip.errors import ConfigError, DataError
from mobileclip.evaluation.calibration import Ensemble, Pair, compare, curve, grow, joint, likelihoods
from mobileclip.manifest import Manifest, Shard
from mobileclip.models import zoo
from mobileclip.reports.figures import save_bars, save_curves
from mobileclip.tracking.protocol import Tracker
from mobileclip.training import checkpoint
from mobileclip.training.clip_objective import Reinforcement, TeacherAffinity
from mobileclip.training.contrastive import checkpoints, train_clip
from mobileclip.training.validation import retrieval_validation
from mobileclip.training.world import train_models

logger = logging.getLogger(__name__)

_SCORE = "i2t/r10"  # of the two recalls the one with less noise


def run(config: Calibrate, *, out: str, tracker: Tracker, data: str) -> dict[str, float]:
    """Publish a manifest with calibrated scales.

    A proxy that needs no teacher and no student: over batches as the student will see them, the averaged teacher
    affinities should give the true pair a high likelihood and no more certainty than they earn. The scale (of each
    teacher alone, then of the ensemble jointly) that minimizes the negative log-likelihood of the true pair, both
    directions, is temperature scaling (Guo et al., arXiv 1706.04599) on in-batch retrieval.

    With `student`, short trainings then check the proxy: the chosen ensemble at multiples of its scales, and every
    teacher alone at its own. The best on the validation split is taken.

    Args:
        config: The `calibrate` section.
        out: Output folder or URI.
        tracker: Gets the figures.
        data: Reinforced dataset.

    Returns:
        Chosen scale per teacher of the ensemble (a teacher that was left out has none), negative log-likelihood of
        every teacher alone and of the ensemble, and the recall of every short student run.

    Raises:
        ConfigError: Student runs are wanted, but there is no validation split; a scale is given for another teacher.
        DataError: No teacher's embeddings are there, or no sample has any of its captions.
    """
    content = manifest.read(data)
    names = content.teachers()
    if not names:
        raise DataError(f"calibrate: '{data}' has no teacher embeddings, want the output of reinforce.")
    if config.enabled and config.student and not content.split("validation"):
        raise ConfigError("calibrate.student: student runs are scored on a validation split, the dataset has none.")
    metrics: dict[str, float] = {}
    unknown = sorted(set(config.given) - set(names))
    if unknown:
        raise ConfigError(f"calibrate.given: got a scale for {unknown}, the dataset has {names}.")
    own = {name: float(content.column(f"{name}.views").spec["logit_scale"]) for name in names}
    scales = {name: config.given.get(name, own[name]) for name in names}
    if config.enabled:
        chosen, metrics = _by_proxy(config, data, content, names, out)
        scales = chosen.scales
        if config.student:
            scales, more = _by_students(config, data, content, chosen, metrics, out)
            metrics |= more
        for figure in ("scales.png", "ensembles.png", "students.png"):
            if not storage.is_s3(out) and storage.exists(storage.join(out, figure)):
                tracker.log_file(storage.join(out, figure), folder="calibrate")
    manifest.write(out, content.moved(data, out).model_copy(update={"scales": scales}))
    return metrics | {f"scale/{name}": scale for name, scale in scales.items()}


def _by_proxy(
    config: Calibrate, data: str, content: Manifest, names: list[str], out: str
) -> tuple[Ensemble, dict[str, float]]:
    """Search on the embeddings; writes the curves, the comparison of ensembles, and their figures."""
    batches = [_batch(config, data, content, names, index) for index in range(config.batches)]
    found = likelihoods(batches, config.scales)
    curves = {name: curve(found, name) for name in names}
    chosen = grow(found, names) if config.select else joint(found, names)
    ensembles = compare(found, names, also=[chosen])
    metrics = {f"nll/{name}": min(values) for name, values in curves.items()}
    metrics |= {f"scale_alone/{name}": config.scales[values.index(min(values))] for name, values in curves.items()}
    metrics["nll/ensemble"] = chosen.nll
    drawn = {name: (config.scales, values) for name, values in curves.items()}
    what = "negative log-likelihood of the true pair"
    storage.write_bytes(
        storage.join(out, "scales.png"), save_curves(drawn, x="teacher logit scale", y=what, log_x=True)
    )
    bars = {_label(e.scales): (e.nll, 1.96 * e.error) for e in ensembles}
    storage.write_bytes(storage.join(out, "ensembles.png"), save_bars(bars, label=f"{what} [nats]"))
    table = {
        "scales": config.scales,
        "nll": curves,
        "ensembles": [{"scales": e.scales, "nll": e.nll, "standard_error": e.error} for e in ensembles],
    }
    _write_json(out, "curves.json", table)
    return chosen, metrics


def _by_students(
    config: Calibrate, data: str, content: Manifest, chosen: Ensemble, metrics: dict[str, float], out: str
) -> tuple[dict[str, float], dict[str, float]]:
    """Train short students on the candidates; the scales of the best, and its and the others' recalls."""
    factors = sorted({*config.student_factors, 1.0})
    candidates = {
        f"ensemble_x{factor:g}": {name: factor * scale for name, scale in chosen.scales.items()} for factor in factors
    }
    if len(chosen.scales) > 1 or config.select:
        alone = {name: metrics[f"scale_alone/{name}"] for name in content.teachers()}
        candidates |= {f"alone_{n}": {n: s} for n, s in alone.items() if {n: s} not in candidates.values()}
    tasks: list[Any] = [(_train_student, (config, data, label, scales, out)) for label, scales in candidates.items()]
    scores = dict(zip(candidates, train_models(tasks), strict=True))
    # Equal scores: the proxy decides, then the mildest change of it.
    best = max(candidates, key=lambda label: (scores[label], label == "ensemble_x1"))
    drawn = {"ensemble": (factors, [scores[f"ensemble_x{factor:g}"] for factor in factors])}
    drawn |= {label: (factors, [score] * len(factors)) for label, score in scores.items() if label.startswith("alone_")}
    figure = save_curves(
        drawn, x="multiple of the scales found by the proxy", y="student's recall at 10, validation", log_x=True
    )
    storage.write_bytes(storage.join(out, "students.png"), figure)
    rows = [{"candidate": label, "scales": candidates[label], _SCORE: scores[label]} for label in candidates]
    _write_json(out, "students.json", {"model": config.student, "best": best, "candidates": rows})
    return candidates[best], {f"student/{label}": score for label, score in scores.items()}


def _train_student(config: Calibrate, data: str, label: str, scales: dict[str, float], out: str) -> float:
    """Recall of a student trained for a short while on one candidate, in a process of its own."""
    content = manifest.read(data)
    torch.manual_seed(config.seed)  # all candidates start from the same weights and see the same batches
    clip = zoo.create(config.student)
    recipe = Recipe(
        clip.preprocess, clip.tokenizer, config.caption_field, tuple(config.synthetic), tuple(scales),
        views="stored", seed=config.seed,
    )  # fmt: skip
    folder = storage.join(out, "students", label)
    validate = retrieval_validation(clip, data, content, caption_field=config.caption_field)
    if validate is None:
        raise ConfigError(
            f"calibrate.student: student runs are scored on a validation split, the dataset has none with captions of "
            f"the field '{config.caption_field}'."
        )
    # The curve is not kept: points are scored only where they choose the weights.
    best = config.student_training.keep_weights == "best"
    train_clip(
        clip, PairDataset(data, content, recipe), config.student_training,
        reinforcement=Reinforcement(
            teachers=tuple(TeacherAffinity(name, scale) for name, scale in scales.items()), distill_weight=1.0
        ),
        seed=config.seed,
        key={
            "data": content.digest(), "scales": scales,
            "config": config.model_dump(mode="json", include={"student", "seed", "caption_field", "synthetic"}),
        },
        folder=folder, title=label, validate=validate if best else None,
    )  # fmt: skip
    checkpoint.remove(checkpoints(folder))
    return validate()[_SCORE]


def _batch(config: Calibrate, data: str, content: Manifest, names: Sequence[str], index: int) -> dict[str, Pair]:
    """One random batch of (view, ground-truth caption) embeddings per teacher; every teacher gets the same rows."""
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + index)
    chosen = _rows(config, data, content, names, generator)
    draws = torch.rand(2, sum(len(rows) for _, rows in chosen), generator=generator)
    found = {}
    for name in names:
        pair = []
        for kind, draw in zip(("views", "captions"), draws, strict=True):
            parts = draw.split([len(rows) for _, rows in chosen])
            column = content.column(f"{name}.{kind}")
            pair.append(torch.cat([
                _drawn(ColumnReader(data, column, shard), rows, part)
                for (shard, rows), part in zip(chosen, parts, strict=True)
            ]))  # fmt: skip
        found[name] = (pair[0], pair[1])
    return found


def _rows(
    config: Calibrate, data: str, content: Manifest, names: Sequence[str], generator: torch.Generator
) -> list[tuple[Shard, Tensor]]:
    """Random rows of those that have captions and that the filter kept, of as few random shards as hold a batch.

    Reading all of them takes long.
    """
    left = [s for s in content.shards if s.name in content.column(f"{names[0]}.views").parts]
    chosen: list[tuple[Shard, Tensor]] = []
    missing = config.batch_size
    while missing and left:
        shard = left.pop(int(torch.randint(len(left), (), generator=generator)))
        kept = torch.arange(shard.samples)
        if content.has("selection") and shard.name in content.column("selection").parts:
            kept = kept[ColumnReader(data, content.column("selection"), shard).all("keep").bool()]
        kept = kept[_have_captions(data, content, names, shard)[kept]]
        rows = kept[torch.randperm(len(kept), generator=generator)[:missing]]
        missing -= len(rows)
        chosen.append((shard, rows))
    if missing == config.batch_size:
        raise DataError(f"calibrate: no sample in '{data}' has a view and a caption that the teachers embedded.")
    if missing:
        logger.warning(
            "calibrate.batch_size: got %d, the dataset has %d pairs: a smaller batch has a larger best scale.",
            config.batch_size, config.batch_size - missing,
        )  # fmt: skip
    return chosen


def _have_captions(data: str, content: Manifest, names: Sequence[str], shard: Shard) -> Tensor:
    """Whether every teacher embedded a ground-truth caption of each sample, bool [samples]."""
    readers = (ColumnReader(data, content.column(f"{name}.captions"), shard) for name in names)
    return torch.stack([reader.all("counts").diff() > 0 for reader in readers]).all(dim=0)


def _drawn(reader: ColumnReader, rows: Tensor, draw: Tensor) -> Tensor:
    """One stored embedding of each row, float32 [rows, dim]."""
    features, starts = decode_all(reader)
    lengths = starts[rows + 1] - starts[rows]
    return features[starts[rows] + (draw * lengths).long()]


def _label(scales: dict[str, float]) -> str:
    return " + ".join(f"{name} @ {scale:g}" for name, scale in scales.items())


def _write_json(out: str, name: str, value: Any) -> None:
    storage.write_bytes(storage.join(out, name), (json.dumps(value, indent=1) + "\n").encode())
