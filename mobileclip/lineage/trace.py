"""From a file back to where it came from: every stage, its inputs by digest, and the licenses along the way.

Each stage leaves a `record.json` with the digests of its code, config, inputs and files. An input's digest is the
digest of the record of the stage that made it, so records form a chain that holds no path and moves with its folders:
`trace` finds the next record by its digest among the neighboring folders, and computes every digest anew.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mobileclip import manifest, storage
from mobileclip.chain import step
from mobileclip.config import STAGES
from mobileclip.lineage import places
from mobileclip.lineage import record as records
from mobileclip.lineage.contents import describe
from mobileclip.lineage.licenses import Terms, Use, binding

logger = logging.getLogger(__name__)

COPIES = "records"
_CARD = "model.json"


@dataclass(frozen=True)
class Node:
    """One stage of the chain.

    Attributes:
        stage: Its name.
        uri: Where its outputs lie.
        digest: sha256 of its record.
        record: The record.
        checked: Digests that were computed anew and agree.
        absent: Files that are named but not at hand (a copy of the record alone).
        problems: One sentence per digest that disagrees.
        uses: Licensed things that came in here.
        holds: What lies in it, in words.
    """

    stage: str
    uri: str
    digest: str
    record: dict[str, Any]
    checked: int = 0
    absent: int = 0
    problems: list[str] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)
    holds: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Trace:
    """The chain behind a file.

    Attributes:
        target: What was asked for.
        nodes: The stage that made it first, then the stages behind it.
        outside: Inputs without a record (raw data, pretrained weights): (stage, name, digest, uri or empty).
        lost: Inputs that an earlier stage must have made but that were not found: (stage, name, digest).
    """

    target: str
    nodes: list[Node]
    outside: list[tuple[str, str, str, str]]
    lost: list[tuple[str, str, str]]

    @property
    def uses(self) -> list[Use]:
        """Every licensed thing of the chain, each once with the stage that brought it in, in the chain's order."""
        nodes = sorted(self.nodes, key=lambda node: STAGES.index(node.stage))
        found: dict[tuple[str, str], Use] = {}
        for node in nodes:
            for use in node.uses:  # later manifests list the columns of earlier ones again
                found.setdefault((use.what, use.license), use)
        return list(found.values())

    @property
    def terms(self) -> Terms:
        """What the strictest license of the chain allows."""
        return binding(self.uses)[0]

    @property
    def problems(self) -> list[str]:
        """Everything that disagrees or is lost."""
        lost = [f"{stage}: input '{name}' ({digest[:12]}) was not found" for stage, name, digest in self.lost]
        return [f"{node.stage}: {problem}" for node in self.nodes for problem in node.problems] + lost


def trace_folder(target: str, folder: str, *, roots: Sequence[str] = (), files: bool = True) -> Trace:
    """Follow something in a stage's folder back to the data.

    Args:
        target: Local path or URI in the folder, or the folder itself.
        folder: The folder with the record.
        roots: Further folders in whose subfolders earlier stages may lie, or raw inputs themselves.
        files: Hash shards and columns as well, not only records, models and programs.
    """
    neighbors = places.index([*places.surroundings(folder), *roots])
    start = hashlib.sha256(storage.read_bytes(storage.join(folder, records.RECORD))).hexdigest()
    found = follow(target, {**neighbors, start: folder}, start, roots, files=files)
    own = storage.relative(target, folder)
    if own not in {".", ""} and not any(name == own or name.startswith(f"{own}/") for name in _names(found.nodes[0])):
        found.nodes[0].problems.append(f"'{own}' is not in the record")
    return found


def is_copy(uri: str) -> bool:
    """Whether a folder holds a record that `copy_records` kept, without the files it names."""
    return Path(uri).parent.name == COPIES


def copy_records(found: Trace, folder: Path) -> None:
    """Copy every record with its config, metrics, manifest and model cards, so that the chain outlives its folders."""
    for node in found.nodes:
        names = {records.RECORD, "config.json", "metrics.json", "contract.json", manifest.FILE_NAME}
        names |= {name for name in node.record["files"] if name.rpartition("/")[2] == _CARD}
        for name in sorted(names):
            uri = storage.join(node.uri, name)
            if storage.exists(uri):
                storage.write_bytes(folder / f"{node.stage}-{node.digest[:12]}" / name, storage.read_bytes(uri))


