"""What the machine must have: the packages of exporters and tracking, exporters' environments, disk."""

import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from mobileclip import storage
from mobileclip.config import Params
from mobileclip.errors import MobileClipError
from mobileclip.formats import environment
from mobileclip.formats.registry import FORMATS
from mobileclip.planning import cost
from mobileclip.preflight.facts import Facts
from mobileclip.preflight.problem import Problem, unknown


def check(params: Params, *, facts: Facts | None = None, root: str = "") -> Iterator[Problem]:
    """Problems of this machine."""
    yield from _exporters(params)
    if os.environ.get("MOBILECLIP_TRACKING", "").lower() != "off" and find_spec("mlflow") is None:
        yield Problem("promote", "no package 'mlflow'", "pip install 'mobileclip-pipelines[tracking]'")
    if facts is not None and root and not storage.is_s3(root):
        yield from _disk(params, facts, Path(root))


def _exporters(params: Params) -> Iterator[Problem]:
    export = params.export
    for name in export.formats:
        row = FORMATS[name]
        missing = [package for package in row.packages if find_spec(package) is None]
        if missing:
            yield Problem("export.formats", f"'{name}', whose package '{missing[0]}' is not installed",
                          f"pip install 'mobileclip-pipelines[{row.extra}]'")  # fmt: skip
        elif row.environment:
            try:
                environment.python(row.environment)
            except MobileClipError:
                yield Problem("export.formats", f"'{name}', whose environment is not made",
                              f"mobileclip environment {row.environment}")  # fmt: skip
    possible = sorted({p for name in export.formats for kinds in FORMATS[name].precisions.values() for p in kinds})
    for precision in export.precisions:
        if precision not in possible:
            yield unknown("export.precisions", precision, possible, f"a precision of {', '.join(export.formats)}")
    if export.bundle == "page" and "onnx" not in export.formats:
        yield Problem("export.bundle", "'page'", "'onnx' among export.formats: the page runs nothing else", "programs")


def _disk(params: Params, facts: Facts, root: Path) -> Iterator[Problem]:
    if not params.reinforce.teachers:
        return
    samples = sum(facts.samples.get(split, 0) for split in params.reinforce.splits)
    if not samples:
        return
    needed = cost.plan(cost.demand_of(params, samples)).added_bytes
    place = next(folder for folder in (root, *root.resolve().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        yield Problem(
            "reinforce", f"{free / 1e9:,.1f} GB free in '{root}'", f"about {needed / 1e9:,.1f} GB for its columns"
        )
