"""Where records lie: found by their digest among the folders around a stage, never by a path written down."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mobileclip import manifest, storage
from mobileclip.config import STAGES
from mobileclip.errors import MobileClipError
from mobileclip.lineage import record as records

_MAX_DEPTH = 6  # folders between a file and its stage's record


def surroundings(folder: str) -> list[str]:
    """Where earlier stages usually lie: beside a stage's folder, beside its run, or in the run above its sweep."""
    return [storage.join(folder, *[".."] * levels) for levels in (3, 2, 1)]


def record_folder(target: str) -> str:
    """The stage folder at or above a path; empty where there is none."""
    folder = storage.join(target)
    for _ in range(_MAX_DEPTH):
        if storage.exists(storage.join(folder, records.RECORD)):
            return folder
        folder = storage.join(folder, "..")
    return ""


def index(roots: Sequence[str]) -> dict[str, str]:
    """Folder by digest of its record, for the roots, the folders right below and their stages; the last root wins."""
    found: dict[str, str] = {}
    for root in roots:
        for folder in _stage_folders(root):
            uri = storage.join(folder, records.RECORD)
            with contextlib.suppress(OSError):  # someone else's folder
                if storage.exists(uri):
                    found[hashlib.sha256(storage.read_bytes(uri)).hexdigest()] = folder
    return found


def _stage_folders(root: str) -> Iterator[str]:
    """Where records may lie: in the root, below it, and in the runs beside a run, as a student may be another run's."""
    yield storage.join(root)
    if storage.is_s3(root):  # listing a bucket's prefix may take hours, so there only the chain's own names are tried
        yield from (storage.join(root, name) for name in STAGES)
        return
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = [name for name in storage.list_names(root) if not name.startswith(".")]
    folders = [(name, storage.join(root, name)) for name in names]
    yield from (folder for _, folder in folders)
    for name, folder in folders:
        if name not in STAGES and Path(folder).is_dir():
            with contextlib.suppress(OSError):
                yield from (storage.join(folder, inner) for inner in storage.list_names(folder) if inner in STAGES)


def part_of(digest: str, known: Mapping[str, str]) -> str:
    """The record above a subfolder with this digest: a stage may be given `distill/student` instead of `distill`.

    The record names the subfolder's files with their digests, so nothing is hashed to find it.
    """
    for record, folder in known.items():
        parts: dict[str, dict[str, str]] = {}
        for name, sha256 in _files(folder).items():
            top, slash, rest = name.partition("/")
            if slash and not rest.rpartition("/")[2].startswith("."):
                parts.setdefault(top, {})[rest] = sha256
        if any(manifest.spec_digest(files) == digest for files in parts.values()):
            return record
    return ""


def _files(folder: str) -> dict[str, str]:
    """Digests by name that a stage's record has; none where the file of that name is no record of ours."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        record = json.loads(storage.read_bytes(storage.join(folder, records.RECORD)))
        return {str(name): str(sha256) for name, sha256 in record["files"].items()}
    return {}


def raw_folder(digest: str, roots: Sequence[str], known: Mapping[str, str]) -> str:
    """The root that holds exactly these raw files; empty where none does."""
    for root in roots:
        if any(_within(folder, root) for folder in known.values()):
            continue  # a folder of runs is no raw input, and hashing it would read everything that was ever run there
        try:
            if records.input_digest(root) == digest:
                return root
        except MobileClipError:
            continue
    return ""


def _within(folder: str, root: str) -> bool:
    inner, outer = (uri if storage.is_s3(uri) else str(Path(uri).resolve()) for uri in (folder, root))
    return f"{inner}/".startswith(f"{outer.rstrip('/')}/")
