"""What components hand each other, and what they show in the Kubeflow UI.

Components exchange small JSON files, `{"uri": ..., "digest": ...}`: the data lie below the run's root, where stage X
writes `ROOT/X`, and the digest is the sha256 of `ROOT/X/record.json`. A reference whose data have since been replaced
is refused. Artifacts are duck-typed (`path`, `metadata`), so nothing here imports kfp.
"""

import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mobileclip import storage
from mobileclip.errors import DataError, IntegrityError
from mobileclip.kubeflow import sweep
from mobileclip.kubeflow.run import Done, check_groups
from mobileclip.lineage import record as records

_MAX_CLASSES = 60  # the UI draws the confusion matrix cell by cell
_MAX_METRICS = 200  # artifact metadata travel through the API on every call


def read(artifact: Any) -> str:
    """The URI that a reference artifact points at; empty for an absent one.

    Raises:
        IntegrityError: Something else lies there now.
    """
    return read_reference(artifact.path) if artifact is not None else ""


def read_reference(path: str | Path) -> str:
    """The URI of a reference file.

    Raises:
        DataError: There is no such file, or nothing is left where it points.
        IntegrityError: It is no reference, or something else lies there now.
    """
    try:
        reference = json.loads(storage.read_bytes(path))
        uri, digest = str(reference["uri"]), str(reference["digest"])
    except (ValueError, KeyError, TypeError):
        raise IntegrityError(f"{path}: no reference, want JSON with 'uri' and 'digest'.") from None
    found = _record_digest(uri)
    if found != digest:
        raise IntegrityError(
            f"{uri}: holds record {found[:12]}, this run made {digest[:12]}; another run wrote to the same root. "
            "Run again without cache, or give each run its own root."
        )
    return uri


def write_reference(path: str | Path, uri: str) -> dict[str, str]:
    """Write a reference to a finished stage's output.

    Returns:
        What was written: `uri` and `digest`.

    Raises:
        DataError: The stage is not finished there.
    """
    reference = {"uri": uri, "digest": _record_digest(uri)}
    _write_json(path, reference)
    return reference


def hand_over(done: Done, out: Any, metrics: Any) -> None:
    """Fill a stage's artifacts: the reference, and its numbers for the UI and the cache.

    Args:
        done: The stage.
        out: Dataset or Model artifact.
        metrics: Metrics artifact: the file gets every number, the metadata what fits on a screen.
    """
    out.metadata.update({**write_reference(out.path, done.uri), "stage": done.stage})
    # Without a file at its path the local runner takes a Metrics artifact for lost and never serves it from the cache.
    _write_json(metrics.path, done.metrics)
    metrics.metadata.update(headline(done.metrics))


def hand_over_earlier(stage: str, root: str, digest: str, out: Any) -> None:
    """Fill a reference artifact with what an earlier run left.

    Raises:
        DataError: The stage is not finished there.
        IntegrityError: It is another result than the run was submitted for.
    """
    reference = write_reference(out.path, storage.join(root, stage))
    if digest and reference["digest"] != digest:
        raise IntegrityError(
            f"{stage}: '{reference['uri']}' holds record {reference['digest'][:12]}, the run was submitted for "
            f"{digest[:12]}; it changed since."
        )
    out.metadata.update({**reference, "stage": stage})


def write_part(part: Any, group: str, uri: str) -> None:
    """Fill the artifact of one group, which names it and the stage's output folder."""
    described = {"group": group, "uri": uri}
    _write_json(part.path, described)
    part.metadata.update(described)


def count_parts(parts: Sequence[Any] | None) -> int:
    """The number of groups whose work is put together; 0 where the stage runs whole.

    Raises:
        ConfigError: Some groups are missing, there twice, or of another count.
    """
    if parts is None:
        return 0
    return check_groups([json.loads(storage.read_bytes(part.path))["group"] for part in parts])


def headline(metrics: Mapping[str, float]) -> dict[str, float]:
    """The numbers worth a row in the UI: finite, no interval ends, no slices, not too many."""
    kept = {
        name: value
        for name, value in metrics.items()
        if math.isfinite(value) and not name.endswith(("/low", "/high")) and not name.startswith("slice/")
    }
    return dict(list(kept.items())[:_MAX_METRICS])


def show_confusion(done: Done, artifact: Any) -> None:
    """Fill a ClassificationMetrics artifact with the student's confusion matrix, of the first task that fits."""
    results = json.loads(storage.read_bytes(storage.join(done.uri, "results.json")))
    for field, task in results["classifications"].items():
        if len(task["classes"]) <= _MAX_CLASSES:
            artifact.log_confusion_matrix(task["classes"], task["models"]["student"]["confusion"])
            artifact.metadata["field"] = field
            break
    _write_json(artifact.path, dict(artifact.metadata))


def show_file(done: Done, name: str, artifact: Any) -> None:
    """Copy a page of a stage's output into an HTML or Markdown artifact."""
    storage.write_bytes(artifact.path, storage.read_bytes(storage.join(done.uri, name)))


def show_text(text: str, artifact: Any) -> None:
    """Fill a Markdown artifact, and print it: the log of the last task is where people look first."""
    sys.stdout.write(text)
    storage.write_bytes(artifact.path, text.encode())


def show_sweep(root: str, evaluations: Sequence[Any], programs: Sequence[Any], metrics: Any, report: Any) -> None:
    """Write the report of a sweep and fill its artifacts.

    Raises:
        MobileClipError: A reference is stale, or students cannot be compared.
    """
    scored, exported = ([read(artifact) for artifact in group] for group in (evaluations, programs))
    found = sweep.compare(root, scored, exported)
    _write_json(metrics.path, found)
    metrics.metadata.update(headline(found))
    show_file(Done(sweep.FOLDER, storage.join(root, sweep.FOLDER), found), "pareto.html", report)


def _record_digest(uri: str) -> str:
    try:
        return hashlib.sha256(storage.read_bytes(storage.join(uri, records.RECORD))).hexdigest()
    except DataError:
        raise DataError(f"data: nothing finished at '{uri}' (no {records.RECORD}), run its stage first.") from None


def _write_json(path: str | Path, value: Any) -> None:
    storage.write_bytes(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())
