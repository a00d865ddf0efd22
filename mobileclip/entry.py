"""The door: CLI, dvc.yaml and every Kubeflow component run a stage through `run_stage` and nothing else.

It checks the section, seeds, opens tracking, runs the stage, and leaves beside the outputs

- `config.json`: the resolved section,
- `metrics.json`: the stage's numbers,
- `record.json`: the lineage (stage, code, config and input digests, files), written last: its presence means "done".

The record holds no time, host or absolute path, so the same inputs give the same record through every door.
"""

import importlib
import json
import logging
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mobileclip import parallel, stopping, storage
from mobileclip.chain import CHAIN, FAN_OUT, step
from mobileclip.config import Section, check_section
from mobileclip.errors import ConfigError, DataError
from mobileclip.lineage.record import RECORD, build_record, is_current
from mobileclip.tracking.protocol import Tracker

logger = logging.getLogger(__name__)

TOGETHER = ("train_teacher", "finetune_captioner", "distill")
"""Stages that train on all processes which `torchrun` starts."""


@stopping.terminable()
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
    processes = parallel.world_size()
    if processes > 1 and stage not in TOGETHER:
        raise ConfigError(f"{stage}: got {processes} processes, only {', '.join(TOGETHER)} train on several.")
    named = _check_inputs(stage, inputs)
    chosen = _check_options(stage, options or {})
    target = str(out)
    storage.check(target, "out")
    first = parallel.rank() == 0  # of the processes that `torchrun` started
    if first and not is_current(stage, checked, target, named):
        # Were this run to end half-way, the old record would vouch for files that are no longer its own.
        storage.delete(storage.join(target, RECORD))
    _seed(getattr(checked, "seed", 0))
    from mobileclip.tracking import runs as tracking

    logger.info("%s", _place(stage, chosen))
    with tracking.stage_run(stage, checked.model_dump(mode="json"), named) as tracker:
        metrics = _run(stage, checked, target, named, chosen, tracker)
        tracker.log_metrics(metrics)
    if chosen.get("num_groups", 1) > 1 and not chosen.get("merge"):
        return metrics  # one group of a fan-out: the merge step completes the stage
    if first:  # it describes what all have done
        _write_json(target, "config.json", checked.model_dump(mode="json"))
        _write_json(target, "metrics.json", metrics)
        _write_json(target, RECORD, build_record(stage, checked, target, named))
    _wait()
    return metrics


def _place(stage: str, options: Mapping[str, Any]) -> str:
    """`stage 4 of 11: caption, group 2 of 8`."""
    number = [row.stage for row in CHAIN].index(stage) + 1
    group, groups = options.get("group", 0), options.get("num_groups", 1)
    part = f", merge of {groups} groups" if options.get("merge") else f", group {group + 1} of {groups}"
    return f"stage {number} of {len(CHAIN)}: {stage}{part if groups > 1 else ''}"


def _wait() -> None:
    """Let no process look for the record before the first one has written it."""
    if parallel.world_size() > 1:
        from mobileclip.training.world import join

        join().wait()


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
        storage.check(uri, name)
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


def _write_json(out: str, name: str, value: Any) -> None:
    storage.write_bytes(storage.join(out, name), (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())
