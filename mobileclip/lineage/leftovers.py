"""What lies below a root that no finished stage needs any more, and what the rest takes."""

import json
import re
from dataclasses import dataclass

from mobileclip import manifest, storage
from mobileclip.chain import CHAIN
from mobileclip.lineage.record import RECORD

_GROUP = re.compile(r"(^|/)timings-\d{5}\.json$")
_COLUMN = re.compile(r"^[^/]+/[^/]+-[0-9a-f]{16}\.safetensors$")
_COMMIT = re.compile(r"^[^/]+/[^/]+\.[0-9a-f]{16}\.json$")
_CHECKPOINT = re.compile(r"(^|/)checkpoint/")


@dataclass(frozen=True)
class Leftover:
    """A file that can go.

    Attributes:
        path: Below the root.
        bytes: Its size.
        why: What it was.
    """

    path: str
    bytes: int
    why: str


def sizes(root: str) -> dict[str, int]:
    """Bytes below the folder of each stage that has one."""
    found: dict[str, int] = {}
    stages = {row.stage for row in CHAIN}
    for name, size in storage.tree_sizes(root).items():
        stage = name.split("/")[0]
        if stage in stages:
            found[stage] = found.get(stage, 0) + size
    return found


def leftovers(root: str) -> list[Leftover]:
    """Files of finished stages that nothing names any more.

    A stage without a record is left alone: what lies there is what a re-run goes on from. Columns and shards are kept
    where any manifest below the root lists them, whichever stage's folder they lie in.

    Args:
        root: Folder or `s3://` prefix of a run.
    """
    files = storage.tree_sizes(root)
    finished = {row.stage for row in CHAIN if f"{row.stage}/{RECORD}" in files}
    kept = _listed(root, files)
    found = []
    for name, size in sorted(files.items()):
        stage, _, inner = name.partition("/")
        if stage in finished and (why := _reason(root, inner, name, kept)):
            found.append(Leftover(name, size, why))
    return found


def _reason(root: str, inner: str, name: str, kept: set[str]) -> str:
    if _CHECKPOINT.search(inner):
        return "checkpoint of a finished training"
    if inner.endswith(".tmp"):
        return "half-written file"
    if _GROUP.search(inner):
        return "timings of a group that was merged"
    if name in kept:
        return ""
    if _COLUMN.search(inner):
        return "column file that no manifest lists"
    if inner.endswith(".tar"):
        return "shard that no manifest lists"
    if inner.endswith(".index"):
        return "index of a shard that no manifest lists"
    if _COMMIT.search(inner) and _named(root, name) not in kept | {""}:
        return "commit record of a column file that no manifest lists"
    return ""


def _listed(root: str, files: dict[str, int]) -> set[str]:
    """Shards and column files of every manifest below the root, as paths below it."""
    kept = set()
    for name in files:
        if name.rpartition("/")[2] != manifest.FILE_NAME:
            continue
        folder = storage.join(root, name).rpartition("/")[0]
        content = manifest.read(folder)
        paths = [path for shard in content.shards for path in (shard.path, shard.index_path)]
        paths += [part.path for column in content.columns for part in column.parts.values()]
        kept |= {storage.relative(storage.join(folder, path), root) for path in paths}
    return kept


def _named(root: str, name: str) -> str:
    """The file that a commit record is about, below the root; empty where it is no commit record."""
    try:
        found = json.loads(storage.read_bytes(storage.join(root, name)))
        return f"{name.partition('/')[0]}/{found['path']}"
    except (ValueError, KeyError, TypeError):
        return ""
