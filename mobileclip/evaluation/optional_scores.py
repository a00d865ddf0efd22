"""What the section may ask for beside retrieval and prompts: compositions, probes, corruptions, resolutions."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from mobileclip.config import Evaluate
from mobileclip.errors import ConfigError, DataError
from mobileclip.evaluation import probes, scores, statistics, zero_shot
from mobileclip.evaluation.assess import Retrieval, Task
from mobileclip.evaluation.corruptions import Pixels, corrupt
from mobileclip.evaluation.features import Change, EvaluationSet, Features, embed_split, text_features
from mobileclip.evaluation.retrieval import rank_pairs
from mobileclip.evaluation.scores import Measure
from mobileclip.evaluation.statistics import Floats, Ints
from mobileclip.manifest import Manifest
from mobileclip.models.zoo import Clip

Measures = dict[str, dict[str, Measure]]
"""By model and metric, on all samples."""


@dataclass(frozen=True)
class Setting:
    """Where the evaluation runs.

    Attributes:
        models: Models by name.
        data: Dataset folder or URI.
        content: Its manifest.
        embedded: The evaluation split as it is.
        config: The `evaluate` section.
    """

    models: Mapping[str, Clip]
    data: str
    content: Manifest
    embedded: EvaluationSet
    config: Evaluate


def measure(setting: Setting, retrieval: Retrieval, tasks: list[Task]) -> Measures:
    """Everything further that the section asks for; nothing by default.

    Args:
        setting: Where it runs.
        retrieval: The solved retrieval task.
        tasks: The solved zero-shot tasks.

    Raises:
        DataError: A field is missing, the probe split is empty, or a model does not take a resolution.
        ConfigError: The headline metric cannot be measured again.
    """
    config, found = setting.config, {name: dict[str, Measure]() for name in setting.models}
    if config.negative_field:
        _merge(found, _compositions(setting))
    if config.linear_probe or config.knn:
        _merge(found, _probes(setting, tasks))
    changed: dict[str, Measures] = {}
    for kind in config.corruptions:
        for severity in config.severities:
            name = f"robustness/{kind}/s{severity}"
            changed[name] = _again(setting, retrieval, tasks, name, change=partial(_corrupted, config, kind, severity))
    if changed:
        changed["robustness/mean/all"] = {
            model: {"robustness/mean/all": mean([part[model][name] for name, part in changed.items()])}
            for model in setting.models
        }
    for size in config.resolutions:
        name = f"resolution/{size}/headline"
        changed[name] = _again(setting, retrieval, tasks, name, size=size)
    for part in changed.values():
        _merge(found, part)
    return found


def mean(measures: list[Measure]) -> Measure:
    """Plain mean of several metrics of the same samples."""
    return Measure(
        statistics.mean_of(*[m.statistic for m in measures]),
        np.concatenate([m.outcomes for m in measures], axis=1),
        float(np.mean([m.chance for m in measures])),
        float(np.mean([m.majority for m in measures])),
        measures[0].higher_is_better,
    )


def _merge(found: Measures, part: Measures) -> None:
    for name, measures in part.items():
        found[name] |= measures


def _corrupted(config: Evaluate, kind: str, severity: int, pixels: Pixels, uid: str) -> Pixels:
    return corrupt(pixels, kind, severity=severity, seed=f"{config.seed}:{uid}")


def _again(
    setting: Setting,
    retrieval: Retrieval,
    tasks: list[Task],
    name: str,
    *,
    change: Change | None = None,
    size: int = 0,
) -> Measures:
    """The headline metric on changed pictures."""
    config = setting.config
    changed = embed_split(
        setting.models, setting.data, setting.content, split=config.split, batch_size=config.batch_size,
        change=change, size=size,
    )  # fmt: skip
    return {
        model: {name: _headline(setting, model, features, retrieval, tasks)}
        for model, features in changed.image_features.items()
    }


def _headline(setting: Setting, model: str, images: Features, retrieval: Retrieval, tasks: list[Task]) -> Measure:
    headline = setting.config.headline
    if headline.startswith("retrieval/"):
        ranks = rank_pairs(images, retrieval.text_features[model], retrieval.gallery)
        return _named(scores.retrieval_measures(ranks, retrieval.gallery), headline)
    task = next((task for task in tasks if headline.startswith(f"zero_shot/{task.spec.field}/")), None)
    if task is None:
        return _named({}, headline)
    predictions = zero_shot.classify(
        images[task.rows], task.class_features[model], task.labels, logit_scale=setting.models[model].logit_scale
    )
    found = scores.zero_shot_measures(task.spec.field, predictions, task.labels, len(task.classes))
    return _named(scores.restrict(found, task.rows, len(images)), headline)


def _named(measures: Mapping[str, Measure], name: str) -> Measure:
    if name not in measures:
        raise ConfigError(
            f"evaluate.headline: got '{name}', which corruptions and resolutions do not measure, want another metric."
        )
    return measures[name]


def _compositions(setting: Setting) -> Measures:
    """Share of pictures closer to their first caption than to every wrong one (SugarCrepe, arXiv 2306.14610)."""
    config, embedded = setting.config, setting.embedded
    rows, owners = list[int](), list[int]()
    right, wrong = list[str](), list[str]()
    for row, fields in enumerate(embedded.metadata):
        value = fields.get(config.negative_field) or []
        negatives = [value] if isinstance(value, str) else [str(text) for text in value]
        if negatives:
            owners += [len(rows)] * len(negatives)
            rows.append(row)
            right.append(str(fields["captions"][0]))
            wrong += negatives
    if not rows:
        raise DataError(f"evaluate.negative_field: got '{config.negative_field}', no sample has such captions.")
    places, owner = np.array(rows), np.array(owners)
    counts = np.bincount(owner)
    found: Measures = {}
    for name, clip in setting.models.items():
        images = embedded.image_features[name][places]
        best = _cosines(images, text_features(name, clip, right, batch_size=config.batch_size))
        others = _cosines(images[owner], text_features(name, clip, wrong, batch_size=config.batch_size))
        highest = np.full(len(rows), -np.inf)
        np.maximum.at(highest, owner, others)
        won = (best > highest).astype(np.float64)
        chance = float((1 / (1 + counts)).mean())
        one = {f"composition/{config.negative_field}/accuracy": _plain(won, chance, np.nan)}
        found[name] = scores.restrict(one, places, len(embedded.uids))
    return found


def _cosines(images: Features, texts: Features) -> Floats:
    # To six decimals and with ties against the model, as everywhere here: the same text twice must not win.
    return np.round((images * texts).sum(axis=1), 6).astype(np.float64)


def _probes(setting: Setting, tasks: list[Task]) -> Measures:
    config = setting.config
    if config.probe_split == config.split:
        raise ConfigError(f"evaluate.probe_split: got '{config.split}', which is evaluated; want another split.")
    known = embed_split(
        setting.models, setting.data, setting.content, split=config.probe_split, batch_size=config.batch_size
    )
    found: Measures = {name: {} for name in setting.models}
    for task in tasks:
        rows, labels = _known_labels(known, task)
        for name in setting.models:
            train = known.image_features[name][rows]
            test = setting.embedded.image_features[name][task.rows]
            measures = _probe_measures(config, task, train, labels, test)
            found[name] |= scores.restrict(measures, task.rows, len(setting.embedded.uids))
    return found


def _known_labels(known: EvaluationSet, task: Task) -> tuple[Ints, Ints]:
    """Samples of the probe split whose class the task has, and their classes."""
    place = {name: number for number, name in enumerate(task.classes)}
    values = [fields.get(task.spec.field) for fields in known.metadata]
    names = [str(value).lower() if isinstance(value, bool) else str(value) for value in values]
    rows = [row for row, name in enumerate(names) if name in place]
    if len({names[row] for row in rows}) < 2:
        raise DataError(f"evaluate.probe_split: has fewer than 2 classes of '{task.spec.field}', want more.")
    return np.array(rows), np.array([place[names[row]] for row in rows])


def _probe_measures(config: Evaluate, task: Task, train: Features, labels: Ints, test: Features) -> dict[str, Measure]:
    count, found = len(task.classes), {}
    chance, majority = zero_shot.chance_share(count), zero_shot.majority_share(task.labels)
    if config.linear_probe:
        logits = probes.linear_probe(train, labels, test, num_classes=count, l2=config.linear_probe_l2)
        found["linear_probe"] = logits
    if config.knn:
        found["knn"] = probes.knn(train, labels, test, num_classes=count, neighbors=config.knn)
    return {
        f"{kind}/{task.spec.field}/top1": _plain(probes.hits(values, task.labels), chance, majority)
        for kind, values in found.items()
    }


def _plain(hits: Floats, chance: float, majority: float) -> Measure:
    return Measure(statistics.ratio(hits), hits[:, None], chance, majority)
