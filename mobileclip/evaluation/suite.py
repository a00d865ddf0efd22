"""Run a model over the registry of evaluation tasks and write the field's result file.

`results.jsonl` has one row per task, `{"key", "dataset", "metrics": {..., "main_metric"}}`, as the DataComp tools read
and write it. `suite.json` says what the rows do not: intervals, absent and incomplete tasks, and whether the average
may be compared with published ones.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from mobileclip import storage
from mobileclip.data.images import decode, resize
from mobileclip.errors import ConfigError, DataError
from mobileclip.evaluation import registry, statistics, suite_data, suite_scores, zero_shot
from mobileclip.evaluation.features import Features, text_features
from mobileclip.evaluation.registry import Registry, Task
from mobileclip.evaluation.scores import rounded
from mobileclip.evaluation.suite_data import Item, Source
from mobileclip.evaluation.suite_scores import Scored
from mobileclip.models import zoo
from mobileclip.models.embed import embed_pixels
from mobileclip.models.zoo import Clip

ROWS, SUMMARY = "results.jsonl", "suite.json"
_NAME = "model"


def run(
    clip: Clip, tasks: Registry, *, data: str, out: str, require: bool, batch_size: int, seed: int, confidence: float
) -> dict[str, Any]:
    """Score every task whose data is there.

    Args:
        clip: The model.
        tasks: The registry, or a part of it.
        data: Folder or URI below which the tasks' folders lie.
        out: Output folder or URI.
        require: Whether absent data is an error instead of an entry of the summary.
        batch_size: Pictures per forward pass.
        seed: Seed of the bootstrap.
        confidence: Coverage of the intervals, inside (0, 1).

    Returns:
        The summary, as `suite.json` has it.

    Raises:
        DataError: Data is absent and required, or malformed.
        IntegrityError: The model gives values that are not finite.
    """
    absent = [task for task in tasks.tasks if not suite_data.is_there(task, data)]
    if require and absent:
        names = ", ".join(task.key for task in absent)
        raise DataError(f"suite: no data for {len(absent)} of {len(tasks.tasks)} tasks in '{data}': {names}.")
    present = [suite_data.open_task(task, data) for task in tasks.tasks if task not in absent]
    rows: list[dict[str, Any]] = []
    entries: list[dict[str, Any]] = []
    draws: dict[str, statistics.Floats] = {}
    for source in tqdm(present, desc="suite", unit="task", disable=None):
        scored = score(clip, source, batch_size=batch_size)
        drawn = statistics.draw_resamples(
            scored.samples, resamples=tasks.bootstrap, confidence=confidence, seed=seed + len(rows)
        )
        estimate = suite_scores.interval(scored, drawn)
        rows.append(as_row(source.task, scored))
        entries.append(_entry(source.task, scored, estimate))
        draws[source.task.key] = estimate.draws
        storage.write_bytes(storage.join(out, ROWS), as_jsonl(rows))  # a long run shows what it has
    summary = {
        "model": clip.card.get("model", clip.name), "sha256": clip.sha256,
        "confidence": confidence, "resamples": tasks.bootstrap, "seed": seed,
        "average": _average(tasks, entries, draws, confidence), "tasks": entries,
        "absent": [{"key": t.key, "looked_at": t.folder, "source": t.source} for t in absent],
    }  # fmt: skip
    storage.write_bytes(storage.join(out, ROWS), as_jsonl(rows))
    storage.write_bytes(storage.join(out, SUMMARY), (json.dumps(summary, indent=1, sort_keys=True) + "\n").encode())
    return summary


def load(model: str) -> Clip:
    """A model by what a user types: output of distill, a checkpoint folder, or `NAME:TAG` of published weights.

    Raises:
        ConfigError: It is none of these.
    """
    for folder, name in ((storage.join(model, "student"), "trained:student"), (model, "trained")):
        if storage.exists(storage.join(folder, zoo.CONFIG_FILE)):
            return zoo.load(name, trained=model)
    name, _, tag = model.partition(":")
    if not tag or "/" in name:
        raise ConfigError(f"suite: --model got '{model}', want the output of distill, a checkpoint folder or NAME:TAG.")
    return zoo.load(name, pretrained=tag)


def select(tasks: Registry, keys: Sequence[str]) -> Registry:
    """The part of a registry with these keys; all of it for none.

    Raises:
        ConfigError: A key is in no task.
    """
    known = [task.key for task in tasks.tasks]
    unknown = [key for key in keys if key not in known]
    if unknown:
        raise ConfigError(f"suite: --tasks got '{unknown[0]}', want keys of the registry: {', '.join(known)}.")
    return tasks.model_copy(update={"tasks": [task for task in tasks.tasks if not keys or task.key in keys]})


def average(rows: Sequence[Mapping[str, Any]], tasks: Registry | None = None) -> float:
    """The suite's average: plain mean of `main_metric` over the tasks that count, and over no other row.

    Args:
        rows: Rows of a result file; further ones (SugarCrepe, long captions, tasks without a main metric) are ignored.
        tasks: The registry; none = the built-in one, whose average is the published "38 datasets".

    Raises:
        DataError: A task that counts has no row, two rows, or no main metric.
    """
    wanted = [task.key for task in (tasks or registry.read()).tasks if task.average]
    values = []
    for key in wanted:
        found = [row["metrics"].get("main_metric") for row in rows if row["key"] == key]
        if len(found) != 1 or found[0] is None:
            raise DataError(f"suite: {key} has {len(found)} rows with main_metric {found}, want one number.")
        values.append(float(found[0]))
    return float(np.mean(values))


def score(clip: Clip, source: Source, *, batch_size: int) -> Scored:
    """One task's numbers."""
    solve = {
        "classification": _classification, "retrieval": _retrieval, "association": _association, "choice": _choice
    }[source.task.kind]  # fmt: skip
    return solve(clip, source, batch_size)


