"""The record of a finished stage: digests of its code, config, inputs and files, and whether it still holds.

A record holds no time, host or absolute path, so the same inputs give the same record through every door.
"""

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mobileclip import __version__, manifest, storage
from mobileclip.config import Section
from mobileclip.errors import DataError, IntegrityError
from mobileclip.lineage import code
from mobileclip.storage.walk import is_hidden, walk

RECORD = "record.json"
# Files that may differ between two equal runs (times, registry answers); they are kept out of the record.
VOLATILE = frozenset({RECORD, "timings.json", "registry.json", "release.html"})


def build_record(stage: str, config: Section, out: str, inputs: Mapping[str, str]) -> dict[str, Any]:
    """The lineage record of a finished stage."""
    return {
        "stage": stage,
        "version": __version__,
        "code": code.code_digest(stage),
        "code_files": code.code_files(stage),
        "config": config_digest(config.model_dump(mode="json")),
        "inputs": {name: input_digest(uri, follow_links=_follows(config)) for name, uri in sorted(inputs.items())},
        "files": _file_digests(out),
    }


def is_current(stage: str, config: Section, out: str, inputs: Mapping[str, str]) -> bool:
    """Whether `out` already holds this stage's result for this code, config and these inputs, and holds it whole.

    `mobileclip.lineage.state` says why not.
    """
    uri = storage.join(out, RECORD)
    if not storage.exists(uri):
        return False
    try:
        record = json.loads(storage.read_bytes(uri))
        wanted = {name: input_digest(value, follow_links=_follows(config)) for name, value in sorted(inputs.items())}
        same = (
            record["stage"] == stage
            and record["code"] == code.code_digest(stage)
            and record["config"] == config_digest(config.model_dump(mode="json"))
            and record["inputs"] == wanted
        )
        if same:
            for name, sha256 in record["files"].items():
                storage.read_bytes(storage.join(out, name), sha256=sha256)
    except (DataError, IntegrityError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return bool(same)


def input_digest(uri: str, *, follow_links: bool = False) -> str:
    """Digest of a stage input: its record's or manifest's, else the tree of its files.

    Raises:
        DataError: Nothing is there.
    """
    for name in (RECORD, manifest.FILE_NAME):
        if storage.exists(storage.join(uri, name)):
            return hashlib.sha256(storage.read_bytes(storage.join(uri, name))).hexdigest()
    path = Path(uri)
    names = storage.list_files(uri) if storage.is_s3(uri) else []
    if names:
        return config_digest({name: _stream_digest(storage.join(uri, name)) for name in names if not is_hidden(name)})
    if storage.is_s3(uri) or not path.exists():
        raise DataError(f"data: nothing at '{uri}', want a folder or the output of an earlier stage.")
    if path.is_file():
        return _raw_digest(path)
    # A raw input folder: names and sizes and times would miss an edit between runs, so hash the bytes.
    found = [one for one in walk(path, follow_links=follow_links) if one.path.is_file()]
    return config_digest({one.name: _raw_digest(one.path) for one in found})


def _follows(config: Section) -> bool:
    return bool(getattr(config, "follow_links", False))


def _raw_digest(path: Path) -> str:
    """sha256 of a file of a raw input, hashed once per process: several stages of a run ask for the same one."""
    found = path.stat()
    return _hash_once(path, found.st_size, found.st_mtime_ns, found.st_ino)


@functools.cache
def _hash_once(path: Path, *_: int) -> str:
    return storage.digest_file(path)


def _stream_digest(uri: str) -> str:
    digest = hashlib.sha256()
    with storage.open_stream(uri) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _file_digests(out: str) -> dict[str, str]:
    if storage.exists(storage.join(out, manifest.FILE_NAME)):
        # The manifest holds the digest of every shard and column; hashing terabytes again proves nothing more.
        names = [manifest.FILE_NAME, "config.json", "metrics.json"]
        return {n: hashlib.sha256(storage.read_bytes(storage.join(out, n))).hexdigest() for n in names}
    root = storage.local_dir(out)
    files = sorted(p for p in root.rglob("*") if p.is_file() and p.name not in VOLATILE and p.suffix != ".tmp")
    return {p.relative_to(root).as_posix(): storage.digest_file(p) for p in files}


def config_digest(value: Any) -> str:
    """sha256 of a value as canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
