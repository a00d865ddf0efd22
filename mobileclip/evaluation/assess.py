"""Score models on one evaluation set: all samples and every slice, retrieval and every zero-shot task."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mobileclip.config import Classification, Evaluate
from mobileclip.errors import ConfigError, DataError
from mobileclip.evaluation import scores, statistics, zero_shot
from mobileclip.evaluation.features import EvaluationSet, Features, caption_lists, field_values, text_features
from mobileclip.evaluation.retrieval import Gallery, Ranks, build_gallery, join_equal, rank_pairs, same_text
from mobileclip.evaluation.scores import Measure, Scores
from mobileclip.evaluation.statistics import Ints, Resamples
from mobileclip.models.zoo import Clip

SCHEMA_VERSION = 1
_MAX_SLICES = 40
_MAX_CLASSES = 5000


@dataclass(frozen=True)
class Retrieval:
    """The retrieval task on all samples.

    Attributes:
        captions: Captions of each sample.
        gallery: Their distinct texts.
        text_features: Embeddings of `gallery.texts` by model.
        ranks: Ranks by model.
    """

    captions: list[list[str]]
    gallery: Gallery
    text_features: dict[str, Features]
    ranks: dict[str, Ranks]


@dataclass(frozen=True)
class Task:
    """A zero-shot task.

    Attributes:
        spec: Its section of params.yaml.
        classes: Class names, sorted.
        rows: Positions of the samples that have the field.
        labels: Their classes [len(rows)].
        class_features: Unit-norm class embeddings [classes, dim] by model.
        predictions: Answers by model.
    """

    spec: Classification
    classes: list[str]
    rows: Ints
    labels: Ints
    class_features: dict[str, Features]
    predictions: dict[str, zero_shot.Predictions]


@dataclass(frozen=True)
class Scope:
    """A set of samples that is scored apart.

    Attributes:
        name: Prefix of its metrics without the last slash: empty for all samples, else `slice/VALUE`.
        value: The slice's value as it is in the metadata.
        rows: Positions of its samples.
        table: Every metric.
    """

    name: str
    value: str
    rows: Ints
    table: Scores = field(default_factory=dict)


@dataclass(frozen=True)
class Assessment:
    """All that was measured.

    Attributes:
        data: The evaluation set.
        retrieval: The retrieval task.
        tasks: The zero-shot tasks.
        slices: Slice value of each sample; empty without slices.
        scopes: All samples first, then the slices.
        resamples: The bootstrap on all samples.
    """

    data: EvaluationSet
    retrieval: Retrieval
    tasks: list[Task]
    slices: list[str | None]
    scopes: list[Scope]
    resamples: Resamples


Further = Callable[[Retrieval, list[Task]], Mapping[str, Mapping[str, Measure]]]
"""From the tasks as they were solved to further measures of all samples, by model and metric."""


def assess(
    models: Mapping[str, Clip], data: EvaluationSet, config: Evaluate, *, further: Further | None = None
) -> Assessment:
    """Run every task of the section.

    Args:
        models: `student` and, where there is one, `control`.
        data: Metadata and image embeddings.
        config: The `evaluate` section.
        further: What else is measured on all samples; none = nothing.

    Raises:
        DataError: The samples lack a field that the section names.
        ConfigError: `headline` is no metric of these tasks.
    """
    retrieval = _retrieval(models, data, config)
    tasks = [_task(models, data, spec, index, config) for index, spec in enumerate(config.classifications)]
    slices = field_values(data.metadata, config.slice_field, key="evaluate.slice_field") if config.slice_field else []
    scopes = [Scope("", "", np.arange(len(data.uids))), *_slice_scopes(slices, config.slice_field)]
    more = further(retrieval, tasks) if further else {}
    scored = [_score(models, data, retrieval, tasks, slices, scope, config, more) for scope in scopes]
    if config.headline not in scored[0].table:
        raise ConfigError(f"evaluate.headline: got '{config.headline}', want one of {', '.join(scored[0].table)}.")
    return Assessment(data, retrieval, tasks, slices, scored, _resamples(len(data.uids), config))


def metrics(found: Assessment) -> dict[str, float]:
    """All numbers, flat."""
    flat = {"samples": float(len(found.data.uids)), "texts": float(len(found.retrieval.gallery.texts))}
    for scope in found.scopes:
        prefix = f"{scope.name}/" if scope.name else ""
        flat |= scores.flatten(scope.table, prefix=prefix)
        flat[f"{prefix}samples"] = float(len(scope.rows))
    return flat


def results(found: Assessment, config: Evaluate) -> dict[str, Any]:
    """`results.json`: every table with intervals and verdicts, classes, confusion matrices, and how they were made."""
    return {
        "schema_version": SCHEMA_VERSION,
        "split": config.split,
        "samples": len(found.data.uids),
        "texts": len(found.retrieval.gallery.texts),
        "confidence": config.confidence,
        "resamples": config.bootstrap,
        "seed": config.seed,
        "headline": config.headline,
        "slice_field": config.slice_field,
        "scopes": [
            {"name": scope.name, "value": scope.value, "samples": len(scope.rows), "metrics": scope.table}
            for scope in found.scopes
        ],
        "classifications": {task.spec.field: _task_results(task, found.resamples) for task in found.tasks},
    }


def _retrieval(models: Mapping[str, Clip], data: EvaluationSet, config: Evaluate) -> Retrieval:
    captions = caption_lists(data.metadata, field=config.retrieval_field, limit=config.retrieval_captions)
    captions = join_equal(captions, next(iter(models.values())).tokenizer)
    gallery = build_gallery(captions)
    texts = {n: text_features(n, clip, gallery.texts, batch_size=config.batch_size) for n, clip in models.items()}
    ranks = {name: rank_pairs(data.image_features[name], texts[name], gallery) for name in models}
    return Retrieval(captions, gallery, texts, ranks)


def _task(models: Mapping[str, Clip], data: EvaluationSet, spec: Classification, index: int, config: Evaluate) -> Task:
    key = f"evaluate.classifications.{index}.field"
    values = field_values(data.metadata, spec.field, key=key)
    classes = sorted({value for value in values if value is not None})
    if not 2 <= len(classes) <= _MAX_CLASSES:
        raise DataError(f"{key}: got '{spec.field}', which has {len(classes)} classes, want 2 to {_MAX_CLASSES}.")
    place = {name: number for number, name in enumerate(classes)}
    rows = np.array([row for row, value in enumerate(values) if value is not None])
    labels = np.array([place[value] for value in values if value is not None])
    features, predictions = {}, {}
    for name, clip in models.items():
        features[name] = zero_shot.class_embeddings(
            lambda texts, n=name, c=clip: text_features(n, c, list(texts), batch_size=config.batch_size),  # type: ignore[misc]
            classes, spec.templates,
        )  # fmt: skip
        predictions[name] = zero_shot.classify(
            data.image_features[name][rows], features[name], labels, logit_scale=clip.logit_scale,
            same=zero_shot.equal_rows(clip.tokenizer, classes, spec.templates),
        )  # fmt: skip
    return Task(spec, classes, rows, labels, features, predictions)


def _slice_scopes(slices: list[str | None], slice_field: str) -> list[Scope]:
    values = sorted({value for value in slices if value is not None})
    if len(values) > _MAX_SLICES:
        raise DataError(
            f"evaluate.slice_field: got '{slice_field}', which has {len(values)} values, want at most {_MAX_SLICES}."
        )
    rows = [np.array([row for row, found in enumerate(slices) if found == value]) for value in values]
    names = [f"slice/{scores.slice_name(value)}" for value in values]
    return [Scope(name, value, where) for name, value, where in zip(names, values, rows, strict=True)]


def _score(
    models: Mapping[str, Clip],
    data: EvaluationSet,
    retrieval: Retrieval,
    tasks: list[Task],
    slices: list[str | None],
    scope: Scope,
    config: Evaluate,
    more: Mapping[str, Mapping[str, Measure]],
) -> Scope:
    """Score one scope. Retrieval searches among the scope's own samples; a task keeps all its classes."""
    measures = {}
    for name in models:
        found = _retrieval_measures(name, data, retrieval, scope)
        for task in tasks:
            found |= _task_measures(name, task, scope, slices if not scope.name else [])
        found |= more.get(name, {}) if not scope.name else {}
        measures[name] = found
    # A task without samples here is absent for every model alike.
    table = scores.score(measures, _resamples(len(scope.rows), config))
    return Scope(scope.name, scope.value, scope.rows, table)


