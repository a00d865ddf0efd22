"""Runs in MLflow: one parent per pipeline run, one child per stage; the only module that speaks to MLflow.

Which run a stage writes to:

1. `MLFLOW_RUN_ID`, where the platform injects it (Kubeflow's own MLflow plugin), is adopted;
2. else a child of `MOBILECLIP_PARENT_RUN_ID` (set by `parent_run`), or of the run tagged `MOBILECLIP_PARENT_KEY`
   (pods of one pipeline run share the key; the first one creates the parent);
3. else a run of its own.

`MOBILECLIP_TRACKING=off` turns it off. A server that cannot be reached at the start is an error, one that dies later
costs a warning: buffered metrics are sent when it is back.
"""

import contextlib
import importlib.util
import json
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from mobileclip import provenance, storage
from mobileclip.errors import ConfigError, MobileClipError
from mobileclip.report import LogTracker, Tracker

logger = logging.getLogger(__name__)

PARENT_RUN = "MOBILECLIP_PARENT_RUN_ID"
PARENT_KEY = "MOBILECLIP_PARENT_KEY"
_KEY_TAG = "mobileclip.parent_key"

_FLUSH_SECONDS = 10.0
_FLUSH_METRICS = 500
_MAX_BUFFER = 100_000  # metrics kept while the server is away
_MAX_PARAM_CHARS = 6000  # MLflow's own limits
_MAX_DIGEST_CHARS = 36
_MAX_BATCH = 100

_ENVIRONMENT = {
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    # MLflow's default of 7 retries holds a training step for four minutes when the server is gone.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
}


class _Terminated(SystemExit):
    """SIGTERM arrived."""


