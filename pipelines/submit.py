"""`python -m pipelines.submit`: upload a pipeline version and start a run of it, or let it run again and again."""

import argparse
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobileclip.errors import ConfigError
from mobileclip.kubeflow import sweep
from pipelines import arguments, catalog, defaults, server
from pipelines.catalog import PIPELINES
from pipelines.compile import compile_package
from pipelines.resources import PROFILES
from pipelines.versions import version_name

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Check, compile, upload, start.

    Returns:
        0 submitted (with --wait: succeeded), 1 the run failed, 2 bad input; nothing is uploaded then.
    """
    chosen = _parser().parse_args(argv)
    return server.answered(lambda: _run(chosen))


def _run(chosen: argparse.Namespace) -> int:
    if chosen.wait and chosen.cron:
        raise ConfigError("wait: a recurring run never ends, want --wait or --cron.")
    run = _submit(chosen)
    return _wait(chosen, run) if chosen.wait else 0


def _submit(chosen: argparse.Namespace) -> Any:
    canonical = defaults.read(chosen.defaults)
    sections = defaults.read(chosen.params)
    pipeline = catalog.build(chosen.pipeline, canonical, chosen.profile)
    digests = {"source": chosen.source_digest, "towers": chosen.towers_digest}
    students = sweep.read(chosen.students, sections["distill"]) if chosen.students else None
    given = arguments.build_remote(
        pipeline, sections, canonical, root=chosen.root, num_groups=chosen.groups, digests=digests, students=students,
        recurring=bool(chosen.cron), source=chosen.source, towers=chosen.towers,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        package = compile_package(
            chosen.pipeline, canonical, Path(folder) / f"{chosen.pipeline}.yaml",
            profile=chosen.profile, caching=not chosen.cron,
        )  # fmt: skip
        client = server.connect(chosen.host, chosen.namespace)
        version = server.upload(client, package, chosen.version or version_name(package))
    base = chosen.host.rstrip("/")
    print(f"version {version.display_name}: {base}/#/pipelines/details/{version.pipeline_id}")
    if chosen.cron:
        name = chosen.name or f"{chosen.pipeline} {chosen.root}"
        run = server.schedule(client, version, given, experiment=chosen.experiment, cron=chosen.cron, name=name)
        print(f"recurring run {run.recurring_run_id}: {base}/#/recurringrun/details/{run.recurring_run_id}")
        return run
    run = server.start(client, version, given, experiment=chosen.experiment)
    print(f"run {run.run_id}: {base}/#/runs/details/{run.run_id}")
    return run


def _wait(chosen: argparse.Namespace, run: Any) -> int:
    client = server.connect(chosen.host, chosen.namespace)
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
    parser.add_argument("--students", type=Path, help="sweep: YAML, NAME: what differs from the section distill")
    parser.add_argument("--cron", default="", help="run again and again: six fields, seconds first ('0 0 2 * * *')")
    parser.add_argument("--name", default="", help="of the recurring run; one of that name is replaced")
    parser.add_argument("--wait", action="store_true", help="wait for the end of the run")
    parser.add_argument("--timeout", type=int, default=0, help="longest wait [s]; 0 = none")
    parser.add_argument("--poll", type=int, default=15, help="time between two looks [s]")
    return parser


if __name__ == "__main__":
    sys.exit(main())
