"""`python -m pipelines.submit`: upload a pipeline version and start a run of it, or let it run again and again."""

import argparse
import logging
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mobileclip.config import STAGES, Params
from mobileclip.errors import ConfigError
from mobileclip.kubeflow import journal, sweep
from mobileclip.preflight.problem import of_stages, report
from mobileclip.preflight.sections import check as check_sections
from pipelines import arguments, catalog, defaults, server, sizes, waiting
from pipelines.api import Api, connect
from pipelines.catalog import PIPELINES
from pipelines.compile import compile_package
from pipelines.resources import PROFILES
from pipelines.versions import version_name

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Check, compile, upload, start.

    Returns:
        0 submitted (with --wait: succeeded), 1 the run failed or the server refuses, 2 bad input or no login (nothing
        is uploaded then), 4 the run was canceled or taken over, 5 it still runs after --timeout, 6 the server is away.
    """
    chosen = _parser().parse_args(argv)
    return server.answered(lambda: _run(chosen))


def _run(chosen: argparse.Namespace) -> int:
    if chosen.cron and (chosen.wait or chosen.attempts > 1):
        raise ConfigError("wait: a recurring run never ends, want --wait or --cron.")
    if chosen.attempts < 1 or (chosen.attempts > 1 and not chosen.wait):
        raise ConfigError(f"attempts: got {chosen.attempts}, want at least 1, and --wait with more than one.")
    again = _submit(chosen)
    for left in range(chosen.attempts - 1, -1, -1):
        server_api, run = again()
        if not chosen.wait:
            return 0
        end = waiting.wait(server_api, run, root=chosen.root, poll=chosen.poll, timeout=chosen.timeout)
        if end.report:
            print(journal.render(end.report))
        print(f"run {run['run_id']}: {end.outcome}", flush=True)
        if not end.may_pass or not left:
            break
        print(f"attempt {chosen.attempts - left + 1} of {chosen.attempts} resumes from what is committed", flush=True)
    return waiting.EXIT[end.outcome]


def _submit(chosen: argparse.Namespace) -> Callable[[], tuple[Api, Any]]:
    """Upload what is to run; what comes back starts it, as often as it is called."""
    canonical = defaults.read(chosen.defaults)
    sections = defaults.read(chosen.params)
    pipeline = catalog.build(chosen.pipeline, canonical, chosen.profile)
    stages = set(pipeline.component_spec.inputs or {}) & set(STAGES)
    report(of_stages(check_sections(Params.model_validate(sections)), stages))  # the pods see data and models, not we
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
        sizes.check_groups(package, chosen.groups)
        client = connect(chosen.host, chosen.namespace)
        version = server.upload(client, package, chosen.version or version_name(package))
    print(f"version {version['display_name']}: {client.host}/#/pipelines/details/{version['pipeline_id']}")
    name = chosen.name or f"{chosen.pipeline} {chosen.root}"
    if chosen.cron:
        return lambda: (client, _schedule(chosen, client, version, given, name))
    return lambda: (client, _start(chosen, client, version, given, name))


def _schedule(chosen: argparse.Namespace, client: Api, version: Any, given: Any, name: str) -> Any:
    run = server.schedule(client, version, given, experiment=chosen.experiment, cron=chosen.cron, name=name)
    print(f"recurring run {run['recurring_run_id']}: {client.host}/#/recurringrun/details/{run['recurring_run_id']}")
    return run


def _start(chosen: argparse.Namespace, client: Api, version: Any, given: Any, name: str) -> Any:
    run = server.start(client, version, given, experiment=chosen.experiment, name=name)
    print(f"run {run['run_id']}: {client.host}/#/runs/details/{run['run_id']}", flush=True)
    return run


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
    parser.add_argument(
        "--name", default="", help="of the run (default: PIPELINE ROOT); replaces a recurring run of that name"
    )
    parser.add_argument("--wait", action="store_true", help="wait for the end of the run")
    parser.add_argument(
        "--attempts", type=int, default=1, help="with --wait: starts of a run that fails; each goes on from the last"
    )
    parser.add_argument("--timeout", type=float, default=0, help="longest wait [s]; 0 = none")
    parser.add_argument("--poll", type=float, default=15, help="time between two looks [s]")
    return parser


if __name__ == "__main__":
    sys.exit(main())
