"""What is asked of a Kubeflow Pipelines API server: versions, runs, recurring runs."""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kfp_server_api
import yaml
from kfp.kubeflow_client import KubernetesBackendConfig, PipelinesClient
from urllib3.exceptions import HTTPError

from mobileclip.errors import ConfigError, MobileClipError

Documents = list[dict[str, Any]]

_REFUSED = frozenset({401, 403})
_PASSING = frozenset({0, 408, 429, 500, 502, 503, 504})
_ENDED = frozenset({"succeeded", "failed", "canceled", "skipped"})
_PATIENCE = 900
_LONGEST = 300


def answered(work: Callable[[], int]) -> int:
    """Exit code of a command that asks the server: its own, 2 for bad input, 1 where the server refuses."""
    try:
        return work()
    except MobileClipError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except kfp_server_api.ApiException as error:
        sys.stderr.write(f"error: {_sentence(error)}\n")
        return 1
    except HTTPError as error:
        sys.stderr.write(f"error: host: the Kubeflow Pipelines API does not answer ({type(error).__name__}).\n")
        return 1


def connect(host: str, namespace: str = "") -> PipelinesClient:
    """A client of the API server.

    `KF_PIPELINES_TOKEN` holds the bearer token where one is needed, `KF_PIPELINES_CA` a file with the certificate
    authorities to trust, `HTTPS_PROXY` and `HTTP_PROXY` a proxy.

    Args:
        host: Address of the API.
        namespace: Where there are several.

    Raises:
        ConfigError: It does not answer, answers with a page for people, or wants other credentials.
    """
    found = {"user_token": os.environ.get("KF_PIPELINES_TOKEN"), "custom_ca": os.environ.get("KF_PIPELINES_CA")}
    try:
        # It asks at once whether a server is there.
        client = PipelinesClient(KubernetesBackendConfig(base_url=host, namespace=namespace or None, **found))
        answer = client._backend._healthz_api.healthz_service_get_healthz(_preload_content=False)  # noqa: SLF001
        json.loads(answer.data)
        client.list_pipelines(page_size=1)
    except kfp_server_api.ApiException as error:
        if error.status in _REFUSED:
            raise ConfigError(
                f"host: '{host}' answers {error.status}, want a valid token in KF_PIPELINES_TOKEN."
            ) from None
        raise ConfigError(f"host: no Kubeflow Pipelines API at '{host}': {_sentence(error)}.") from None
    except ValueError:
        raise ConfigError(
            f"host: '{host}' answers with a page and not with the API's JSON, as a login page does; want the API's own "
            "address, and its token in KF_PIPELINES_TOKEN."
        ) from None
    except (HTTPError, OSError, RuntimeError) as error:
        raise ConfigError(f"host: no Kubeflow Pipelines API at '{host}' ({type(error).__name__}).") from None
    return client


def wait(client: PipelinesClient, run: str, *, timeout: float, poll: float, report: Callable[[str], None]) -> str:
    """Wait for the end of a run; errors that pass (5xx, 429, cut connections) do not end the waiting.

    Args:
        client: Of the API server.
        run: The run's id.
        timeout: Longest wait [s]; 0 = none.
        poll: Time between two looks [s].
        report: Gets a line whenever the state or the number of finished tasks changes.

    Returns:
        The last state in lower case: `succeeded`, `failed`, `canceled`, `skipped`; `running` and the like where the
        time ran out.

    Raises:
        ConfigError: The server wants other credentials.
        MobileClipError: The server has not answered for `_PATIENCE` seconds.
    """
    start = heard = time.monotonic()
    last = state = ""
    while True:
        try:
            found = client.get_run(run)
            heard, state = time.monotonic(), str(found.state or "").lower()
            tasks = [
                task for task in (found.run_details.task_details if found.run_details else None) or [] if task.state
            ]
            done = sum(str(task.state).upper() in {"SUCCEEDED", "SKIPPED", "CACHED"} for task in tasks)
            line = f"{state or 'unknown'}, {done} of {len(tasks)} tasks done"
            if line != last:
                report(f"{time.monotonic() - start:.0f} s: {line}")
                last = line
        except kfp_server_api.ApiException as error:
            if error.status in _REFUSED:
                raise ConfigError(f"wait: the server answers {error.status}, the token is no longer valid.") from None
            if error.status not in _PASSING:
                raise
            _still_patient(heard, error)
        except HTTPError as error:
            _still_patient(heard, error)
        if state in _ENDED or (timeout and time.monotonic() - start > timeout):
            return state
        time.sleep(poll)


def _still_patient(heard: float, error: Exception) -> None:
    if time.monotonic() - heard > _PATIENCE:
        raise MobileClipError(
            f"wait: the server has not answered for {_PATIENCE} s ({type(error).__name__}); the run goes on without."
        ) from None


