"""Whether one student is better than another: on the same samples, or over several training seeds.

One against one, the models are paired sample by sample with a bootstrap: that speaks of these two sets of weights.
Several against several, each side is a recipe trained with several seeds, paired in the order given; Student's t
interval of the differences speaks of the recipes. Both read what `evaluate` or `mobileclip suite` left, and load no
model.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from safetensors import SafetensorError
from safetensors.numpy import load

from mobileclip import storage
from mobileclip.errors import ConfigError, DataError
from mobileclip.evaluation import paired as comparison
from mobileclip.evaluation import statistics
from mobileclip.evaluation.scores import rounded

AVERAGE = "average"
_RESULTS, _SAMPLES, _SUMMARY, _PAIRS = "results.json", "samples.jsonl", "suite.json", "pairs.safetensors"
_STUDENT = "student"


@dataclass(frozen=True)
class Row:
    """One metric.

    Attributes:
        metric: Its name, or a task of the suite.
        ours: Value of the first side; the mean over its seeds.
        theirs: Value of the second.
        difference: Ours minus theirs.
        low: Lower end of its interval; none where nothing pairs them.
        high: Upper end.
        verdict: `better`, `worse`, `no evidence`, or `not paired`.
    """

    metric: str
    ours: float
    theirs: float
    difference: float
    low: float | None
    high: float | None
    verdict: str


@dataclass(frozen=True)
class Scored:
    """What a folder says about one model.

    Attributes:
        folder: Where.
        kind: The file that says it: `results.json` of evaluate, `suite.json` of the suite.
        values: By metric or task.
        less: Metrics of which less is better.
        facts: The file.
        samples: Evaluate's table of samples.
        pairs: The suite's draws and outcomes.
    """

    folder: str
    kind: str
    values: dict[str, float]
    less: frozenset[str]
    facts: Mapping[str, Any]
    samples: comparison.Rows = ()
    pairs: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def compare(ours: Sequence[str], theirs: Sequence[str], *, confidence: float = 0.95) -> list[Row]:
    """Every metric that all folders have.

    Args:
        ours: Output folders of evaluate, or of the suite: one, or one per training seed.
        theirs: As many folders of the other side, seed by seed in the same order.
        confidence: Coverage of the intervals, inside (0, 1).

    Raises:
        ConfigError: The sides differ in number.
        DataError: A folder holds no scores, the folders are of two kinds, or were made on other samples.
    """
    if len(ours) != len(theirs) or not ours:
        raise ConfigError(f"compare: got {len(ours)} folders against {len(theirs)}, want as many, seed by seed.")
    if not 0 < confidence < 1:
        raise ConfigError(f"compare: --confidence got {confidence:g}, want a share between 0 and 1.")
    sides = [[_read(folder) for folder in folders] for folders in (ours, theirs)]
    everyone = [*sides[0], *sides[1]]
    first = everyone[0]
    for other in everyone[1:]:
        _same_question(first, other)
    metrics = [name for name in first.values if all(name in scored.values for scored in everyone)]
    if len(ours) > 1:
        return [_over_seeds(name, sides, confidence) for name in metrics]
    pair = _pair_samples if first.kind == _RESULTS else _pair_draws
    rows = [pair(name, sides[0][0], sides[1][0], confidence) for name in metrics]
    counted = [task["key"] for task in first.facts.get("tasks", []) if task["counts"] and task["key"] in metrics]
    return rows + ([_pair_average(sides[0][0], sides[1][0], counted, confidence)] if counted else [])


def render(rows: Sequence[Row], *, seeds: int) -> Table:
    """The rows for the terminal."""
    how = "paired bootstrap over samples" if seeds == 1 else f"{seeds} seeds each, Student's t"
    table = Table("metric", "ours", "theirs", "difference", "interval", "verdict", box=box.SIMPLE_HEAD, caption=how)
    colors = {"better": "green", "worse": "red"}
    for row in rows:
        span = "–" if row.low is None or row.high is None else f"{row.low:+.4f} to {row.high:+.4f}"
        verdict = f"[{colors[row.verdict]}]{row.verdict}[/]" if row.verdict in colors else row.verdict
        table.add_row(row.metric, f"{row.ours:.4f}", f"{row.theirs:.4f}", f"{row.difference:+.4f}", span, verdict)
    return table


def as_json(rows: Sequence[Row], *, ours: Sequence[str], theirs: Sequence[str], confidence: float) -> bytes:
    """The rows for programs, with the digest of what each folder said."""
    sides = {"ours": ours, "theirs": theirs}
    said = {name: [_digest(folder) for folder in folders] for name, folders in sides.items()}
    facts = {**said, "confidence": confidence, "rows": [asdict(row) for row in rows]}
    return (json.dumps(facts, indent=1, sort_keys=True) + "\n").encode()


def _digest(folder: str) -> str:
    kind = _RESULTS if storage.exists(storage.join(folder, _RESULTS)) else _SUMMARY
    return hashlib.sha256(storage.read_bytes(storage.join(folder, kind))).hexdigest()


def _read(folder: str) -> Scored:
    for kind, read in ((_RESULTS, _read_evaluation), (_SUMMARY, _read_suite)):
        uri = storage.join(folder, kind)
        if storage.exists(uri):
            try:
                return read(folder, json.loads(storage.read_bytes(uri)))
            except (KeyError, ValueError, TypeError, SafetensorError) as error:
                raise DataError(f"compare: '{uri}' is damaged or of another version ({error!r}).") from None
    raise DataError(f"compare: no {_RESULTS} or {_SUMMARY} in '{folder}', want an output of evaluate or of the suite.")


def _read_evaluation(folder: str, facts: Mapping[str, Any]) -> Scored:
    values: dict[str, float] = {}
    less = set[str]()
    for scope in facts["scopes"]:
        prefix = f"{scope['name']}/" if scope["name"] else ""
        for metric, row in scope["metrics"].items():
            name = f"{prefix}{_STUDENT}/{metric}"
            if row[_STUDENT]["value"] is not None:
                values[name] = float(row[_STUDENT]["value"])
                less |= set() if row["higher_is_better"] else {name}
    rows = comparison.read_rows(storage.read_bytes(storage.join(folder, _SAMPLES)))
    return Scored(folder, _RESULTS, values, frozenset(less), facts, samples=rows)


def _read_suite(folder: str, facts: Mapping[str, Any]) -> Scored:
    values = {str(task["key"]): float(task["value"]) for task in facts["tasks"] if task["value"] is not None}
    pairs = load(storage.read_bytes(storage.join(folder, _PAIRS)))
    return Scored(folder, _SUMMARY, values, frozenset(), facts, pairs=pairs)


def _same_question(first: Scored, other: Scored) -> None:
    if first.kind != other.kind:
        raise DataError(f"compare: '{other.folder}' holds {other.kind}, '{first.folder}' {first.kind}, want one kind.")
    if first.kind == _RESULTS:
        same = comparison.same_samples(first.samples, other.samples)
    else:
        asked, theirs = ({task["key"]: task["asked"] for task in scored.facts["tasks"]} for scored in (first, other))
        common = asked.keys() & theirs.keys()
        same = bool(common) and all(asked[key] == theirs[key] for key in common)
    if not same:
        raise DataError(f"compare: '{other.folder}' was scored on other samples than '{first.folder}', want the same.")


def _over_seeds(name: str, sides: Sequence[Sequence[Scored]], confidence: float) -> Row:
    ours, theirs = ([scored.values[name] for scored in side] for side in sides)
    found = statistics.over_seeds([a - b for a, b in zip(ours, theirs, strict=True)], confidence=confidence)
    verdict: str = "no evidence"
    if found.low > 0 or found.high < 0:
        verdict = "better" if (found.low > 0) != (name in sides[0][0].less) else "worse"
    return _row(name, float(np.mean(ours)), float(np.mean(theirs)), found.mean, found.low, found.high, verdict)


def _pair_samples(name: str, ours: Scored, theirs: Scored, confidence: float) -> Row:
    a, b = ours.values[name], theirs.values[name]
    found = comparison.paired(
        name, ours.samples, theirs.samples, confidence=confidence,
        resamples=int(ours.facts["resamples"]), seed=int(ours.facts["seed"]),
    )  # fmt: skip
    if found is None:
        return _row(name, a, b, a - b, None, None, "not paired")
    return _row(name, a, b, found.delta, found.low, found.high, found.verdict)


def _pair_draws(name: str, ours: Scored, theirs: Scored, confidence: float) -> Row:
    a, b = ours.values[name], theirs.values[name]
    if not _same_draws(ours, theirs):
        return _row(name, a, b, a - b, None, None, "not paired")
    outcomes = [side.pairs[f"{name}/outcomes"] for side in (ours, theirs)]
    differing = int((outcomes[0] != outcomes[1]).any(axis=1).sum())
    estimates = [
        statistics.Estimate(side.values[name], np.nan, np.nan, side.pairs[f"{name}/draws"]) for side in (ours, theirs)
    ]
    found = statistics.compare(estimates[0], estimates[1], differing=differing, confidence=confidence)
    return _row(name, a, b, found.delta, found.low, found.high, found.verdict)


def _pair_average(ours: Scored, theirs: Scored, tasks: Sequence[str], confidence: float) -> Row:
    """Mean over the tasks that both have and that count; each task has resamples of its own."""
    name = f"{AVERAGE} of {len(tasks)} tasks"
    a, b = (float(np.mean([side.values[task] for task in tasks])) for side in (ours, theirs))
    if not _same_draws(ours, theirs):
        return _row(name, a, b, a - b, None, None, "not paired")
    parts = [ours.pairs[f"{task}/draws"] - theirs.pairs[f"{task}/draws"] for task in tasks]
    low, high = statistics.percentiles(np.mean(parts, axis=0), confidence)
    verdict = "better" if low > 0 else "worse" if high < 0 else "no evidence"
    return _row(name, a, b, a - b, low, high, verdict)


def _same_draws(ours: Scored, theirs: Scored) -> bool:
    return all(ours.facts[key] == theirs.facts[key] for key in ("seed", "resamples"))


def _row(
    metric: str, ours: float, theirs: float, difference: float, low: float | None, high: float | None, verdict: str
) -> Row:
    ends = [None if end is None else rounded(end) for end in (low, high)]
    return Row(metric, round(ours, 6), round(theirs, 6), round(difference, 6) + 0.0, ends[0], ends[1], verdict)
