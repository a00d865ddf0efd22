"""`python -m pipelines.sizes --shards 65536`: sizes of packages and parameters, against what the platform takes."""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from mobileclip.errors import ConfigError, MobileClipError
from pipelines import arguments, defaults
from pipelines.catalog import PIPELINES
from pipelines.compile import compile_package

MAX_PACKAGE = 32 * 2**20
"""What the API server takes as a package [bytes]."""
MAX_WORKFLOW = 2**20
"""What Argo keeps as one object, a run's specification and its status, compressed, of every pod [bytes]."""
# Measured on a real backend (KFP 2.17, Argo 4.0): pipeline `train` of 117 kB, 4 and 64 groups.
_SPECIFICATION = 1.36
"""A run's specification over its package."""
_STATUS = 1.32
"""Compressed status of everything but the groups, over the package."""
_GROUP = 5_650
"""Compressed status of one group of one loop: an iteration's driver, the task's driver, its executor [bytes]."""
_STUDENTS = 8
"""Iterations of a loop that is not over groups: students of a sweep."""
_RESERVE = 0.85
"""Share of the limit that a run without a failure may take: every further attempt of a pod adds a status of its own."""


@dataclass(frozen=True)
class Size:
    """How large a pipeline is.

    Attributes:
        name: Pipeline.
        package: Its package [bytes].
        tasks: Tasks in all its graphs; a loop counts once.
        loops: Loops over groups among them.
        graphs: Graphs with a driver of their own, the pipeline's and those of loops and exit handler.
        groups: Shares of the work of stages that fan out.
        parameters: A run's parameters with every section changed and all groups named [bytes].
        shards: Shards of the largest group.
    """

    name: str
    package: int
    tasks: int
    loops: int
    graphs: int
    groups: int
    parameters: int
    shards: int

    @property
    def pods(self) -> int:
        """Pods of a run: a driver a graph; driver and executor a task; three an iteration of a loop."""
        return self.graphs + 2 * self.tasks + 3 * self.loops * self.groups

    @property
    def workflow(self) -> int:
        """Estimate of the Workflow object at the end of a run without a failure [bytes]."""
        return workflow_bytes(self.package, self.loops, self.groups)


def workflow_bytes(package: int, loops: int, groups: int) -> int:
    """Estimate of a run's Workflow object [bytes], within 15 % of what was measured."""
    return round((_SPECIFICATION + _STATUS) * package) + loops * groups * _GROUP


def check_groups(package: Path, groups: int) -> None:
    """Refuse more groups than a run's Workflow object holds: it would end after the work is paid for.

    Args:
        package: The compiled package.
        groups: Shares of the work of stages that fan out.

    Raises:
        ConfigError: There are too many; the sentence names how many fit.
    """
    text = package.read_text(encoding="utf-8")
    loops, size = len(_loops(next(yaml.safe_load_all(text)))), len(text.encode())
    over_groups = "groups" in next(yaml.safe_load_all(text))["root"]["inputDefinitions"]["parameters"]
    if loops and over_groups and workflow_bytes(size, loops, groups) > _RESERVE * MAX_WORKFLOW:
        most = int((_RESERVE * MAX_WORKFLOW - workflow_bytes(size, loops, 0)) / (loops * _GROUP))
        raise ConfigError(
            f"groups: got {groups}, want at most {most}: Argo keeps the status of all pods of a run in one object of "
            f"{MAX_WORKFLOW} bytes."
        )


def _tasks(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    graphs = [document["root"], *document["components"].values()]
    return [task for graph in graphs if "dag" in graph for task in graph["dag"]["tasks"].values()]


def _loops(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [task for task in _tasks(document) if "parameterIterator" in task]


def measure(name: str, *, profile: str, shards: int, groups: int) -> Size:
    """Compile a pipeline and measure it.

    Args:
        name: Pipeline.
        profile: Column of the resource table.
        shards: Shards of the data set.
        groups: Shares of the work of stages that fan out.

    Raises:
        ConfigError: `groups` is out of range.
    """
    sections = defaults.read()
    with tempfile.TemporaryDirectory() as folder:
        text = compile_package(name, sections, Path(folder) / "package.yaml", profile=profile).read_text()
    document = next(yaml.safe_load_all(text))
    components, loops = document["components"], _loops(document)
    iterated = sum(len(components[task["componentRef"]["name"]]["dag"]["tasks"]) for task in loops)
    executors = sum("executorLabel" in components[task["componentRef"]["name"]] for task in _tasks(document))
    graphs = 1 + sum("dag" in component for component in components.values())
    inputs = document["root"]["inputDefinitions"]["parameters"]
    given: dict[str, Any] = {key: sections[key] for key in inputs if key in sections}
    if "groups" in inputs:
        given["groups"] = arguments.groups(groups, one_job=not loops)
    iterations = groups if "groups" in inputs else _STUDENTS
    return Size(
        name, len(text.encode()), executors - iterated, len(loops), graphs, iterations, arguments.size(given),
        -(-shards // groups),
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table.

    Returns:
        0, or 1 where something is larger than the platform takes.
    """
    parser = argparse.ArgumentParser(prog="python -m pipelines.sizes", description=__doc__)
    parser.add_argument("--shards", type=int, default=65_536, help="shards of the data set")
    parser.add_argument("--groups", type=int, default=16, help="shares of the work of stages that fan out")
    parser.add_argument("--profile", default="gpu", help="column of the resource table")
    chosen = parser.parse_args(argv)
    try:
        rows = [measure(n, profile=chosen.profile, shards=chosen.shards, groups=chosen.groups) for n in PIPELINES]
    except MobileClipError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    heads = ("pipeline", "package [B]", "workflow [B]", "tasks", "pods", "shards/group", "parameters [B]")
    table = Table(*heads, box=None, title=f"{chosen.shards} shards in {chosen.groups} groups")
    for row in rows:
        cells = (row.package, row.workflow, row.tasks, row.pods, row.shards, row.parameters)
        table.add_row(row.name, *(f"{cell:,}" for cell in cells))
    table.add_row("limit", f"{MAX_PACKAGE:,}", f"{MAX_WORKFLOW:,}", "", "", "", f"{arguments.MAX_BYTES:,}")
    Console(width=110).print(table)
    print("Parameters: with every section changed; a run sends those alone that differ from the version's defaults.")
    return int(any(row.package > MAX_PACKAGE or row.workflow > MAX_WORKFLOW for row in rows))


if __name__ == "__main__":
    sys.exit(main())
