"""`python -m pipelines.submit`: upload a pipeline version and start a run of it."""

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kfp_server_api
import yaml
from kfp.kubeflow_client import KubernetesBackendConfig, PipelinesClient
from urllib3.exceptions import HTTPError

from mobileclip.errors import ConfigError, MobileClipError
from pipelines import arguments, catalog, defaults
from pipelines.catalog import PIPELINES
from pipelines.compile import compile_package
from pipelines.resources import PROFILES
from pipelines.versions import version_name

logger = logging.getLogger(__name__)


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
    documents = list(yaml.safe_load_all(package.read_text(encoding="utf-8")))
    name = documents[0]["pipelineInfo"]["name"]
    try:
        found = client.get_pipeline_version(name, version)
    except ValueError:
        return client.upload_pipeline(str(package), name=name, version=version)
    held = found.pipeline_spec
    held = [held["pipeline_spec"], held["platform_spec"]] if "pipeline_spec" in held else [held]
    if held != documents:
        raise ConfigError(f"version: '{version}' of '{name}' holds another package, want a new name.")
    return found


def start(client: PipelinesClient, version: Any, given: dict[str, Any], *, experiment: str) -> Any:
    """Start a run of an uploaded version in an experiment, which is created if it is new."""
    client.create_experiment(experiment)
    name = f"{version.display_name} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
    return client.run(version, params=given, name=name, experiment=experiment)


def main(argv: Sequence[str] | None = None) -> int:
    """Check, compile, upload, start.

    Returns:
        0 submitted (with --wait: succeeded), 1 the run failed, 2 bad input; nothing is uploaded then.
    """
    chosen = _parser().parse_args(argv)
    try:
        run = _submit(chosen)
        return _wait(chosen, run) if chosen.wait else 0
    except MobileClipError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except kfp_server_api.ApiException as error:
        sys.stderr.write(f"error: the server answers {error.status}: {' '.join(str(error.body).split())[:300]}\n")
        return 1


def _submit(chosen: argparse.Namespace) -> Any:
    canonical = defaults.read(chosen.defaults)
    sections = defaults.read(chosen.params)
    pipeline = catalog.build(chosen.pipeline, canonical, chosen.profile)
    digests = {"source": chosen.source_digest, "towers": chosen.towers_digest}
    given = arguments.build_remote(
        pipeline, sections, canonical, root=chosen.root, num_groups=chosen.groups, digests=digests,
        source=chosen.source, towers=chosen.towers,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        package = compile_package(
            chosen.pipeline, canonical, Path(folder) / f"{chosen.pipeline}.yaml", profile=chosen.profile
        )
        client = connect(chosen.host, chosen.namespace)
        version = upload(client, package, chosen.version or version_name(package))
    run = start(client, version, given, experiment=chosen.experiment)
    base = chosen.host.rstrip("/")
    print(f"version {version.display_name}: {base}/#/pipelines/details/{version.pipeline_id}")
    print(f"run {run.run_id}: {base}/#/runs/details/{run.run_id}")
    return run


def _wait(chosen: argparse.Namespace, run: Any) -> int:
    client = connect(chosen.host, chosen.namespace)
    done = client.wait_for_run_status(run, timeout=chosen.timeout or None, polling_interval=chosen.poll)
    print(f"run {run.run_id}: {str(done.state).lower()}")
    return 0 if str(done.state).upper() == "SUCCEEDED" else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.submit", description="Upload a pipeline version and start a run of it."
    )
    parser.add_argument("pipeline", choices=sorted(PIPELINES))
    parser.add_argument("--host", required=True, help="Kubeflow Pipelines API, such as http://localhost:8888")
    parser.add_argument("--namespace", default="", help="your namespace, where there are several")
    parser.add_argument("--experiment", default="mobileclip", help="created if it is new")
    parser.add_argument("--params", type=Path, default=defaults.PARAMS, help="sections of this run")
    parser.add_argument("--defaults", type=Path, default=defaults.PARAMS, help="sections of the uploaded version")
    parser.add_argument("--profile", choices=[p for p in PROFILES if p != "local"], default="gpu", help="resources")
    parser.add_argument(
        "--version", default="", help="name of the version; empty = project version, git revision, content"
    )
    parser.add_argument("--root", required=True, help="s3:// prefix, or a folder below /data; stage X writes ROOT/X")
    parser.add_argument("--source", default="", help="folder with pictures and captions, as the pods see it")
    parser.add_argument("--source-digest", default="", help="its digest; pods refuse another one")
    parser.add_argument("--towers", default="", help="folder with pretrained towers, as the pods see it")
    parser.add_argument("--towers-digest", default="", help="its digest; pods refuse another one")
    parser.add_argument("--groups", type=int, default=16, help="shares of the work of caption and reinforce")
    parser.add_argument("--wait", action="store_true", help="wait for the end of the run")
    parser.add_argument("--timeout", type=int, default=0, help="longest wait [s]; 0 = none")
    parser.add_argument("--poll", type=int, default=15, help="time between two looks [s]")
    return parser


if __name__ == "__main__":
    sys.exit(main())
