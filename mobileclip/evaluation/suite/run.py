"""Run a model over the registry of evaluation tasks and write the field's result file.

`results.jsonl` has one row per task, `{"key", "dataset", "metrics": {..., "main_metric"}}`, as the DataComp tools read
and write it. `suite.json` says what the rows do not: intervals of every metric, absent and incomplete tasks, and
whether the average may be compared with published ones. `pairs.safetensors` holds what the model did on each sample
and the main metric in each resample: by it `mobileclip compare` pairs two models on the same samples.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from mobileclip import storage
from mobileclip.data.progress import progress_bar
from mobileclip.errors import ConfigError, DataError
from mobileclip.evaluation import statistics
from mobileclip.evaluation.scores import rounded
from mobileclip.evaluation.suite import data as suite_data
from mobileclip.evaluation.suite import solve as suite_solve
from mobileclip.evaluation.suite import tasks as registry
from mobileclip.evaluation.suite.scores import Scored
from mobileclip.evaluation.suite.tasks import Registry, Task
from mobileclip.models import zoo
from mobileclip.models.zoo import Clip

ROWS, SUMMARY, PAIRS = "results.jsonl", "suite.json", "pairs.safetensors"
CLASSES = "class_embeddings"
"""Folder of the class embeddings below the output, see `class_cache`."""


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
        ConfigError: A number is out of range.
        DataError: The folder is missing, or data is absent and required, or malformed.
        IntegrityError: The model gives values that are not finite.
    """
    if batch_size < 1:
        raise ConfigError(f"suite: --batch-size got {batch_size}, want 1 or more.")
    if not 0 < confidence < 1:
        raise ConfigError(f"suite: --confidence got {confidence:g}, want a share between 0 and 1.")
    if not storage.is_s3(data) and not Path(data).is_dir():
        raise DataError(f"suite: --data got '{data}', want a folder with the tasks' folders.")
    absent = [task for task in tasks.tasks if not suite_data.is_there(task, data)]
    if require and absent:
        names = ", ".join(task.key for task in absent)
        raise DataError(f"suite: no data for {len(absent)} of {len(tasks.tasks)} tasks in '{data}': {names}.")
    present = [suite_data.open_task(task, data) for task in tasks.tasks if task not in absent]
    rows: list[dict[str, Any]] = []
    entries: list[dict[str, Any]] = []
    draws: dict[str, statistics.Floats] = {}
    pairs: dict[str, NDArray[Any]] = {}
    cache = storage.join(out, CLASSES)
    for source in progress_bar(present, desc="suite", unit="task"):
        key = source.task.key
        scored, asked = suite_solve.score(clip, source, batch_size=batch_size, cache=cache)
        drawn = statistics.draw_resamples(
            scored.samples, resamples=tasks.bootstrap, confidence=confidence, seed=seed_of(key, seed)
        )
        found = statistics.estimates(scored.statistics, drawn)
        rows.append(as_row(source.task, scored))
        entries.append(_entry(source.task, scored, found, asked))
        if source.task.main_metric in found:
            draws[key] = found[source.task.main_metric].draws
            pairs |= {f"{key}/draws": draws[key], f"{key}/outcomes": scored.outcomes.astype(np.float32)}
        storage.write_bytes(storage.join(out, ROWS), as_jsonl(rows))  # a long run shows what it has
    summary = {
        "model": clip.card.get("model", clip.name), "sha256": clip.sha256,
        "confidence": confidence, "resamples": tasks.bootstrap, "seed": seed,
        "average": _average(tasks, entries, draws, confidence), "tasks": entries,
        "absent": [{"key": t.key, "looked_at": t.folder, "source": t.source} for t in absent],
    }  # fmt: skip
    storage.write_bytes(storage.join(out, ROWS), as_jsonl(rows))
    storage.write_bytes(storage.join(out, PAIRS), save(pairs))
    storage.write_bytes(storage.join(out, SUMMARY), (json.dumps(summary, indent=1, sort_keys=True) + "\n").encode())
    return summary


def seed_of(key: str, seed: int) -> int:
    """Seed of a task's bootstrap: the same whichever other tasks are scored beside it."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8])


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


def as_row(task: Task, scored: Scored) -> dict[str, Any]:
    """A row of the field's result file."""
    return {"key": task.key, "dataset": task.name, "metrics": scored.metrics}


def as_jsonl(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The field's result file."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _entry(task: Task, scored: Scored, found: Mapping[str, statistics.Estimate], asked: str) -> dict[str, Any]:
    intervals = {
        name: {"value": rounded(e.value), "low": rounded(e.low), "high": rounded(e.high)} for name, e in found.items()
    }
    main = intervals.get(task.main_metric, {"value": None, "low": None, "high": None})
    return {
        "key": task.key, "metric": task.main_metric, **main, "samples": scored.samples, "asked": asked,
        "counts": task.average,
        "complete": not task.samples or scored.samples == task.samples, "metrics": intervals,
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
    low, high = statistics.percentiles(together, confidence)
    value = float(np.mean([entry["value"] for entry in usable]))
    return summary | {"value": rounded(value), "low": rounded(low), "high": rounded(high)}
