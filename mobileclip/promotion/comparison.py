"""Compare a student with the champion on the same samples, from the per-sample tables that `evaluate` leaves."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mobileclip.evaluation import statistics
from mobileclip.evaluation.statistics import Comparison, Floats, Statistic

_RETRIEVAL = re.compile(r"(?P<model>\w+)/retrieval/(?P<side>i2t|t2i|mean)/r(?P<k>\d+)")
_ZERO_SHOT = re.compile(r"(?P<model>\w+)/zero_shot/(?P<field>.+)/(?P<kind>top1|top5|mean_per_class)")

Rows = Sequence[Mapping[str, Any]]
"""Lines of `samples.jsonl`, one per sample."""


@dataclass(frozen=True)
class Outcomes:
    """What one model did, reduced to one metric.

    Attributes:
        statistic: The metric as a function of resample weights.
        hits: What differs between models [samples, parts].
    """

    statistic: Statistic
    hits: Floats


def read_rows(data: bytes) -> list[dict[str, Any]]:
    """The lines of `samples.jsonl`."""
    return [json.loads(line) for line in data.decode().splitlines() if line]


def same_samples(ours: Rows, theirs: Rows) -> bool:
    """Whether two tables are about the same samples with the same answers."""
    return bool(ours) and [_question(row) for row in ours] == [_question(row) for row in theirs]


def paired(metric: str, ours: Rows, theirs: Rows, *, confidence: float, resamples: int, seed: int) -> Comparison | None:
    """Ours minus theirs with a paired bootstrap interval (Efron and Tibshirani 1993).

    Args:
        metric: As in `metrics.json`: `student/retrieval/i2t/r10`, `student/zero_shot/group/top1`.
        ours: Table of the candidate.
        theirs: Table of the champion, on the same samples.
        confidence: Coverage of the interval, inside (0, 1).
        resamples: Bootstrap resamples.
        seed: Seed of the bootstrap.

    Returns:
        The comparison; `None` for metrics that the table does not determine (slices, medians, calibration).
    """
    mine, other = _outcomes(metric, ours), _outcomes(metric, theirs)
    if mine is None or other is None:
        return None
    drawn = statistics.draw_resamples(len(ours), resamples=resamples, confidence=confidence, seed=seed)
    estimates = [statistics.estimate(outcomes.statistic, drawn) for outcomes in (mine, other)]
    differing = int((mine.hits != other.hits).any(axis=1).sum())
    return statistics.compare(estimates[0], estimates[1], differing=differing, confidence=confidence)


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
        return Outcomes(whole, np.concatenate([part.hits for part in parts], axis=1))
    found = _ZERO_SHOT.fullmatch(metric)
    return _zero_shot(rows, found["model"], found["field"], found["kind"]) if found else None


def _retrieval(rows: Rows, model: str, side: str, k: int) -> Outcomes:
    ranks = [np.atleast_1d(row["retrieval"][model][side]) for row in rows]
    sums = np.array([float((rank <= k).sum()) for rank in ranks])
    counts = np.array([float(len(rank)) for rank in ranks])
    return Outcomes(statistics.ratio(sums, counts), sums[:, None])


def _zero_shot(rows: Rows, model: str, field: str, kind: str) -> Outcomes:
    answers = [row.get("zero_shot", {}).get(field) for row in rows]
    present = np.array([float(answer is not None) for answer in answers])
    limit = 5 if kind == "top5" else 1
    hits = np.array([float(answer is not None and answer[model]["rank"] <= limit) for answer in answers])
    if kind != "mean_per_class":
        return Outcomes(statistics.ratio(hits, present), hits[:, None])
    where = np.flatnonzero(present)
    labels = [answers[i]["label"] for i in where]  # type: ignore[index]
    classes = sorted(set(labels))
    groups = np.array([classes.index(label) for label in labels])
    means = statistics.mean_over_groups(hits[where], groups, len(classes))
    return Outcomes(lambda weights: means(weights[:, where]), hits[:, None])