def as_row(task: Task, scored: Scored) -> dict[str, Any]:
    """A row of the field's result file."""
    return {"key": task.key, "dataset": task.name, "metrics": scored.metrics}


def as_jsonl(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The field's result file."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _entry(task: Task, scored: Scored, estimate: statistics.Estimate) -> dict[str, Any]:
    return {
        "key": task.key, "metric": task.main_metric, "value": rounded(estimate.value), "low": rounded(estimate.low),
        "high": rounded(estimate.high), "samples": scored.samples,
        "complete": not task.samples or scored.samples == task.samples,
    }  # fmt: skip


def _average(
    tasks: Registry, entries: Sequence[Mapping[str, Any]], draws: Mapping[str, statistics.Floats], confidence: float
) -> dict[str, Any]:
    """Mean over the tasks that count and are there; `comparable` where these are all of the suite's, and whole."""
    wanted = {task.key for task in tasks.tasks if task.average}
    usable = [entry for entry in entries if entry["key"] in wanted and entry["value"] is not None]
    suite = {task.key for task in registry.read().tasks if task.average}
    summary = {
        "tasks": len(usable), "of": len(wanted),
        "comparable": {e["key"] for e in usable} == suite and all(e["complete"] for e in usable),
    }  # fmt: skip
    if not usable:
        return summary | {"value": None, "low": None, "high": None}
    # Tasks are drawn apart, so their resamples are independent.
    together = np.mean([draws[entry["key"]] for entry in usable], axis=0)
    together = together[np.isfinite(together)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(together, [tail, 1 - tail]) if len(together) else (np.nan, np.nan)
    value = float(np.mean([entry["value"] for entry in usable]))
    return summary | {"value": rounded(value), "low": rounded(low), "high": rounded(high)}


def _classification(clip: Clip, source: Source, batch_size: int) -> Scored:
    images, kept = _embed(clip, source, batch_size)
    labels = np.array([item.label for item in kept])
    encode = zero_shot.class_embeddings(
        lambda texts: text_features(_NAME, clip, list(texts), batch_size=batch_size), source.classes, source.templates
    )
    predictions = zero_shot.classify(images, encode, labels, logit_scale=clip.logit_scale)
    groups = np.array([item.groups for item in kept])
    return suite_scores.classification(source.task, predictions, labels, len(source.classes), groups)


def _retrieval(clip: Clip, source: Source, batch_size: int) -> Scored:
    images, kept = _embed(clip, source, batch_size)
    texts = [text for item in kept for text in item.texts]
    owners = np.repeat(np.arange(len(kept)), [len(item.texts) for item in kept])
    if len(np.unique(owners)) != len(kept):
        raise DataError(f"suite: {source.task.key} has pictures without a caption, want one each.")
    features = text_features(_NAME, clip, texts, batch_size=batch_size)
    return suite_scores.retrieval(source.task, images, features, owners)


def _association(clip: Clip, source: Source, batch_size: int) -> Scored:
    images, kept = _embed(clip, source, batch_size)
    cues = text_features(_NAME, clip, [_cue_prompt(item.texts[0]) for item in kept], batch_size=batch_size)
    parts = np.split(images, np.cumsum([len(item.right) for item in kept])[:-1])
    scores = [suite_scores.scores_of(cue, part) for cue, part in zip(cues, parts, strict=True)]
    return suite_scores.association(source.task, scores, [item.right for item in kept])


def _choice(clip: Clip, source: Source, batch_size: int) -> Scored:
    images, kept = _embed(clip, source, batch_size)
    right, wrong = (
        text_features(_NAME, clip, [item.texts[place] for item in kept], batch_size=batch_size) for place in (0, 1)
    )
    return suite_scores.choice(source.task, images, right, wrong)


def _cue_prompt(cue: str) -> str:
    """The suite's prompt of a WinoGAViL cue: `A cue` or `An apple`, lower case."""
    word = cue.lower()
    return f"{'An' if word[:1] in set('aeiou') else 'A'} {word}"


def _embed(clip: Clip, source: Source, batch_size: int) -> tuple[Features, list[Item]]:
    """Embeddings of all pictures [pictures, dim], and the samples without theirs."""
    kept: list[Item] = []
    parts: list[torch.Tensor] = []
    pictures = _pictures(source, kept)
    pre = clip.preprocess
    bar = tqdm(pictures, desc=source.task.key, unit="image", leave=False, disable=None)
    stream = iter(bar)
    while batch := list(islice(stream, batch_size)):
        pixels = torch.stack([resize(decode(data), pre.size, pre.interpolation) for data in batch])
        parts.append(embed_pixels(clip, pixels, batch_size=batch_size))
    if not parts:
        raise DataError(f"suite: {source.task.key} has no sample in '{source.folder}'.")
    features = torch.cat(parts)
    if not torch.isfinite(features).all():
        raise DataError(f"suite: the model gives embeddings of {source.task.key} that are not finite.")
    return features.numpy(), kept


def _pictures(source: Source, kept: list[Item]) -> Iterator[bytes]:
    for item in source.items():
        kept.append(Item([], item.label, item.texts, item.groups, item.right))
        yield from item.images
