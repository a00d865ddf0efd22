"""The door: CLI, dvc.yaml and every Kubeflow component run a stage through `run_stage` and nothing else.

It checks the section, seeds, opens tracking, runs the stage, and leaves beside the outputs

- `config.json`: the resolved section,
- `metrics.json`: the stage's numbers,
- `record.json`: the lineage (stage, code, config and input digests, files), written last: its presence means "done".

The record holds no time, host or absolute path, so the same inputs give the same record through every door.
"""

import hashlib
import importlib
import json
import logging
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mobileclip import __version__, manifest, parallel, provenance, ranks, storage
from mobileclip.chain import FAN_OUT, step
from mobileclip.config import Section, check_section
from mobileclip.errors import ConfigError, DataError, IntegrityError
from mobileclip.report import Tracker

logger = logging.getLogger(__name__)

RECORD = "record.json"
TOGETHER = ("train_teacher", "finetune_captioner", "distill")
"""Stages that train on all processes which `torchrun` starts."""
# Files that may differ between two equal runs (times, registry answers); they are kept out of the record.
VOLATILE = frozenset({RECORD, "timings.json", "registry.json", "release.html"})


def run_stage(
    stage: str,
    config: Section | Mapping[str, Any],
    *,
    out: str | Path,
    options: Mapping[str, Any] | None = None,
    **inputs: str | Path,
) -> dict[str, float]:
    """Check `config`, run `stage`, and leave config, metrics and lineage beside its outputs.

    Args:
        stage: A name of `mobileclip.config.STAGES`.
        config: The stage's whole section.
        out: Output folder or `s3://` prefix.
        options: How this process takes part in the work without changing its result
            (`group`, `num_groups`, `merge` of the stages that fan out).
        inputs: Input folders or URIs by name, as `mobileclip.chain` lists them; an empty string means absent.

    Returns:
        The stage's metrics.

    Raises:
        MobileClipError: With one sentence that names the key, the value got and what is wanted.
    """
    checked = check_section(stage, config)
    processes = ranks.world_size()
    if processes > 1 and stage not in TOGETHER:
        raise ConfigError(f"{stage}: got {processes} processes, only {', '.join(TOGETHER)} train on several.")
    named = _check_inputs(stage, inputs)
    chosen = _check_options(stage, options or {})
    target = str(out)
    first = ranks.rank() == 0  # of the processes that `torchrun` started
    if first and not is_current(stage, checked, target, named):
        # Were this run to end half-way, the old record would vouch for files that are no longer its own.
        storage.delete(storage.join(target, RECORD))
    _seed(getattr(checked, "seed", 0))
    from mobileclip import tracking

    with tracking.stage_run(stage, checked.model_dump(mode="json"), named) as tracker:
        metrics = _run(stage, checked, target, named, chosen, tracker)
        tracker.log_metrics(metrics)
    if chosen.get("num_groups", 1) > 1 and not chosen.get("merge"):
        return metrics  # one group of a fan-out: the merge step completes the stage
    if first:  # it describes what all have done
        _write_json(target, "config.json", checked.model_dump(mode="json"))
        _write_json(target, "metrics.json", metrics)
        _write_json(target, RECORD, describe(stage, checked, target, named))
    _wait()
    return metrics


def _wait() -> None:
    """Let no process look for the record before the first one has written it."""
    if ranks.world_size() > 1:
        from mobileclip.training.world import join

        join().wait()


def describe(stage: str, config: Section, out: str, inputs: Mapping[str, str]) -> dict[str, Any]:
    """The lineage record of a finished stage."""
    return {
        "stage": stage,
        "version": __version__,
        "code": provenance.code_digest(),
        "config": _digest(config.model_dump(mode="json")),
        "inputs": {name: input_digest(uri) for name, uri in sorted(inputs.items())},
        "files": _file_digests(out),
    }


