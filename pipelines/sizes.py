"""`python -m pipelines.sizes --shards 65536`: sizes of packages and parameters, against what the platform takes."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from mobileclip.errors import MobileClipError
from pipelines import arguments, defaults
from pipelines.catalog import PIPELINES
from pipelines.compile import compile_package

MAX_PACKAGE = 32 * 2**20
"""What the API server takes as a package [bytes]."""
MAX_OBJECT = 3 * 2**19
"""What etcd takes as one object, such as the Argo Workflow of a run [bytes]."""
WORKFLOW_FACTOR = 2.85
"""A run's Workflow object over its package (kubeflow/pipelines issue 13738)."""


@dataclass(frozen=True)
class Size:
    """How large a pipeline is.

    Attributes:
        name: Pipeline.
        package: Its package [bytes].
        tasks: Tasks in all its graphs; a loop counts once.
        parameters: A run's parameters with every section changed and all groups named [bytes].
        pods: Pods of a run.
        shards: Shards of the largest group.
    """

    name: str
    package: int
    tasks: int
    parameters: int
    pods: int
    shards: int

    @property
    def workflow(self) -> int:
        """Estimate of the Workflow object [bytes]."""
        return round(self.package * WORKFLOW_FACTOR)


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
    graphs = [document["root"], *document["components"].values()]
    tasks = [task for graph in graphs if "dag" in graph for task in graph["dag"]["tasks"].values()]
    loops = sum("parameterIterator" in task for task in tasks)
    inputs = document["root"]["inputDefinitions"]["parameters"]
    names = arguments.groups(groups)
    given = {key: sections[key] for key in inputs if key in sections} | {"groups": names}
    pods = sum("executorLabel" in document["components"][t["componentRef"]["name"]] for t in tasks) + loops * (
        groups - 1
    )
    return Size(name, len(text.encode()), len(tasks), arguments.size(given), pods, -(-shards // groups))


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table.

    Returns:
        0, or 1 where something is larger than the platform takes.
    """
    parser = argparse.ArgumentParser(prog="python -m pipelines.sizes", description=__doc__)
    parser.add_argument("--shards", type=int, default=65_536, help="shards of the data set")
    parser.add_argument("--groups", type=int, default=64, help="shares of the work of stages that fan out")
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
    table.add_row("limit", f"{MAX_PACKAGE:,}", f"{MAX_OBJECT:,}", "", "", "", f"{arguments.MAX_BYTES:,}")
    Console(width=110).print(table)
    print("Parameters: with every section changed; a run sends those alone that differ from the version's defaults.")
    return int(any(row.package > MAX_PACKAGE or row.workflow > MAX_OBJECT for row in rows))


if __name__ == "__main__":
    sys.exit(main())
