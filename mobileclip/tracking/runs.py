"""Runs and models in MLflow: one parent run per pipeline run, one child per stage; the only module that imports it.

Which run a stage writes to:

1. `MLFLOW_RUN_ID`, where the platform injects it (Kubeflow's own MLflow plugin), is adopted;
2. else a child of `MOBILECLIP_PARENT_RUN_ID` (set by `parent_run`), or of the run tagged `MOBILECLIP_PARENT_KEY`
   (pods of one pipeline run share the key; the first one creates the parent);
3. else a run of its own.

`MOBILECLIP_TRACKING=off` turns run logging off. A server that cannot be reached at the start is an error, one that
dies later costs a warning.
"""

import contextlib
import functools
import importlib.util
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mobileclip import parallel
from mobileclip.errors import ConfigError, MobileClipError
from mobileclip.lineage import provenance
from mobileclip.tracking import database, run_inputs
from mobileclip.tracking.protocol import LogTracker, Tracker
from mobileclip.tracking.run_tracker import RunTracker, closing, first_line, within

logger = logging.getLogger(__name__)

PARENT_RUN = "MOBILECLIP_PARENT_RUN_ID"
PARENT_KEY = "MOBILECLIP_PARENT_KEY"
_KEY_TAG = "mobileclip.parent_key"