def is_current(stage: str, config: Section, out: str, inputs: Mapping[str, str]) -> bool:
    """Whether `out` already holds this stage's result for this code, config and these inputs, and holds it whole."""
    uri = storage.join(out, RECORD)
    if not storage.exists(uri):
        return False
    try:
        record = json.loads(storage.read_bytes(uri))
        wanted = {name: input_digest(value) for name, value in sorted(inputs.items())}
        same = (
            record["stage"] == stage
            and record["code"] == provenance.code_digest()
            and record["config"] == _digest(config.model_dump(mode="json"))
            and record["inputs"] == wanted
        )
        if same:
            for name, sha256 in record["files"].items():
                storage.read_bytes(storage.join(out, name), sha256=sha256)
    except (DataError, IntegrityError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return bool(same)


def input_digest(uri: str) -> str:
    """Digest of a stage input: its record's or manifest's, else the tree of its files.

    Raises:
        DataError: Nothing is there.
    """
    for name in (RECORD, manifest.FILE_NAME):
        if storage.exists(storage.join(uri, name)):
            return hashlib.sha256(storage.read_bytes(storage.join(uri, name))).hexdigest()
    path = Path(uri)
    names = storage.list_files(uri) if storage.is_s3(uri) else []
    if names:
        return _digest({name: _stream_digest(storage.join(uri, name)) for name in names if not _hidden(name)})
    if storage.is_s3(uri) or not path.exists():
        raise DataError(f"data: nothing at '{uri}', want a folder or the output of an earlier stage.")
    if path.is_file():
        return storage.digest_file(path)
    # A raw input folder: names and sizes and times would miss an edit, so hash the bytes.
    files = sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p.name))
    return _digest({p.relative_to(path).as_posix(): storage.digest_file(p) for p in files})


def _hidden(name: str) -> bool:
    return name.rpartition("/")[2].startswith(".")


def _stream_digest(uri: str) -> str:
    digest = hashlib.sha256()
    with storage.open_stream(uri) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _run(
    stage: str, config: Section, out: str, inputs: dict[str, str], options: dict[str, Any], tracker: Tracker
) -> dict[str, float]:
    try:
        module = importlib.import_module(f"mobileclip.stages.{stage}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("mobileclip"):
            raise
        extra = {"onnx": "export", "onnxruntime": "export", "mlflow": "tracking"}.get(error.name or "", "train")
        raise ConfigError(
            f"{stage}: the package '{error.name}' is missing, install mobileclip-pipelines[{extra}]."
        ) from None
    metrics: dict[str, float] = module.run(config, out=out, tracker=tracker, **inputs, **options)
    return {name: float(value) for name, value in metrics.items()}


def _check_inputs(stage: str, inputs: Mapping[str, str | Path]) -> dict[str, str]:
    row = step(stage)
    given = {name: str(uri) for name, uri in inputs.items() if str(uri)}
    for name in given:
        if name not in row.names:
            raise ConfigError(f"{stage}: unknown input '{name}', want {', '.join(row.names)}.")
    for name in row.names:
        if name not in given and name not in row.optional:
            raise ConfigError(f"{stage}: input '{name}' is missing, want a folder or URI.")
    for name, uri in given.items():
        if not storage.is_s3(uri) and not Path(uri).exists():
            raise DataError(f"{stage}: input '{name}' is '{uri}', there is no such file or folder.")
    return given


def _check_options(stage: str, options: Mapping[str, Any]) -> dict[str, Any]:
    group, groups = int(options.get("group", 0)), int(options.get("num_groups", 1))
    if (groups != 1 or options.get("merge")) and stage not in FAN_OUT:
        raise ConfigError(f"{stage}: does not fan out over groups, only {' and '.join(FAN_OUT)} do.")
    if not 0 <= group < groups:
        raise ConfigError(f"{stage}: group is {group}, want 0 to {groups - 1}.")
    return dict(options)


def _seed(seed: int) -> None:
    """Seed what libraries draw from behind our back; our own draws use their own generators."""
    random.seed(seed)
    try:
        import numpy as np
        import torch
    except ModuleNotFoundError:
        return
    parallel.one_thread()
    np.random.seed(seed % 2**32)  # noqa: NPY002 - third-party code reads the global generator
    torch.manual_seed(seed)


def _file_digests(out: str) -> dict[str, str]:
    if storage.exists(storage.join(out, manifest.FILE_NAME)):
        # The manifest holds the digest of every shard and column; hashing terabytes again proves nothing more.
        names = [manifest.FILE_NAME, "config.json", "metrics.json"]
        return {n: hashlib.sha256(storage.read_bytes(storage.join(out, n))).hexdigest() for n in names}
    root = storage.local_dir(out)
    files = sorted(p for p in root.rglob("*") if p.is_file() and p.name not in VOLATILE and p.suffix != ".tmp")
    return {p.relative_to(root).as_posix(): storage.digest_file(p) for p in files}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _write_json(out: str, name: str, value: Any) -> None:
    storage.write_bytes(storage.join(out, name), (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())