def _retrieval_measures(name: str, data: EvaluationSet, retrieval: Retrieval, scope: Scope) -> dict[str, Measure]:
    if not scope.name:
        return scores.retrieval_measures(retrieval.ranks[name], retrieval.gallery)
    gallery = build_gallery([retrieval.captions[row] for row in scope.rows])
    place = {same_text(text): index for index, text in enumerate(retrieval.gallery.texts)}
    texts = retrieval.text_features[name][[place[same_text(text)] for text in gallery.texts]]
    return scores.retrieval_measures(rank_pairs(data.image_features[name][scope.rows], texts, gallery), gallery)


def _task_measures(name: str, task: Task, scope: Scope, slices: list[str | None]) -> dict[str, Measure]:
    # `rows` are positions in the task, `here` the same samples' positions in the scope.
    _, rows, here = np.intersect1d(task.rows, scope.rows, assume_unique=True, return_indices=True)
    if not len(rows):
        return {}
    whole, labels = task.predictions[name], task.labels[rows]
    part = zero_shot.Predictions(whole.ranks[rows], whole.predicted[rows], whole.confidences[rows])
    groups = _slice_groups([slices[row] for row in task.rows]) if slices else None
    found = scores.zero_shot_measures(task.spec.field, part, labels, len(task.classes), groups)
    return scores.restrict(found, here, len(scope.rows))


def _slice_groups(values: list[str | None]) -> tuple[Ints, int] | None:
    """Slice of each sample; samples without one form no slice of their own, so there is no worst slice then."""
    names = sorted({value for value in values if value is not None})
    if len(names) < 2 or None in values:
        return None
    return np.array([names.index(str(value)) for value in values]), len(names)


def _task_results(task: Task, resamples: Resamples) -> dict[str, Any]:
    own = statistics.Resamples(resamples.counts[:, task.rows], resamples.confidence)
    return {
        "classes": task.classes,
        "templates": task.spec.templates,
        "samples": len(task.rows),
        "left_out": resamples.counts.shape[1] - len(task.rows),
        "models": {
            name: {
                "confusion": zero_shot.confusion_matrix(task.labels, p.predicted, len(task.classes)).tolist(),
                "per_class": scores.per_class(p, task.labels, task.classes, own),
            }
            for name, p in task.predictions.items()
        },
    }


def _resamples(num_samples: int, config: Evaluate) -> Resamples:
    return statistics.draw_resamples(
        num_samples, resamples=config.bootstrap, confidence=config.confidence, seed=config.seed
    )
