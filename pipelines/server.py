"""What is asked of a Kubeflow Pipelines API server: versions, runs, recurring runs."""

import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from mobileclip.errors import ConfigError, MobileClipError
from pipelines.api import Api, Json, RefusedError, ask, pages

Documents = list[dict[str, Any]]


def answered(work: Callable[[], int]) -> int:
    """Exit code of a command that asks the server: its own, or that of an error, which is said in one sentence."""
    try:
        return work()
    except MobileClipError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code


def upload(api: Api, package: Path, version: str) -> Json:
    """Upload a package as a new version; a version that is there already is not uploaded again.

    A version has two names. One that the UI or the SDK uploads with a new pipeline bears the pipeline's name and shows
    another, so both are looked up, and both are set.

    Args:
        api: The server.
        package: The compiled package.
        version: Name of the version.

    Raises:
        ConfigError: Versions of that name hold other packages.
    """
    wanted = list(yaml.safe_load_all(package.read_text(encoding="utf-8")))
    name = wanted[0]["pipelineInfo"]["name"]
    pipeline = _pipeline(api, name)
    if pipeline is None:
        # A pipeline of its own first: uploaded together, version 1 would bear the pipeline's name.
        body = {"name": name, "display_name": name, "namespace": api.namespace}
        pipeline = ask(api, "POST", "/pipelines", body=body)
    found = [row for row in _versions(api, pipeline) if version in {row.get("name"), row["display_name"]}]
    for row in found:
        if documents(row) == wanted:
            return row
    if found:
        raise ConfigError(f"version: '{version}' of '{name}' holds another package, want a new name.")
    query = {"pipelineid": pipeline["pipeline_id"], "name": version, "display_name": version}
    try:
        return ask(api, "POST", "/pipelines/upload_version", query=query, file=package)
    except RefusedError as error:
        if error.status == 409:
            raise ConfigError(f"version: '{version}' of '{name}' came to be meanwhile; submit again.") from None
        raise


def documents(version: Json) -> Documents:
    """The documents of an uploaded version: the pipeline, and its Kubernetes settings."""
    held = version.get("pipeline_spec") or {}
    return [held["pipeline_spec"], held["platform_spec"]] if "pipeline_spec" in held else [held]


def list_versions(api: Api, name: str) -> list[Json]:
    """Versions of a pipeline, the latest first; none where it was never uploaded."""
    pipeline = _pipeline(api, name)
    return _versions(api, pipeline) if pipeline else []


def start(api: Api, version: Json, given: Mapping[str, Any], *, experiment: str, name: str) -> Json:
    """Start a run of an uploaded version in an experiment, which is created if it is new.

    Args:
        api: The server.
        version: The version.
        given: Arguments.
        experiment: Name of the experiment.
        name: What the run does and where, such as `train s3://runs/one`; the time is added.
    """
    body = _run(api, version, given, experiment) | {"display_name": f"{name} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}"}
    return ask(api, "POST", "/runs", body=body)


def schedule(api: Api, version: Json, given: Mapping[str, Any], *, experiment: str, cron: str, name: str) -> Json:
    """Run an uploaded version again and again; an earlier recurring run of that name ends where this one begins.

    Args:
        api: The server.
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
    body = _run(api, version, given, experiment)
    listed = pages(api, "/recurringruns", "recurringRuns", experiment_id=body["experiment_id"])
    created = ask(api, "POST", "/recurringruns", body=body | {
        "display_name": name, "mode": "ENABLE", "max_concurrency": 1, "no_catchup": True,
        "trigger": {"cron_schedule": {"cron": cron}},
    })  # fmt: skip
    for run in listed:
        if run["display_name"] == name:
            ask(api, "DELETE", f"/recurringruns/{run['recurring_run_id']}")
    return created


def _run(api: Api, version: Json, given: Mapping[str, Any], experiment: str) -> Json:
    reference = {key: version[key] for key in ("pipeline_id", "pipeline_version_id")}
    return {
        "experiment_id": _experiment(api, experiment)["experiment_id"],
        "pipeline_version_reference": reference,
        "runtime_config": {"parameters": dict(given)},
    }


def _experiment(api: Api, name: str) -> Json:
    found = _named(pages(api, "/experiments", "experiments", namespace=api.namespace), name)
    if found is not None:
        return found
    return ask(api, "POST", "/experiments", body={"display_name": name, "namespace": api.namespace})


def _pipeline(api: Api, name: str) -> Json | None:
    return _named(pages(api, "/pipelines", "pipelines", namespace=api.namespace), name)


def _versions(api: Api, pipeline: Json) -> list[Json]:
    path = f"/pipelines/{pipeline['pipeline_id']}/versions"
    rows = pages(api, path, "pipeline_versions", sort_by="created_at desc")
    return sorted(rows, key=lambda row: row["created_at"], reverse=True)


def _named(rows: list[Json], name: str) -> Json | None:
    """The row of that name, else the first that shows it."""
    for key in ("name", "display_name"):
        for row in rows:
            if row.get(key) == name:
                return row
    return None
