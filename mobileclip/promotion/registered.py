"""Traces that begin in the registry: a version's own records, and a file that is known by its bytes alone.

A program on a phone, or a bundle that someone sent, has no record beside it. `promote` tags every version with the
digests of its programs and keeps the records of all stages behind them, so the bytes lead to the version and on.
"""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mobileclip import storage
from mobileclip.errors import DataError
from mobileclip.lineage import places
from mobileclip.lineage import trace as traces
from mobileclip.lineage.trace import Trace
from mobileclip.promotion import registry, student_model
from mobileclip.promotion.registry import Registry, Version
from mobileclip.tracking import runs as tracking

PROGRAM_TAG = "program."
"""Before a program's digest; the value is its path in the export."""
STUDENT_TAG = "student.sha256"


def trace(target: str, *, roots: Sequence[str] = (), files: bool = True) -> Trace:
    """Follow a file, a stage folder or a registered model (`models:/NAME@champion`) back to the data.

    A program or bundle that lies alone, as on a phone, is found by its bytes among the registered versions.

    Args:
        target: Local path, `s3://` URI or `models:/` URI.
        roots: Further folders in whose subfolders earlier stages may lie, or raw inputs themselves.
        files: Hash shards and columns anew as well, not only records, models and programs.

    Raises:
        DataError: No record is found at or above the target, and no registered version knows it.
    """
    registered = target.startswith("models:/")
    folder = "" if registered else places.record_folder(target)
    if not folder:
        return (trace_version if registered else trace_file)(target, roots, files=files)
    return traces.trace_folder(target, folder, roots=roots, files=files)


def trace_version(target: str, roots: Sequence[str], *, files: bool) -> Trace:
    """From `models:/NAME/VERSION` or `models:/NAME@ALIAS` back to the data.

    Raises:
        DataError: There is no such version, or it holds no record of its student.
    """
    name, _, reference = target.removeprefix("models:/").replace("@", "/").partition("/")
    where = registry.connect(name)
    version = where.version(reference or registry.CHAMPION)
    found = _follow(target, where, version, "student", roots, files=files)
    weights = storage.digest_file(student_model.download(name, version.number, student_model.WEIGHTS))
    if weights not in found.nodes[0].record["files"].values():
        found.nodes[0].problems.append(f"the weights in the registry ({weights[:12]}) are not those of the record")
    return found


def trace_file(target: str, roots: Sequence[str], *, files: bool) -> Trace:
    """From a program or bundle that lies alone back to the data, by its bytes.

    Raises:
        DataError: It is no file, or no registered version knows it.
    """
    if storage.is_s3(target) or not Path(target).is_file():
        raise DataError(f"trace: no record.json at or above '{target}', want something a stage wrote.")
    programs = _programs(Path(target))
    where, version, shared = _owner(target, programs)
    found = _follow(target, where, version, "programs", roots, files=files)
    listed = found.nodes[0].record["files"]
    for path, sha256 in programs.items():
        if sha256 not in listed.values():
            found.nodes[0].problems.append(f"'{path}' ({sha256[:12]}) is no program of version {version.number}")
    more = f", the newest of {shared} with these bytes" if shared > 1 else ""
    shown = f"{target} (version {version.number} of {where.name}{more})"
    return Trace(shown, found.nodes, found.outside, found.lost)


def _programs(path: Path) -> dict[str, str]:
    """Digests by path: of the file itself, or of every program in a bundle, each computed anew."""
    if path.suffix != ".zip" or not zipfile.is_zipfile(path):
        return {path.name: storage.digest_file(path)}
    from mobileclip.formats.bundle import archive as bundle

    return {program.path: program.sha256 for program in bundle.verify(path).programs}


def _owner(target: str, programs: Mapping[str, str]) -> tuple[Registry, Version, int]:
    """The newest registered version that most of the programs belong to, and how many versions share as many."""
    if not tracking.has_store():
        raise DataError(
            f"trace: no record.json at or above '{target}' and no registry to look it up in, want something a stage "
            "wrote, or MLFLOW_TRACKING_URI."
        )
    wanted = {f"{PROGRAM_TAG}{sha256}" for sha256 in programs.values()}
    found = registry.having(wanted)
    if not found:
        digest = next(iter(programs.values()), "none")
        raise DataError(
            f"trace: no record.json at or above '{target}' and no registered version with its sha256 {digest[:12]}, "
            "want something a stage wrote."
        )
    # Students may share a tower, and then its program.
    most = max(len(wanted & version.tags.keys()) for _, version in found)
    owners = [pair for pair in found if len(wanted & pair[1].tags.keys()) == most]
    return *owners[0], len(owners)


def _follow(target: str, where: Registry, version: Version, start: str, roots: Sequence[str], *, files: bool) -> Trace:
    copies = student_model.download(where.name, version.number, "evidence") / traces.COPIES
    neighbors = places.index([str(copies), *roots])
    first = version.tags.get(f"record.{start}", "")
    if first not in neighbors:
        raise DataError(f"trace: version {version.number} of '{where.name}' holds no record of its {start}.")
    return traces.follow(target, neighbors, first, roots, files=files)


def program_tags(contract: Mapping[str, Any]) -> dict[str, str]:
    """Tags by which `trace_file` finds a version; of an export's `contract.json`."""
    return {f"{PROGRAM_TAG}{program['sha256']}": str(program["path"]) for program in contract.get("programs", [])}