def upload(client: PipelinesClient, package: Path, version: str) -> Any:
    """Upload a package as a version of its pipeline; a version that is there already is not uploaded again.

    The pipeline is created first and the version uploaded to it, so that both of its names are `version`. An upload
    that creates both at once names the version like the pipeline, and only its display name is ours: such versions,
    of earlier uploads, are found by that.

    Args:
        client: Of the API server.
        package: The compiled package.
        version: Name of the version.

    Raises:
        ConfigError: A version of that name holds another package.
    """
    wanted = list(yaml.safe_load_all(package.read_text(encoding="utf-8")))
    name = wanted[0]["pipelineInfo"]["name"]
    if found := _equal_version(client, name, version, wanted):
        return found
    try:
        identifier = _pipeline_id(client, name)
        return client.kfp_client._upload_api.upload_pipeline_version(str(package), name=version, pipelineid=identifier)  # noqa: SLF001 - its own method prints
    except kfp_server_api.ApiException as error:
        # Somebody else's submission of the same package came between.
        if error.status == 409 and (found := _equal_version(client, name, version, wanted)):
            return found
        raise


def _equal_version(client: PipelinesClient, name: str, version: str, wanted: Documents) -> Any | None:
    """The newest version that is called so and holds these documents; nothing where none is called so.

    Raises:
        ConfigError: Versions are called so, and all hold something else.
    """
    called = [found for found in list_versions(client, name) if version in {found.display_name, found.name}]
    for found in called:
        if documents(found) == wanted:
            return found
    if called:
        raise ConfigError(f"version: '{version}' of '{name}' holds another package, want a new name.")
    return None


def _pipeline_id(client: PipelinesClient, name: str) -> str:
    """The id of a pipeline, which is created if it is new."""
    kfp = client.kfp_client
    identifier = kfp.get_pipeline_id(name)
    if identifier is None:
        described = kfp_server_api.V2beta1Pipeline(display_name=name, name=name, namespace=client_namespace(client))
        identifier = kfp._pipelines_api.pipeline_service_create_pipeline(described).pipeline_id  # noqa: SLF001
    return str(identifier)


def client_namespace(client: PipelinesClient) -> str | None:
    """The namespace that a client was made for; `None` where the server has one alone."""
    return client._backend.namespace  # type: ignore[no-any-return]  # noqa: SLF001


def documents(version: Any) -> Documents:
    """The documents of an uploaded version: the pipeline, and its Kubernetes settings."""
    held = version.pipeline_spec
    return [held["pipeline_spec"], held["platform_spec"]] if "pipeline_spec" in held else [held]


def list_versions(client: PipelinesClient, name: str) -> list[Any]:
    """Versions of a pipeline, the latest first; none where it was never uploaded."""
    found, token = [], ""
    try:
        while True:
            page = client.list_pipeline_versions(name, page_token=token, page_size=50)
            found += page.pipeline_versions or []
            token = page.next_page_token or ""
            if not token:
                return sorted(found, key=lambda version: version.created_at, reverse=True)
    except ValueError:
        return []


def start(client: PipelinesClient, version: Any, given: Mapping[str, Any], *, experiment: str, name: str) -> Any:
    """Start a run of an uploaded version in an experiment, which is created if it is new.

    Args:
        client: Of the API server.
        version: The version.
        given: Arguments of the run.
        experiment: Created if it is new.
        name: What the run is about; the time is added.
    """
    client.create_experiment(experiment)
    return client.run(
        version, params=dict(given), name=f"{name} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}", experiment=experiment
    )


def schedule(
    client: PipelinesClient, version: Any, given: Mapping[str, Any], *, experiment: str, cron: str, name: str
) -> Any:
    """Run an uploaded version again and again; an earlier recurring run of that name ends where this one begins.

    Args:
        client: Of the API server.
        version: The version.
        given: Arguments of every run.
        experiment: Created if it is new.
        cron: Six fields, seconds first, such as `0 0 2 * * *`.
        name: Of the recurring run.

    Raises:
        ConfigError: `cron` has not six fields.
    """
    if len(cron.split()) != 6:
        raise ConfigError(f"cron: got '{cron}', want six fields, seconds first, such as '0 0 2 * * *'.")
    identifier = client.create_experiment(experiment).experiment_id
    kfp = client.kfp_client
    listed = kfp.list_recurring_runs(experiment_id=identifier, page_size=100).recurring_runs or []
    earlier = [run for run in listed if run.display_name == name]
    created = kfp.create_recurring_run(
        identifier, name, cron_expression=cron, max_concurrency=1, no_catchup=True, params=dict(given),
        pipeline_id=version.pipeline_id, version_id=version.pipeline_version_id,
    )  # fmt: skip
    for run in earlier:
        kfp.delete_recurring_run(run.recurring_run_id)
    return created


def _sentence(error: kfp_server_api.ApiException) -> str:
    """What an answer with an error code says, on one line and without the server's stack."""
    try:
        content = json.loads(error.body or "")
        said = str(content.get("message") or content.get("error") or "") if isinstance(content, dict) else str(content)
    except ValueError:
        said = str(error.reason or "")
    return f"the server answers {error.status}: {said.strip().partition(chr(10))[0].rstrip('.')[:_LONGEST]}"