_ENVIRONMENT = {
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    # MLflow's default of 7 retries holds a training step for four minutes when the server is gone.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Else MLflow copies uv.lock and pyproject.toml of whatever project it is started in into every model.
    "MLFLOW_UV_AUTO_DETECT": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_OLDEST_SERVER = 3
_START_SECONDS = 10
_CHATTY = (
    "alembic",
    "mlflow.store.db.utils",
    "mlflow.system_metrics.system_metrics_monitor",
    "mlflow.pyfunc",
    "mlflow.utils.environment",
    "urllib3.connectionpool",  # a warning for each try, next to ours
)


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
    if not enabled():
        yield LogTracker()
        return
    client = connect()
    with one_sentence():
        run_id = _open_run(client, stage)
        run_inputs.describe(client, load_mlflow().entities, run_id, stage=stage, config=config, inputs=inputs)
    tracker = RunTracker(client, run_id, metric=load_mlflow().entities.Metric)
    with closing(client, run_id, tracker), _system_metrics(run_id):
        yield tracker


@contextlib.contextmanager
def parent_run(name: str) -> Iterator[str]:
    """Open the parent of all stages that run inside, in this process or its children.

    An injected `MLFLOW_RUN_ID` becomes the parent; an outer parent is used as it is.

    Yields:
        The run id; empty where tracking is off.
    """
    if not enabled() or os.environ.get(PARENT_RUN):
        yield os.environ.get(PARENT_RUN, "")
        return
    client = connect()
    injected = os.environ.pop("MLFLOW_RUN_ID", "")
    try:
        with one_sentence():
            run_id = injected or _shared_parent(client, name) or _create(client, name, {})
        os.environ[PARENT_RUN] = run_id
        with closing(client, run_id):
            yield run_id
    finally:
        os.environ.pop(PARENT_RUN, None)
        if injected:
            os.environ["MLFLOW_RUN_ID"] = injected


def close_parent(*, status: str = "FINISHED") -> list[str]:
    """End the parent that the environment names, and every child that SIGKILL left RUNNING.

    A pipeline's exit handler calls it. Returns the ids of the children it set to KILLED.
    """
    if not enabled():
        return []
    client = connect()
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


def enabled() -> bool:
    """Whether runs are logged: MLflow is installed, it is not turned off, and this is a job's first process.

    Raises:
        ConfigError: `MOBILECLIP_TRACKING` is neither on nor off, or a server is named but MLflow is missing.
    """
    mode = os.environ.get("MOBILECLIP_TRACKING", "on") or "on"
    if mode not in {"on", "off"}:
        raise ConfigError(f"MOBILECLIP_TRACKING: got '{mode}', want on or off.")
    if mode == "off" or parallel.rank() > 0:  # one process of a distributed job reports
        return False
    if importlib.util.find_spec("mlflow") is None:
        if os.environ.get("MLFLOW_TRACKING_URI"):
            raise ConfigError(
                "tracking: MLFLOW_TRACKING_URI is set but MLflow is missing, install mobileclip-pipelines[tracking]."
            )
        return False
    return True


def connect(*, optional: bool = True) -> Any:
    """An `MlflowClient` for `MLFLOW_TRACKING_URI`, else for a SQLite file in the working folder.

    Args:
        optional: As for `one_sentence`.

    Raises:
        ConfigError: MLflow is missing, the URI is of no known kind, its SQLite file is half-made, or its server is of
            a version that lacks what promotion needs.
    """
    mlflow = load_mlflow()
    with one_sentence(optional=optional):
        database.ensure(tracking_uri(), _create_database)
        _check_version(tracking_uri())
        return mlflow.MlflowClient(tracking_uri=tracking_uri())


@functools.cache
def _check_version(uri: str) -> None:
    """Refuse a server older than version 3 before work is spent: it knows no logged models, which `promote` makes.

    Services that speak MLflow's API and tell no version are taken at their word.
    """
    if not uri.startswith(("http://", "https://")):
        return
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    credentials = get_default_host_creds(uri.rstrip("/"))
    answer = http_request(credentials, "/version", "GET", timeout=_START_SECONDS, raise_on_status=False)
    text = answer.text.strip() if answer.ok else ""
    found = re.match(r"(\d+)\.\d", text)
    if text and (found is None or int(found[1]) < _OLDEST_SERVER):
        got = f"version {text[:20]}" if found else f"something else ('{text.splitlines()[0][:40]}')"
        raise ConfigError(
            f"tracking: MLFLOW_TRACKING_URI is '{_public(uri)}' and its server is {got}, "
            f"want an MLflow server of version {_OLDEST_SERVER} or later."
        )


def _create_database(uri: str) -> None:
    """Make MLflow's tables and its default experiment in a new SQLite file, and close it."""
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(uri, DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH).engine.dispose()


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, else a SQLite file in the working folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"


def has_store() -> bool:
    """Whether there is anything to read: a store is named, or an earlier run left its file in the working folder."""
    return bool(os.environ.get("MLFLOW_TRACKING_URI")) or Path("mlflow.db").is_file()


def load_mlflow() -> Any:
    """The module, imported only when it is needed, with the settings it runs under.

    Raises:
        ConfigError: It is not installed.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import mlflow  # costs seconds the first time
    except ModuleNotFoundError:
        raise ConfigError("tracking: MLflow is missing, install mobileclip-pipelines[tracking].") from None
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    return mlflow


@contextlib.contextmanager
def one_sentence(*, optional: bool = True) -> Iterator[None]:
    """Turn whatever MLflow throws inside into one sentence.

    Args:
        optional: Whether the work could go on without tracking; the registry cannot.

    Raises:
        ConfigError: With the store's URI and the first line of what it said.
    """
    try:
        yield
    except MobileClipError:
        raise
    except Exception as error:
        raise ConfigError(
            f"tracking: MLFLOW_TRACKING_URI is '{_public(tracking_uri())}' and MLflow says '{first_line(error)}', "
            f"want a store that answers{', or MOBILECLIP_TRACKING=off' if optional else ''}."
        ) from error


def _public(uri: str) -> str:
    """The URI without credentials."""
    return re.sub(r"//[^/@]*@", "//", uri)


def _open_run(client: Any, stage: str) -> str:
    adopted = os.environ.get("MLFLOW_RUN_ID", "")
    if adopted:
        client.update_run(adopted, status="RUNNING")
        return adopted
    parent = os.environ.get(PARENT_RUN) or _shared_parent(client, "pipeline")
    tags = {"mlflow.parentRunId": parent} if parent else {}
    return _create(client, stage, {"mobileclip.stage": stage, **tags}, parent=parent)


def _create(client: Any, name: str, tags: dict[str, str], *, parent: str = "") -> str:
    experiment = client.get_run(parent).info.experiment_id if parent else experiment_id(client)
    run = client.create_run(experiment, run_name=name, tags={**provenance.tags(), **tags})
    return str(run.info.run_id)


def experiment_id(client: Any) -> str:
    """Id of the experiment that `MLFLOW_EXPERIMENT_ID` or `MLFLOW_EXPERIMENT_NAME` names, created where it is new."""
    if os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return os.environ["MLFLOW_EXPERIMENT_ID"]
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "mobileclip"
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except load_mlflow().MlflowException:  # another pod was faster
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
    mine = _create(client, name, {_KEY_TAG: key})
    time.sleep(1.0)  # two pods may create at once: let both become visible, then both take the earlier one
    first = _find_parent(client) or mine
    if first != mine:
        client.delete_run(mine)
    return first


def _find_parent(client: Any) -> str:
    key = os.environ.get(PARENT_KEY, "")
    if not key:
        return ""
    runs = client.search_runs([experiment_id(client)], f"tags.`{_KEY_TAG}` = '{key}'", max_results=50)
    first = min(runs, key=lambda run: (run.info.start_time, run.info.run_id), default=None)
    return str(first.info.run_id) if first else ""


@contextlib.contextmanager
def _system_metrics(run_id: str) -> Iterator[None]:
    """CPU, memory, disk and network of long stages, sampled by MLflow; off where psutil is missing."""
    wanted = os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true").lower() == "true"
    if not wanted or importlib.util.find_spec("psutil") is None:
        yield
        return
    load_mlflow()
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id, tracking_uri=tracking_uri())
    monitor.start()
    try:
        yield
    except BaseException:
        within(0.5, monitor.finish)
        raise
    within(5.0, monitor.finish)
