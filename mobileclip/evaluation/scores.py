"""From ranks to a table: every metric of every model with its interval, its baselines and the paired verdict."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mobileclip.evaluation import statistics
from mobileclip.evaluation.retrieval import (
    Gallery,
    Ranks,
    chance_median_rank,
    chance_recall,
    constant_ranks,
    per_image,
)
from mobileclip.evaluation.statistics import Floats, Ints, Resamples, Statistic
from mobileclip.evaluation.zero_shot import Predictions, chance_share, majority_share

STUDENT, CONTROL = "student", "control"
CUTS = (1, 5, 10)
_MAX_SLICE_NAME = 100
_DIGITS = 6  # float sums may differ in the last bits between machines; the reported numbers do not

Scores = dict[str, dict[str, Any]]
"""By metric: `chance`, `majority`, `higher_is_better`, an interval per model, and `delta` with its verdict."""


@dataclass(frozen=True)
class Measure:
    """One metric of one model on one set of samples.

    Attributes:
        statistic: The metric as a function of resample weights.
        outcomes: What the model did on each sample [samples, parts]; the models differ where these do.
        chance: The metric of a random answer; NaN where that means nothing.
        majority: The metric of the best answer that never looks at the input; NaN where that means nothing.
        higher_is_better: Direction.
    """

    statistic: Statistic
    outcomes: Floats
    chance: float
    majority: float
    higher_is_better: bool = True


def retrieval_measures(ranks: Ranks, gallery: Gallery) -> dict[str, Measure]:
    """R@1/5/10 both ways and their mean, and median ranks, by metric name."""
    constant = constant_ranks(gallery)
    sides = {
        "i2t": (ranks.image_to_text, constant.image_to_text, gallery.texts_per_image, len(gallery.texts)),
        "t2i": (
            ranks.text_to_image,
            constant.text_to_image,
            gallery.images_per_text[gallery.columns],
            gallery.num_images,
        ),
    }
    found: dict[str, Measure] = {}
    for side, (ranked, fixed, answers, candidates) in sides.items():
        for k in CUTS:
            sums, counts = (
                per_image(_hits(ranked, k), gallery) if side == "t2i" else (_hits(ranked, k), np.ones(len(ranked)))
            )
            found[f"retrieval/{side}/r{k}"] = Measure(
                statistics.ratio(sums, counts), sums[:, None],
                chance_recall(answers, candidates, k), float(_hits(fixed, k).mean()),
            )  # fmt: skip
        owners = gallery.images if side == "t2i" else None
        per_sample = per_image(ranked.astype(np.float64), gallery)[0] if side == "t2i" else ranked.astype(np.float64)
        found[f"retrieval/{side}/median_rank"] = Measure(
            statistics.median(ranked, owners), per_sample[:, None], chance_median_rank(answers, candidates),
            float(statistics.median(fixed)(np.ones((1, len(fixed))))[0]), higher_is_better=False,
        )  # fmt: skip
    mean = {f"retrieval/mean/r{k}": _mean(found[f"retrieval/i2t/r{k}"], found[f"retrieval/t2i/r{k}"]) for k in CUTS}
    return {**mean, **found}


def zero_shot_measures(
    field: str, predictions: Predictions, labels: Ints, num_classes: int, slices: tuple[Ints, int] | None = None
) -> dict[str, Measure]:
    """Top-1, top-5, mean per class, worst class, calibration error and, with slices, the worst slice.

    Args:
        field: Name of the task.
        predictions: What the model answers.
        labels: True classes [samples].
        num_classes: Classes of the task; some may be absent here.
        slices: Slice of each sample [samples] and number of slices.
    """
    top1, top5, chance = predictions.hits(1), predictions.hits(5), chance_share(num_classes)
    present = len(np.unique(labels))
    right, calibration = top1[:, None], np.stack([top1, predictions.confidences], axis=1)
    constant = 1.0 if present == 1 else 0.0
    per_class = statistics.mean_over_groups(top1, labels, num_classes)
    worst = statistics.worst_group(top1, labels, num_classes)
    error = statistics.calibration_error(predictions.confidences, top1)
    found = {
        "top1": Measure(statistics.ratio(top1), right, chance, majority_share(labels)),
        "top5": Measure(statistics.ratio(top5), top5[:, None], chance_share(num_classes, 5), majority_share(labels, 5)),
        "mean_per_class": Measure(per_class, right, chance, 1 / present),
        "worst_class": Measure(worst, right, chance, constant),
        "ece": Measure(error, calibration, np.nan, np.nan, higher_is_better=False),
    }
    if slices is not None:
        shares = [float((labels[slices[0] == s] == np.bincount(labels).argmax()).mean()) for s in np.unique(slices[0])]
        found["worst_slice"] = Measure(statistics.worst_group(top1, *slices), right, chance, min(shares))
    return {f"zero_shot/{field}/{name}": measure for name, measure in found.items()}


def restrict(measures: dict[str, Measure], rows: Ints, num_samples: int) -> dict[str, Measure]:
    """Measures of some samples as measures of all: the other samples weigh nothing.

    Args:
        measures: Made from the samples `rows` alone.
        rows: Their positions.
        num_samples: Number of all samples.
    """
    if len(rows) == num_samples:
        return measures

    def widen(measure: Measure) -> Measure:
        outcomes = np.zeros((num_samples, measure.outcomes.shape[1]))
        outcomes[rows] = measure.outcomes
        return Measure(
            lambda weights: measure.statistic(weights[:, rows]), outcomes,
            measure.chance, measure.majority, measure.higher_is_better,
        )  # fmt: skip

    return {name: widen(measure) for name, measure in measures.items()}


def score(models: Mapping[str, Mapping[str, Measure]], resamples: Resamples) -> Scores:
    """The table of one set of samples.

    Args:
        models: Measures by model and metric; with both `student` and `control` each metric gets a `delta`.
        resamples: Shared by all, which pairs them.
    """
    table: Scores = {}
    for metric, reference in next(iter(models.values())).items():
        estimates = {name: statistics.estimate(m[metric].statistic, resamples) for name, m in models.items()}
        row: dict[str, Any] = {
            "chance": rounded(reference.chance),
            "majority": rounded(reference.majority),
            "higher_is_better": reference.higher_is_better,
        }
        for name, e in estimates.items():
            row[name] = {"value": rounded(e.value), "low": rounded(e.low), "high": rounded(e.high)}
        if STUDENT in models and CONTROL in models:
            differing = (models[STUDENT][metric].outcomes != models[CONTROL][metric].outcomes).any(axis=1)
            row["delta"] = _delta(estimates, int(differing.sum()), resamples, reference.higher_is_better)
        table[metric] = row
    return table


def per_class(predictions: Predictions, labels: Ints, classes: Sequence[str], resamples: Resamples) -> Scores:
    """Recall of every class with its interval, over the samples that have the label."""
    means = statistics.group_means(predictions.hits(), labels, len(classes))
    values = means(np.ones((1, len(labels))))[0]
    draws = np.concatenate([means(part.astype(np.float64)) for part in np.array_split(resamples.counts, 16)])
    tail = (1 - resamples.confidence) / 2
    counts = np.bincount(labels, minlength=len(classes))
    table: Scores = {}
    for index, name in enumerate(classes):
        known = draws[np.isfinite(draws[:, index]), index]
        low, high = np.quantile(known, [tail, 1 - tail]) if len(known) else (np.nan, np.nan)
        table[name] = {
            "samples": int(counts[index]),
            "value": rounded(values[index]),
            "low": rounded(low),
            "high": rounded(high),
        }
    return table


def flatten(table: Scores, *, prefix: str = "") -> dict[str, float]:
    """A table as flat metrics: `student/METRIC`, `.../low`, `.../high`, `delta/METRIC`, `chance/METRIC`, ..."""
    flat: dict[str, float] = {}
    for metric, row in table.items():
        for level in ("chance", "majority"):
            if row[level] is not None:
                flat[f"{prefix}{level}/{metric}"] = row[level]
        for name, key in ((STUDENT, "value"), (CONTROL, "value"), ("delta", "value")):
            if name in row and row[name][key] is not None:
                flat[f"{prefix}{name}/{metric}"] = row[name][key]
                flat[f"{prefix}{name}/{metric}/low"] = row[name]["low"]
                flat[f"{prefix}{name}/{metric}/high"] = row[name]["high"]
    return flat


def slice_name(value: str) -> str:
    """A slice's value as part of a metric's name: letters of all scripts stay, no two values share a name.

    Signs other than `_ . -` and the space are written as `:XX`, the digits of their UTF-8 bytes; of a long value the
    beginning and a digest are kept.
    """
    dots = not value.strip(".")  # a part of a path that means another place
    name = re.sub(r"[^\w.\- ]" if not dots else r".", lambda found: _escaped(found[0]), value, flags=re.DOTALL)
    if len(name) > _MAX_SLICE_NAME:
        digest = hashlib.sha256(value.encode(errors="surrogatepass")).hexdigest()
        return f"{name[:_MAX_SLICE_NAME]}::{digest[:12]}"
    return name or "::"


def _escaped(text: str) -> str:
    return "".join(f":{byte:02x}" for byte in text.encode(errors="surrogatepass"))


def rounded(value: float) -> float | None:
    """Six decimals; `None` for NaN, which JSON does not know. Never -0.0."""
    return None if not np.isfinite(value) else round(float(value), _DIGITS) + 0.0


def _delta(
    estimates: Mapping[str, statistics.Estimate], differing: int, resamples: Resamples, higher_is_better: bool
) -> dict[str, Any]:
    found = statistics.compare(
        estimates[STUDENT], estimates[CONTROL], differing=differing,
        confidence=resamples.confidence, higher_is_better=higher_is_better,
    )  # fmt: skip
    return {
        "value": rounded(found.delta),
        "low": rounded(found.low),
        "high": rounded(found.high),
        "p_value": rounded(found.p_value),
        "differing": found.differing,
        "verdict": found.verdict,
    }


def _hits(ranks: Ints, k: int) -> Floats:
    return (ranks <= k).astype(np.float64)


def _mean(first: Measure, second: Measure) -> Measure:
    return Measure(
        statistics.mean_of(first.statistic, second.statistic),
        np.concatenate([first.outcomes, second.outcomes], axis=1),
        (first.chance + second.chance) / 2,
        (first.majority + second.majority) / 2,
    )
