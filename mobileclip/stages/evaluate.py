"""evaluate: score the student and its control on pictures neither has seen, with intervals, and write the report."""

import json
import time
from functools import partial
from typing import Any

import mobileclip
from mobileclip import manifest, storage
from mobileclip.config import Evaluate
from mobileclip.evaluation import cost
from mobileclip.evaluation import optional_scores as extras
from mobileclip.evaluation.assess import Assessment, assess, metrics, results
from mobileclip.evaluation.features import embed_split
from mobileclip.evaluation.sample_table import sample_table
from mobileclip.evaluation.scores import CONTROL, STUDENT
from mobileclip.manifest import Manifest
from mobileclip.models import zoo
from mobileclip.reports import data as report_data
from mobileclip.reports import examples as exhibits
from mobileclip.reports import plots
from mobileclip.reports.page import Report, render
from mobileclip.tracking.protocol import Tracker

HISTORY = "history.jsonl"


def run(config: Evaluate, *, out: str, tracker: Tracker, data: str, student: str) -> dict[str, float]:
    """Evaluate `student/student` and, where it is there, `student/control`.

    Writes `results.json` (all numbers), `samples.jsonl` (what each model did on each sample), `figures/*.png`,
    `report.html` and `timings.json`.

    Args:
        config: The `evaluate` section.
        out: Output folder or URI.
        tracker: Gets the report and the figures.
        data: Dataset with the split to evaluate on; its views and caption columns are shown in the report.
        student: Output folder of distill.

    Returns:
        Flat metrics: `MODEL/METRIC` with `/low` and `/high`, `delta/METRIC`, `chance/METRIC`, `majority/METRIC`, and
        the same below `slice/VALUE/`; `cost/MODEL/TOWER/parameters` and `/macs`. Shares are 0 to 1, ranks start at 1.

    Raises:
        DataError: The split is empty, there is no student, or samples lack a field the section names.
        ConfigError: `headline` is no metric of this evaluation.
        IntegrityError: A model gives values that are not finite.
    """
    started = time.perf_counter()
    content = manifest.read(data)
    config = config.model_copy(update={"split": content.held_out(config.split)})
    models = _load(student)
    embedded = embed_split(models, data, content, split=config.split, batch_size=config.batch_size)
    embedding_seconds = time.perf_counter() - started
    setting = extras.Setting(models, data, content, embedded, config)
    found = assess(models, embedded, config, further=partial(extras.measure, setting))
    costs = {name: cost.describe(clip) for name, clip in models.items()}
    numbers = {**results(found, config), "cost": costs}
    history = _history(student)
    _write(out, "results.json", _json(numbers))
    _write(out, "samples.jsonl", sample_table(found))
    for name, data_bytes in plots.draw(numbers, history).items():
        tracker.log_file(_write(out, f"figures/{name}.png", data_bytes), folder="figures")
    report = _report(config, found, numbers, models, data, content, history)
    tracker.log_file(_write(out, "report.html", render(report).encode()))
    timings = {
        "embedding_seconds": round(embedding_seconds, 3),
        "seconds": round(time.perf_counter() - started, 3),
        "samples": len(embedded.uids),
        "peak_memory_mb": cost.peak_memory(models[STUDENT]),
    }
    _write(out, "timings.json", _json(timings))
    return {**metrics(found), **_flat_costs(costs)}


def _load(student: str) -> dict[str, zoo.Clip]:
    models = {STUDENT: zoo.load(f"trained:{STUDENT}", trained=student)}
    if storage.exists(storage.join(student, CONTROL, zoo.CONFIG_FILE)):
        models[CONTROL] = zoo.load(f"trained:{CONTROL}", trained=student)
    return models


def _flat_costs(costs: dict[str, dict[str, dict[str, int]]]) -> dict[str, float]:
    return {
        f"cost/{name}/{tower}/{what}": float(value)
        for name, towers in costs.items()
        for tower, facts in towers.items()
        for what, value in facts.items()
    }


def _history(student: str) -> list[dict[str, Any]]:
    uri = storage.join(student, HISTORY)
    if not storage.exists(uri):
        return []
    return [json.loads(line) for line in storage.read_bytes(uri).decode().splitlines()]


def _report(
    config: Evaluate,
    found: Assessment,
    numbers: dict[str, Any],
    models: dict[str, zoo.Clip],
    data: str,
    content: Manifest,
    history: list[dict[str, Any]],
) -> Report:
    preprocess = models[STUDENT].preprocess
    text_queries, picture_queries = exhibits.retrieval_examples(
        found, data=data, content=content, split=config.split, count=config.gallery, seed=config.seed
    )
    return Report(
        results=numbers,
        models={name: _facts(clip) for name, clip in models.items()},
        dataset=report_data.describe(content),
        config=config.model_dump(mode="json"),
        version=mobileclip.__version__,
        history=history,
        text_queries=text_queries,
        picture_queries=picture_queries,
        sheets=exhibits.contact_sheet(
            data, content, size=preprocess.size, interpolation=preprocess.interpolation, seed=config.seed
        ),
        captions=exhibits.caption_examples(data, content, seed=config.seed),
    )


def _facts(clip: zoo.Clip) -> dict[str, Any]:
    return {
        "architecture": str(clip.card.get("model", clip.name)),
        "parameters": sum(parameter.numel() for parameter in clip.model.parameters()),
        "sha256": clip.sha256,
        "license": clip.license,
        "card": clip.card,
    }


def _write(out: str, name: str, data: bytes) -> str:
    uri = storage.join(out, name)
    storage.write_bytes(uri, data)
    return str(storage.local_copy(uri))


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
