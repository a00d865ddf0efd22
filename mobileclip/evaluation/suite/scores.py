"""Scores of evaluation tasks under the names that the field's result files use, as functions of resample weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mobileclip.evaluation import statistics
from mobileclip.evaluation.retrieval import Gallery, per_image, rank_pairs, similarities
from mobileclip.evaluation.statistics import Floats, Ints, Statistic
from mobileclip.evaluation.suite.tasks import Task
from mobileclip.evaluation.zero_shot import Predictions

Embeddings = NDArray[np.float32]
Metrics = dict[str, float | None]
_CUTS = (1, 5, 10)


@dataclass(frozen=True)
class Scored:
    """A task's numbers.

    Attributes:
        metrics: By the field's names; `None` where a metric does not exist (top-5 of four classes, an empty group).
        statistics: The metrics as functions of resample weights; counts of samples have none.
        outcomes: What the model did on each sample [samples, parts]; two models differ where these do.
        samples: Number of samples.
    """

    metrics: Metrics
    statistics: dict[str, Statistic]
    outcomes: Floats
    samples: int


def classification(task: Task, predictions: Predictions, labels: Ints, num_classes: int, groups: Ints) -> Scored:
    """Top-1, top-5 (from five classes on), mean per class, and what the task wants of its groups.

    Args:
        task: The registry's row.
        predictions: What the model answers.
        labels: True classes [samples].
        num_classes: Number of classes.
        groups: Group numbers [samples, columns].
    """
    top1, top5 = predictions.hits(1), predictions.hits(5)
    found: dict[str, Statistic | float | None] = {
        "acc1": statistics.ratio(top1),
        "acc5": statistics.ratio(top5) if num_classes >= 5 else None,
        "mean_per_class_recall": statistics.mean_over_groups(top1, labels, num_classes),
    }
    if task.macro:
        found["acc_avg"] = found["acc1"]
        found["recall-macro_all"] = found["mean_per_class_recall"]
        found["F1-macro_all"] = macro_f1(labels, predictions.predicted, num_classes)
    for group in task.groups:
        hits, name = (top5, "acc_top5") if group.top == 5 else (top1, "acc")
        found |= by_group(name, group.name, hits, groups[:, group.column], worst=group.worst)
    outcomes = predictions.predicted if task.macro else top5 if "top5" in task.main_metric else top1
    return scored(task, found, outcomes.astype(np.float64)[:, None])


def by_group(name: str, label: str, hits: Floats, numbers: Ints, *, worst: str) -> dict[str, Statistic | float | None]:
    """Mean over all, in each group that occurs, and in the worst of them, under the field's names.

    Args:
        name: Of the measure: `acc`.
        label: Of the groups: `region`.
        hits: Per sample [samples].
        numbers: Group of each sample [samples].
        worst: Name of the worst group's metric.
    """
    found: dict[str, Statistic | float | None] = {f"{name}_avg": statistics.ratio(hits)}
    for number in np.unique(numbers):
        inside = (numbers == number).astype(np.float64)
        found[f"{name}_{label}:{number}"] = statistics.ratio(hits * inside, inside)
        found[f"count_{label}:{number}"] = float(inside.sum())
    # The field's worst group is over the groups that occur.
    return {**found, worst: statistics.worst_group(hits, numbers, int(numbers.max()) + 1)}


def retrieval(task: Task, images: Embeddings, texts: Embeddings, owners: Ints) -> Scored:
    """Recall at 1, 5 and 10 both ways, as the CLIP benchmark counts.

    Every caption is a candidate and a query, and of candidates that tie the first comes first.

    Args:
        task: The registry's row.
        images: Unit norm [images, dim].
        texts: Unit norm [captions, dim], image by image.
        owners: Image of each caption [captions], ascending.
    """
    gallery = Gallery([""] * len(texts), owners, np.arange(len(texts)), len(images))
    ranks = rank_pairs(images, texts, gallery, first_wins=True)
    found: dict[str, Statistic] = {}
    parts = []
    for k in _CUTS:
        sums, counts = per_image((ranks.text_to_image <= k).astype(np.float64), gallery)
        right = (ranks.image_to_text <= k).astype(np.float64)
        found[f"image_retrieval_recall@{k}"] = statistics.ratio(sums, counts)
        found[f"text_retrieval_recall@{k}"] = statistics.ratio(right)
        parts += [sums, right] if task.main_metric.endswith(f"@{k}") else []
    found["mean_recall@1"] = statistics.mean_of(found["image_retrieval_recall@1"], found["text_retrieval_recall@1"])
    return scored(task, found, np.stack(parts, axis=1) if parts else np.zeros((len(images), 0)))


def association(task: Task, scores: Sequence[Floats], right: Sequence[Sequence[bool]]) -> Scored:
    """WinoGAViL (Bitton et al., arXiv 2207.12576): Jaccard index of the best pictures with the associated ones.

    Args:
        task: The registry's row.
        scores: Cosines of the cue with each candidate, per instance.
        right: Whether each candidate belongs to the cue.
    """
    values, sizes = [], []
    for row, truth in zip(scores, right, strict=True):
        wanted = set(np.flatnonzero(truth).tolist())
        chosen = set(np.argsort(row, kind="stable")[len(row) - len(wanted) :].tolist())
        values.append(len(chosen & wanted) / len(chosen | wanted))
        sizes.append(len(row))
    jaccard, size = np.array(values), np.array(sizes)
    found = {"avg_jaccard_score": statistics.ratio(jaccard)}
    parts = {"5": size == 5, "6": size == 6, "10": size == 10, "12": size == 12, "5-6": size <= 6, "10-12": size >= 10}
    for name, inside in parts.items():
        found[f"jaccard_score_{name}"] = statistics.ratio(jaccard * inside, inside.astype(np.float64))
    return scored(task, found, jaccard[:, None])


def choice(task: Task, images: Embeddings, right: Embeddings, wrong: Embeddings) -> Scored:
    """SugarCrepe (Hsieh et al., arXiv 2306.14610): share of pictures closer to their caption than to its negative.

    Args:
        task: The registry's row.
        images: Unit norm [pictures, dim].
        right: Embeddings of their captions [pictures, dim].
        wrong: Embeddings of the negatives [pictures, dim].
    """
    # To six decimals and with ties against the model, as everywhere here: equal texts must not pass.
    gain = np.round((images * right).sum(axis=1), 6) - np.round((images * wrong).sum(axis=1), 6)
    hits = (gain > 0).astype(np.float64)
    return scored(task, {"text_acc": statistics.ratio(hits), "acc": statistics.ratio(hits)}, hits[:, None])


def macro_f1(labels: Ints, predicted: Ints, num_classes: int) -> Statistic:
    """Mean F1 over the classes that occur among the labels (as WILDS scores iWildCam).

    Args:
        labels: True classes [samples].
        predicted: Predicted classes [samples].
        num_classes: Number of classes.
    """
    ones = np.ones(len(labels))
    true = statistics.group_sums(ones, labels, num_classes)
    said = statistics.group_sums(ones, predicted, num_classes)
    both = statistics.group_sums((labels == predicted).astype(np.float64), labels, num_classes)

    def value(weights: Floats) -> Floats:
        occurring, answered = true(weights), said(weights)
        scores = 2 * both(weights) / np.maximum(occurring + answered, 1)
        present = occurring > 0
        return np.where(present, scores, 0).sum(axis=1) / present.sum(axis=1)

    return value


def scores_of(cue: Embeddings, pictures: Embeddings) -> Floats:
    """Cosines of one text [dim] with pictures [pictures, dim]."""
    return similarities(cue[None], pictures)[0].astype(np.float64)


def scored(task: Task, found: Mapping[str, Statistic | float | None], outcomes: Floats) -> Scored:
    """Everything about a task from its metrics by name; `main_metric` is added.

    Args:
        task: The registry's row.
        found: Metrics as functions of weights; counts as numbers.
        outcomes: See `Scored`.
    """
    once = np.ones((1, len(outcomes)))
    values = {name: float(value(once)[0]) if callable(value) else value for name, value in found.items()}
    metrics: Metrics = {n: v if v is not None and np.isfinite(v) else None for n, v in values.items()}
    metrics["main_metric"] = metrics.get(task.main_metric)
    return Scored(metrics, {n: v for n, v in found.items() if callable(v)}, outcomes, len(outcomes))
