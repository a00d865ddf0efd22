"""`python -m pipelines.submit`: upload a pipeline version and start a run of it, or let it run again and again."""

import argparse
import logging
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mobileclip.errors import ConfigError
from mobileclip.kubeflow import sweep
from pipelines import arguments, catalog, defaults, server, sizes
from pipelines.catalog import PIPELINES
from pipelines.compile import compile_package
from pipelines.resources import PROFILES
from pipelines.versions import version_name

logger = logging.getLogger(__name__)

_EXIT = {"succeeded": 0, "failed": 1, "skipped": 1, "canceled": 4}


def main(argv: Sequence[str] | None = None) -> int:
    """Check, compile, upload, start.

    Returns:
        0 submitted (with --wait: succeeded), 1 the run failed, 2 bad input (nothing is uploaded then), 4 the run was
        canceled, 5 it was still running at the timeout.
    """
    chosen = _parser().parse_args(argv)
    return server.answered(lambda: _run(chosen))


def _run(chosen: argparse.Namespace) -> int:
    if chosen.wait and chosen.cron:
        raise ConfigError("wait: a recurring run never ends, want --wait or --cron.")
    if chosen.attempts < 1 or (chosen.attempts > 1 and not chosen.wait):
        raise ConfigError(f"attempts: got {chosen.attempts}, want at least 1, and --wait where it is more.")
    restart = _submit(chosen)
    return _wait(chosen, restart) if chosen.wait else 0


def _submit(chosen: argparse.Namespace) -> Callable[[], Any]:
    """Upload and start; what starts a run of the same version with the same arguments, the first of which has begun."""
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
        sizes.check_groups(package, chosen.groups)
        client = server.connect(chosen.host, chosen.namespace)
        version = server.upload(client, package, chosen.version or version_name(package))
    base = chosen.host.rstrip("/")
    print(f"version {version.display_name}: {base}/#/pipelines/details/{version.pipeline_id}")
    name = chosen.name or f"{chosen.pipeline} {chosen.root}"
    if chosen.cron:
        run = server.schedule(client, version, given, experiment=chosen.experiment, cron=chosen.cron, name=name)
        print(f"recurring run {run.recurring_run_id}: {base}/#/recurringrun/details/{run.recurring_run_id}")
        return lambda: run

    def begin() -> Any:
        run = server.start(client, version, given, experiment=chosen.experiment, name=name)
        print(f"run {run.run_id}: {base}/#/runs/details/{run.run_id}")
        return run

    first = [begin()]
    return lambda: first.pop() if first else begin()


def _wait(chosen: argparse.Namespace, begin: Callable[[], Any]) -> int:
    """Wait for a run that succeeds, at most `--attempts` of them: each resumes from what is committed."""
    client = server.connect(chosen.host, chosen.namespace)
    for attempt in range(1, chosen.attempts + 1):
        run = begin()
        state = server.wait(
            client, run.run_id, timeout=chosen.timeout, poll=chosen.poll, report=lambda line: print(line, flush=True)
        )
        print(f"run {run.run_id}: {state}")
        if state == "failed" and attempt < chosen.attempts:
            print(f"attempt {attempt + 1} of {chosen.attempts} resumes from what is committed")
            continue
        if state not in _EXIT:
            print(f"run {run.run_id} is still {state} after {chosen.timeout} s; it goes on")
        return _EXIT.get(state, 5)
    return 1


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
    parser.add_argument("--name", default="", help="of the run; a recurring run of that name is replaced")
    parser.add_argument("--wait", action="store_true", help="wait for the end of the run")
    parser.add_argument("--attempts", type=int, default=1, help="with --wait: runs started in turn while one fails")
    parser.add_argument("--timeout", type=float, default=0, help="longest wait [s]; 0 = none")
    parser.add_argument("--poll", type=float, default=15, help="time between two looks [s]")
    return parser


if __name__ == "__main__":
    sys.exit(main())
