"""Compare a student with the champion on the same samples, from the per-sample tables that `evaluate` leaves."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mobileclip.evaluation import statistics
from mobileclip.evaluation.scores import slice_name
from mobileclip.evaluation.statistics import Comparison, Floats, Ints, Statistic

_RETRIEVAL = re.compile(r"(?P<model>\w+)/retrieval/(?P<side>i2t|t2i|mean)/r(?P<k>\d+)")
_MEDIAN = re.compile(r"(?P<model>\w+)/retrieval/(?P<side>i2t|t2i)/median_rank")
_ZERO_SHOT = re.compile(
    r"(?:slice/(?P<slice>[^/]+)/)?(?P<model>\w+)/zero_shot/(?P<field>.+)/"
    r"(?P<kind>top1|top5|mean_per_class|worst_class|worst_slice|ece)"
)

Rows = Sequence[Mapping[str, Any]]
"""Lines of `samples.jsonl`, one per sample."""


@dataclass(frozen=True)
class Outcomes:
    """What one model did, reduced to one metric.

    Attributes:
        statistic: The metric as a function of resample weights.
        gains: What the model did on each sample, more is better; where it differs the models differ [samples, parts].
        samples: Number of samples that take part.
        higher_is_better: Direction of the metric.
    """

    statistic: Statistic
    gains: Floats
    samples: int
    higher_is_better: bool = True


@dataclass(frozen=True)
class Paired(Comparison):
    """A comparison, and what it says in the direction of the metric: a gain is better, whichever way that lies.

    Attributes:
        gain: Ours minus theirs, or theirs minus ours where less is better.
        most: Upper end of the gain's interval.
        shown: The gain that the samples show at least: the lower end, and where few samples differ no more than an
            exact bound of the share of samples that lose.
        losing: Samples on which ours does worse.
    """

    gain: float
    most: float
    shown: float
    losing: int


def read_rows(data: bytes) -> list[dict[str, Any]]:
    """The lines of `samples.jsonl`."""
    return [json.loads(line) for line in data.decode().splitlines() if line]


def same_samples(ours: Rows, theirs: Rows) -> bool:
    """Whether two tables are about the same samples with the same answers."""
    return bool(ours) and [_question(row) for row in ours] == [_question(row) for row in theirs]


def paired(metric: str, ours: Rows, theirs: Rows, *, confidence: float, resamples: int, seed: int) -> Paired | None:
    """Ours against theirs with a paired bootstrap interval (Efron and Tibshirani 1993).

    Args:
        metric: As in `metrics.json`: `student/retrieval/i2t/r10`, `slice/VALUE/student/zero_shot/group/top1`.
        ours: Table of the candidate.
        theirs: Table of the champion, on the same samples.
        confidence: Coverage of the interval, inside (0, 1).
        resamples: Bootstrap resamples.
        seed: Seed of the bootstrap.

    Returns:
        The comparison; `None` for metrics that the table does not determine (recall within a slice, probes,
        corruptions, input sizes).
    """
    if "slice" in metric and [row.get("slice") for row in ours] != [row.get("slice") for row in theirs]:
        return None  # cut into slices by another field
    mine, other = _outcomes(metric, ours), _outcomes(metric, theirs)
    if mine is None or other is None:
        return None
    drawn = statistics.draw_resamples(len(ours), resamples=resamples, confidence=confidence, seed=seed)
    estimates = [statistics.estimate(outcomes.statistic, drawn) for outcomes in (mine, other)]
    differing = int((mine.gains != other.gains).any(axis=1).sum())
    found = statistics.compare(
        estimates[0], estimates[1], differing=differing, confidence=confidence, higher_is_better=mine.higher_is_better
    )
    losing = int((mine.gains < other.gains).any(axis=1).sum())
    return _directed(found, mine.higher_is_better, losing, mine.samples, confidence)


def _directed(found: Comparison, higher_is_better: bool, losing: int, samples: int, confidence: float) -> Paired:
    sign = 1 if higher_is_better else -1
    low, high = sorted((sign * found.low, sign * found.high))
    shown = low
    if found.differing < statistics.least_differing(confidence):
        # So few that resampling them says little: two models that agree on ten samples may well differ on the next.
        shown = min(low, -statistics.largest_share(losing, samples, confidence=confidence))
    return Paired(**vars(found), gain=sign * found.delta, most=high, shown=shown, losing=losing)


def _question(row: Mapping[str, Any]) -> tuple[Any, ...]:
    labels = sorted((field, answer["label"]) for field, answer in row.get("zero_shot", {}).items())
    captions = {len(sides["t2i"]) for sides in row.get("retrieval", {}).values()}
    return row["uid"], tuple(labels), tuple(captions)


def _outcomes(metric: str, rows: Rows) -> Outcomes | None:
    found = _RETRIEVAL.fullmatch(metric)
    if found:
        sides = ("i2t", "t2i") if found["side"] == "mean" else (found["side"],)
        parts = [_retrieval(rows, found["model"], side, int(found["k"])) for side in sides]
        whole = parts[0].statistic if len(parts) == 1 else statistics.mean_of(*[part.statistic for part in parts])
        return Outcomes(whole, np.concatenate([part.gains for part in parts], axis=1), len(rows))
    found = _MEDIAN.fullmatch(metric)
    if found:
        return _median(rows, found["model"], found["side"])
    found = _ZERO_SHOT.fullmatch(metric)
    return _zero_shot(rows, found["model"], found["field"], found["kind"], found["slice"]) if found else None


def _ranks(rows: Rows, model: str, side: str) -> list[Ints]:
    return [np.atleast_1d(row["retrieval"][model][side]) for row in rows]


def _retrieval(rows: Rows, model: str, side: str, k: int) -> Outcomes:
    ranks = _ranks(rows, model, side)
    sums = np.array([float((rank <= k).sum()) for rank in ranks])
    counts = np.array([float(len(rank)) for rank in ranks])
    return Outcomes(statistics.ratio(sums, counts), sums[:, None], len(rows))


def _median(rows: Rows, model: str, side: str) -> Outcomes:
    ranks = _ranks(rows, model, side)
    owners = np.repeat(np.arange(len(ranks)), [len(rank) for rank in ranks])
    sums = np.array([float(rank.sum()) for rank in ranks])
    return Outcomes(statistics.median(np.concatenate(ranks), owners), -sums[:, None], len(rows), higher_is_better=False)


def _zero_shot(rows: Rows, model: str, field: str, kind: str, within: str | None) -> Outcomes | None:
    """A zero-shot metric; samples without the field, and outside the slice, weigh nothing."""
    answers = [row.get("zero_shot", {}).get(field) for row in rows]
    slices = [row.get("slice") for row in rows]
    inside = [within is None or _slice_name(value) == within for value in slices]
    where = np.array([i for i, answer in enumerate(answers) if answer is not None and inside[i]], dtype=np.int64)
    if not len(where):
        return None
    found = [answers[i] for i in where]
    limit = 5 if kind == "top5" else 1
    hits = np.array([float(answer[model]["rank"] <= limit) for answer in found])
    gains = np.zeros((len(rows), 1))
    gains[where, 0] = hits
    if kind == "ece":
        sure = np.array([float(answer[model]["confidence"]) for answer in found])
        gains = np.zeros((len(rows), 2))
        gains[where] = np.stack([hits, -sure], axis=1)
        statistic = statistics.calibration_error(sure, hits)
    elif kind in {"mean_per_class", "worst_class"}:
        groups, count = _numbered([answer["label"] for answer in found])
        over = statistics.mean_over_groups if kind == "mean_per_class" else statistics.worst_group
        statistic = over(hits, groups, count)
    elif kind == "worst_slice":
        statistic = statistics.worst_group(hits, *_numbered([slices[i] for i in where]))
    else:
        statistic = statistics.ratio(hits)
    return Outcomes(lambda weights: statistic(weights[:, where]), gains, len(where), higher_is_better=kind != "ece")


def _numbered(values: Sequence[Any]) -> tuple[Ints, int]:
    names = sorted({str(value) for value in values})
    return np.array([names.index(str(value)) for value in values]), len(names)


def _slice_name(value: Any) -> str:
    return slice_name(value) if isinstance(value, str) else ""