class MlflowTracker:
    """A tracker that writes to one MLflow run; metrics go in batches."""

    def __init__(self, client: Any, run_id: str) -> None:
        self.run_id = run_id
        self._client = client
        self._log = LogTracker()
        self._metrics: list[Any] = []
        self._files: list[tuple[str, str]] = []
        self._lock = threading.Lock()
        self._next_flush = time.monotonic() + _FLUSH_SECONDS
        self._failures = 0

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Record numbers at a step; they reach the server within seconds, at the latest when the stage ends."""
        self._log.log_metrics(metrics, step=step)
        entity = _mlflow().entities.Metric
        now = int(time.time() * 1000)
        with self._lock:
            self._metrics += [entity(_metric_name(k), float(v), now, step) for k, v in metrics.items()]
            del self._metrics[:-_MAX_BUFFER]
            due = time.monotonic() >= self._next_flush or (not self._failures and len(self._metrics) >= _FLUSH_METRICS)
        if due:
            self.flush()

    def log_file(self, path: str, *, folder: str = "") -> None:
        """Record a local file as an artifact of the run."""
        self._log.log_file(path, folder=folder)
        with self._lock:
            self._files.append((path, folder))
        if not self._failures:
            self.flush()

    def flush(self) -> bool:
        """Send what is buffered; returns whether all of it arrived."""
        with self._lock:
            metrics, self._metrics = self._metrics, []
            files, self._files = self._files, []
            try:
                while metrics:
                    self._client.log_batch(self.run_id, metrics=metrics[: 10 * _MAX_BATCH], synchronous=True)
                    metrics = metrics[10 * _MAX_BATCH :]
                while files:
                    self._client.log_artifact(self.run_id, files[0][0], files[0][1] or None)
                    files = files[1:]
            except Exception as error:  # noqa: BLE001 - whatever the network or store throws, training goes on
                self._metrics, self._files = metrics, files
                self._failures += 1
                if self._failures == 1:
                    logger.warning("tracking: MLflow does not answer (%s), going on without it.", _first(error))
            else:
                self._failures = 0
            self._next_flush = time.monotonic() + _FLUSH_SECONDS * 2 ** min(self._failures, 6)
            return not self._failures


@contextlib.contextmanager
def stage_run(stage: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> Iterator[Tracker]:
    """Open the run of one stage; it ends FINISHED, FAILED or KILLED (SIGTERM, Ctrl-C).

    Args:
        stage: Name of the stage and of the run.
        config: The stage's resolved section, logged as parameters `STAGE.key`.
        inputs: Input URIs by name, logged as datasets with their digests.

    Raises:
        ConfigError: MLflow is wanted but missing, wrongly named or out of reach.
    """
    if not _enabled():
        yield LogTracker()
        return
    client = _connect()
    with _one_sentence():
        run_id = _open_run(client, stage)
        _describe(client, run_id, stage, config, inputs)
    tracker = MlflowTracker(client, run_id)
    with _closing(client, run_id, tracker), _system_metrics(run_id):
        yield tracker


@contextlib.contextmanager
def parent_run(name: str) -> Iterator[str]:
    """Open the parent of all stages that run inside, in this process or its children.

    An injected `MLFLOW_RUN_ID` becomes the parent; an outer parent is used as it is.

    Yields:
        The run id; empty where tracking is off.
    """
    if not _enabled() or os.environ.get(PARENT_RUN):
        yield os.environ.get(PARENT_RUN, "")
        return
    client = _connect()
    injected = os.environ.pop("MLFLOW_RUN_ID", "")
    try:
        with _one_sentence():
            run_id = injected or _shared_parent(client, name) or _create(client, name, {})
        os.environ[PARENT_RUN] = run_id
        with _closing(client, run_id, None):
            yield run_id
    finally:
        os.environ.pop(PARENT_RUN, None)
        if injected:
            os.environ["MLFLOW_RUN_ID"] = injected


def close_parent(*, status: str = "FINISHED") -> list[str]:
    """End the parent that this process's environment names, and every child that a kill -9 left RUNNING.

    Called by a pipeline's exit handler. Returns the ids of children set to KILLED.
    """
    if not _enabled():
        return []
    client = _connect()
    parent = os.environ.get(PARENT_RUN) or _find_parent(client)
    if not parent:
        return []
    experiment = client.get_run(parent).info.experiment_id
    wanted = f"tags.`mlflow.parentRunId` = '{parent}' and attributes.status = 'RUNNING'"
    left = [run.info.run_id for run in client.search_runs([experiment], wanted)]
    for run_id in left:
        client.set_terminated(run_id, "KILLED")
    client.set_terminated(parent, status)
    return left


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, else a SQLite file in the working folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"


def shown_uri() -> str:
    """The tracking URI without user and password."""
    return re.sub(r"//[^/@]*@", "//", tracking_uri())


@lru_cache(maxsize=1)
def _mlflow() -> Any:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import mlflow
    except ModuleNotFoundError:
        raise ConfigError("tracking: MLflow is missing, install mobileclip-pipelines[tracking].") from None
    for chatty in ("alembic", "mlflow.store.db.utils", "mlflow.system_metrics.system_metrics_monitor"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    return mlflow


def _enabled() -> bool:
    mode = os.environ.get("MOBILECLIP_TRACKING", "on") or "on"
    if mode not in {"on", "off"}:
        raise ConfigError(f"MOBILECLIP_TRACKING: got '{mode}', want on or off.")
    if mode == "off" or int(os.environ.get("RANK", "0") or 0) > 0:  # one process of a distributed job reports
        return False
    if importlib.util.find_spec("mlflow") is None:
        if os.environ.get("MLFLOW_TRACKING_URI"):
            raise ConfigError(
                "tracking: MLFLOW_TRACKING_URI is set but MLflow is missing, install mobileclip-pipelines[tracking]."
            )
        return False
    return True


def _connect() -> Any:
    mlflow = _mlflow()
    with _one_sentence():
        return mlflow.MlflowClient(tracking_uri=tracking_uri())


@contextlib.contextmanager
def _one_sentence() -> Iterator[None]:
    try:
        yield
    except MobileClipError:
        raise
    except Exception as error:
        raise ConfigError(
            f"tracking: MLFLOW_TRACKING_URI is '{shown_uri()}' and MLflow says '{_first(error)}', "
            "want a store that answers, or MOBILECLIP_TRACKING=off."
        ) from error


def _open_run(client: Any, stage: str) -> str:
    adopted = os.environ.get("MLFLOW_RUN_ID", "")
    if adopted:
        client.update_run(adopted, status="RUNNING")
        return adopted
    parent = os.environ.get(PARENT_RUN) or _shared_parent(client, "pipeline")
    tags = {"mlflow.parentRunId": parent} if parent else {}
    return _create(client, stage, {"mobileclip.stage": stage, **tags}, parent=parent)


def _create(client: Any, name: str, tags: dict[str, str], *, parent: str = "") -> str:
    experiment = client.get_run(parent).info.experiment_id if parent else _experiment(client)
    run = client.create_run(experiment, run_name=name, tags={**provenance.tags(), **tags})
    return str(run.info.run_id)


def _experiment(client: Any) -> str:
    if os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return os.environ["MLFLOW_EXPERIMENT_ID"]
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "mobileclip"
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except _mlflow().MlflowException:  # another pod was faster
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def _shared_parent(client: Any, name: str) -> str:
    """The parent that all pods with the same key share; created by the first. Empty without a key."""
    key = os.environ.get(PARENT_KEY, "")
    if not key:
        return ""
    found = _find_parent(client)
    if found:
        return found
    mine = _create(client, name, {_KEY_TAG: key, "kfp.run_id": key})
    time.sleep(1.0)  # two pods may create at once: let both become visible, then both take the earlier one
    first = _find_parent(client) or mine
    if first != mine:
        client.delete_run(mine)
    return first


def _find_parent(client: Any) -> str:
    key = os.environ.get(PARENT_KEY, "")
    if not key:
        return ""
    wanted = f"tags.`{_KEY_TAG}` = '{key}'"
    runs = client.search_runs([_experiment(client)], wanted, order_by=["attributes.start_time ASC"], max_results=50)
    first = min(runs, key=lambda r: (r.info.start_time, r.info.run_id), default=None)
    return str(first.info.run_id) if first else ""


def _describe(client: Any, run_id: str, stage: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
    """Parameters and dataset inputs; a resumed run keeps the parameters it has (MLflow never changes one)."""
    entities = _mlflow().entities
    known = client.get_run(run_id).data.params
    flat = {k: v[:_MAX_PARAM_CHARS] for k, v in provenance.flatten(config, stage).items()}
    changed = sorted(k for k, v in flat.items() if known.get(k, v) != v)
    if changed:
        logger.warning("tracking: run %s has other values of %s, they stay.", run_id, ", ".join(changed))
    params = [entities.Param(k, v) for k, v in flat.items() if k not in known]
    for start in range(0, len(params), _MAX_BATCH):
        client.log_batch(run_id, params=params[start : start + _MAX_BATCH], synchronous=True)
    if inputs:
        client.log_inputs(run_id, datasets=[_dataset(name, uri, stage) for name, uri in sorted(inputs.items())])


def _dataset(name: str, uri: str, stage: str) -> Any:
    from mobileclip.entry import input_digest  # entry opens tracking, so this cannot stand at the top

    entities = _mlflow().entities
    try:
        digest = input_digest(uri)
    except MobileClipError:
        digest = "unknown"
    kind = "s3" if storage.is_s3(uri) else "local"
    dataset = entities.Dataset(name, digest[: _MAX_DIGEST_CHARS - 4], kind, json.dumps({"uri": uri}))
    tags = {"mlflow.data.context": stage, "sha256": digest}
    return entities.DatasetInput(dataset, [entities.InputTag(k, v) for k, v in tags.items()])


@contextlib.contextmanager
def _closing(client: Any, run_id: str, tracker: MlflowTracker | None) -> Iterator[None]:
    """End the run with the status that tells what happened."""
    status = "FAILED"
    try:
        with _raise_on_sigterm():
            yield
        status = "FINISHED"
    except (KeyboardInterrupt, _Terminated):
        status = "KILLED"
        raise
    except MobileClipError as error:
        sentence = str(error)[:500]
        _attempt(lambda: client.set_tag(run_id, "mobileclip.error", sentence))
        raise
    finally:
        lost = tracker is not None and not tracker.flush()
        if lost or not _attempt(lambda: client.set_terminated(run_id, status)):
            logger.warning("tracking: MLflow does not answer, run %s is incomplete there.", run_id)


@contextlib.contextmanager
def _raise_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM (a pod being evicted) into an exception, so that the run does not stay RUNNING for ever."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def stop(_signal: int, _frame: Any) -> None:
        if os.getpid() != owner:  # a forked data worker must die, not end our run
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        raise _Terminated(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _system_metrics(run_id: str) -> Iterator[None]:
    """CPU, memory, disk and network of long stages, sampled by MLflow; off where psutil is missing."""
    wanted = os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true").lower() == "true"
    if not wanted or importlib.util.find_spec("psutil") is None:
        yield
        return
    _mlflow()
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id, tracking_uri=tracking_uri())
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()


def _attempt(action: Callable[[], Any]) -> bool:
    try:
        action()
    except Exception as error:  # noqa: BLE001 - the stage's own result or error matters more
        logger.debug("tracking: %s", _first(error))
        return False
    return True


def _metric_name(name: str) -> str:
    return re.sub(r"[^/\w.\- :]", "_", name)


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return re.sub(r"//[^/@\s]*@", "//", lines[0])[:200] if lines else type(error).__name__
