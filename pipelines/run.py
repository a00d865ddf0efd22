"""`python -m pipelines.run --local` or `--docker`: run a pipeline on this machine with the SDK's own runners."""

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from kfp import local

from mobileclip import stopping, storage
from mobileclip.errors import GateRefused, MobileClipError
from mobileclip.kubeflow import journal, sweep
from mobileclip.tracking import runs as tracking
from pipelines import arguments, catalog, defaults, runners
from pipelines.catalog import PIPELINES

logger = logging.getLogger(__name__)

ARTIFACTS = ".kubeflow"
"""Folder below the root for Kubeflow's own small artifacts and its cache."""


def run_local(
    name: str,
    params: Path,
    *,
    root: Path,
    source: str = "",
    towers: str = "",
    groups: int = 1,
    students: Path | None = None,
    caching: bool = True,
    docker: bool = False,
) -> None:
    """Run a pipeline on this machine; what an earlier run finished is not run again.

    Args:
        name: Pipeline.
        params: Params file.
        root: Folder of the run; stage X writes `ROOT/X`.
        source: Folder with pictures and captions.
        towers: Folder with pretrained towers.
        groups: Shares of the work of stages that fan out; two run at once.
        students: File of a sweep's students.
        caching: Serve unchanged tasks from the runner's cache.
        docker: In containers of the project's image (`MOBILECLIP_IMAGE`) and not as processes.

    Raises:
        MobileClipError: Params or inputs are wrong.
        RuntimeError: A task failed; its own words are in the log above.
    """
    sections = defaults.read(params)
    pipeline = catalog.build(name, sections, "local")
    root = root.resolve()
    external = {"source": _absolute(source), "towers": _absolute(towers)}
    variants = sweep.read(students, sections["distill"]) if students else None
    given = arguments.build(pipeline, sections, root=str(root), num_groups=groups, students=variants, **external)
    # The project's image holds Python whatever it is called; here the runner uses this very interpreter.
    warnings.filterwarnings("ignore", message="You may be attemping to run a task that uses custom or non-Python")
    storage.delete_tree(storage.join(str(root), journal.FOLDER, journal.run_id()))
    with tracking.parent_run(root.name):
        runner = runners.containers(root, external.values()) if docker else runners.processes()
        local.init(runner, pipeline_root=str(root / ARTIFACTS), enable_caching=caching)
        pipeline(**given)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one pipeline.

    Returns:
        0 done, 1 a task failed, 2 bad input, 3 the gate refused the promotion.
    """
    parser = argparse.ArgumentParser(prog="python -m pipelines.run", description="Run a pipeline on this machine.")
    parser.add_argument("pipeline", nargs="?", choices=sorted(PIPELINES), default="train")
    parser.add_argument("--local", action="store_true", help="as processes of this machine (the default)")
    parser.add_argument("--docker", action="store_true", help="in containers of the project's image")
    parser.add_argument("--params", type=Path, default=defaults.PARAMS, help="one section per stage")
    parser.add_argument("--root", type=Path, default=Path("runs/kfp"), help="stage X writes ROOT/X")
    parser.add_argument("--source", default="", help="folder with pictures and captions")
    parser.add_argument("--towers", default="", help="folder with pretrained towers, if a teacher uses some")
    parser.add_argument("--groups", type=int, default=1, help="shares of the work of caption and reinforce")
    parser.add_argument("--students", type=Path, help="sweep: YAML, NAME: what differs from the section distill")
    parser.add_argument("--no-cache", action="store_true", help="start every task; stages that are current stay")
    chosen = parser.parse_args(argv)
    _show_log()
    try:
        with stopping.terminable(interrupts=True, pass_on=True):  # Kubeflow's runner waits for its tasks' processes
            run_local(
                chosen.pipeline, chosen.params, root=chosen.root, source=chosen.source, towers=chosen.towers,
                groups=chosen.groups, students=chosen.students, caching=not chosen.no_cache,
                docker=chosen.docker,
            )  # fmt: skip
    except MobileClipError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except RuntimeError as error:
        sys.stderr.write(f"error: {error}; what is finished stays, run again to go on\n")
        return 1
    return _verdict(chosen.root)


def _show_log() -> None:
    """Log what Kubeflow's runner does: which tasks it serves from its cache it says to the root logger alone."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    for noisy in ("httpx", "alembic", "mlflow", "botocore", "urllib3", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _absolute(path: str) -> str:
    return str(Path(path).resolve()) if path and not storage.is_s3(path) else path


def _verdict(root: Path) -> int:
    report, promotion = root / "evaluate" / "report.html", root / "promote" / "metrics.json"
    if report.is_file():
        print(f"report: {report}")
    if promotion.is_file() and not json.loads(promotion.read_text())["promoted"]:
        print(f"the gate refused the promotion, see {root / 'promote' / 'model_card.md'}")
        return GateRefused.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
