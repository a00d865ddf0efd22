"""What is asked of a Kubeflow Pipelines API server: versions, runs, recurring runs."""

import os
import sys
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


def connect(host: str, namespace: str = "") -> PipelinesClient:
    """A client of the API server; `KF_PIPELINES_TOKEN` holds the bearer token where one is needed.

    Raises:
        ConfigError: It does not answer.
    """
    token = os.environ.get("KF_PIPELINES_TOKEN")
    client = PipelinesClient(KubernetesBackendConfig(base_url=host, user_token=token, namespace=namespace or None))
    try:
        client.list_pipelines(page_size=1)
    except HTTPError as error:
        raise ConfigError(f"host: no Kubeflow Pipelines API at '{host}' ({type(error).__name__}).") from None
    return client


def upload(client: PipelinesClient, package: Path, version: str) -> Any:
    """Upload a package as a new pipeline or a new version; a version that is there already is not uploaded again.

    Args:
        client: Of the API server.
        package: The compiled package.
        version: Name of the version.

    Raises:
        ConfigError: A version of that name holds another package.
    """
    wanted = list(yaml.safe_load_all(package.read_text(encoding="utf-8")))
    name = wanted[0]["pipelineInfo"]["name"]
    try:
        found = client.get_pipeline_version(name, version)
    except ValueError:
        return client.upload_pipeline(str(package), name=name, version=version)
    if documents(found) != wanted:
        raise ConfigError(f"version: '{version}' of '{name}' holds another package, want a new name.")
    return found


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


def start(client: PipelinesClient, version: Any, given: Mapping[str, Any], *, experiment: str) -> Any:
    """Start a run of an uploaded version in an experiment, which is created if it is new."""
    client.create_experiment(experiment)
    name = f"{version.display_name} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
    return client.run(version, params=dict(given), name=name, experiment=experiment)


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
    """What an answer with an error code says, on one line."""
    return f"the server answers {error.status}: {' '.join(str(error.body).split())[:300]}"