def follow(target: str, known: Mapping[str, str], start: str, roots: Sequence[str], *, files: bool) -> Trace:
    """Follow the record with the digest `start` back to the data.

    Args:
        target: What was asked for.
        known: Folder by digest of its record, from `index`.
        start: Digest of the first record.
        roots: Where raw inputs may lie.
        files: Hash shards and columns anew as well.
    """
    found = Trace(target, [], [], [])
    hashed: dict[str, bool] = {}
    waiting, seen = [start], set[str]()
    while waiting:
        digest = waiting.pop(0)
        if digest in seen:
            continue
        seen.add(digest)
        node = _node(known[digest], digest, hashed, files=files)
        found.nodes.append(node)
        external = step(node.stage).external
        for name, wanted in node.record["inputs"].items():
            made_by = wanted if wanted in known else places.part_of(wanted, known)
            if made_by:
                waiting.append(made_by)
            elif name in external:
                found.outside.append((node.stage, name, wanted, places.raw_folder(wanted, roots, known)))
            else:
                found.lost.append((node.stage, name, wanted))
    return found


def _node(uri: str, digest: str, hashed: dict[str, bool], *, files: bool) -> Node:
    record = json.loads(storage.read_bytes(storage.join(uri, records.RECORD), sha256=digest))
    node = Node(record["stage"], uri, digest, record)
    counts = {"checked": 1, "absent": 0}
    kept = is_copy(uri)
    for name, sha256 in record["files"].items():
        _check(node, counts, storage.join(uri, name), sha256, hashed, optional=kept)
    config = storage.join(uri, "config.json")
    if storage.exists(config):
        text = json.dumps(json.loads(storage.read_bytes(config)), sort_keys=True)
        if hashlib.sha256(text.encode()).hexdigest() != record["config"]:
            node.problems.append("config.json is not the config of the record")
        counts["checked"] += 1
    if manifest.FILE_NAME in record["files"] and storage.exists(storage.join(uri, manifest.FILE_NAME)):
        listed = manifest.read(uri)
        node.uses.extend(_data_uses(node.stage, listed))
        if files and not kept:
            for path, sha256 in _listed_files(listed):
                _check(node, counts, storage.join(uri, path), sha256, hashed, optional=False)
    node.uses.extend(_model_uses(node))
    holds = describe(uri, record)
    return Node(node.stage, uri, digest, record, counts["checked"], counts["absent"], node.problems, node.uses, holds)


def _check(
    node: Node, counts: dict[str, int], uri: str, sha256: str, hashed: dict[str, bool], *, optional: bool
) -> None:
    key = f"{uri} {sha256}"
    if key not in hashed:
        if not storage.exists(uri):
            if optional:
                counts["absent"] += 1
            else:
                node.problems.append(f"'{storage.relative(uri, node.uri)}' is missing")
            return
        local = storage.local_copy(uri) if not storage.is_s3(uri) else None
        got = storage.digest_file(local) if local else hashlib.sha256(storage.read_bytes(uri)).hexdigest()
        hashed[key] = got == sha256
    if hashed[key]:
        counts["checked"] += 1
    else:
        node.problems.append(f"'{storage.relative(uri, node.uri)}' has another sha256 than recorded")


def _listed_files(listed: manifest.Manifest) -> Iterable[tuple[str, str]]:
    yield from ((shard.path, shard.sha256) for shard in listed.shards)
    yield from ((part.path, part.sha256) for column in listed.columns for part in column.parts.values())


def _data_uses(stage: str, listed: manifest.Manifest) -> list[Use]:
    sources = [Use("data", f"{source.name} ({source.samples} samples)", source.license) for source in listed.sources]
    columns = [
        Use(stage, f"column {column.name}{_model_of(column)}", column.license)
        for column in listed.columns
        if column.kind in {"caption", "embedding"} or column.license != "unknown"  # nobody owns computed views
    ]
    return sources + columns


def _model_of(column: manifest.Column) -> str:
    model = column.spec.get("model")
    name = model.get("name") if isinstance(model, dict) else model
    return f" by {name.removeprefix('trained:')}" if isinstance(name, str) and name else ""


def _model_uses(node: Node) -> list[Use]:
    cards = [name for name in node.record["files"] if name.rpartition("/")[2] == _CARD]
    found = []
    for name in sorted(cards):
        uri = storage.join(node.uri, name)
        if storage.exists(uri):
            card = json.loads(storage.read_bytes(uri))
            model = name.rpartition("/")[0] or card.get("model") or "model"
            found.append(Use(node.stage, f"weights of {model}", str(card.get("license", "unknown"))))
    return found


def _names(node: Node) -> list[str]:
    listed = [*node.record["files"], records.RECORD]
    if storage.exists(storage.join(node.uri, manifest.FILE_NAME)):
        listed += [path for path, _ in _listed_files(manifest.read(node.uri))]
    return listed
