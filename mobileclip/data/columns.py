"""Columns: one safetensors file per shard, committed by a protocol that survives kills and rival workers.

Protocol for one shard of one column (works on a folder and on S3, with any number of workers):

1. A commit record `<column>/<shard>.<spec>.json` that is already there wins: nothing is computed.
2. The file is written, if absent, under a name that holds its own digest.
3. The record is written, if absent, and read back; whoever came first is adopted.

The spec (all that decides the bytes) is part of the record's name, so a changed configuration never meets old results.
"""

import hashlib
import itertools
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import save as save_safetensors

from mobileclip import storage
from mobileclip.data.mapped import map_tensors
from mobileclip.data.progress import Work, watched
from mobileclip.errors import DataError, IntegrityError, MobileClipError
from mobileclip.manifest import Attribution, Column, ColumnPart, Manifest, Shard, spec_digest
from mobileclip.parallel import run_forked

logger = logging.getLogger(__name__)

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class ColumnPlan:
    """A column to be: everything known before its first row is computed.

    Attributes:
        name: Column name.
        kind: caption, view, embedding or selection.
        spec: All that decides the bytes.
        computed_on: Columns it derives from.
        license: License of what it holds.
        attributions: The model that computes it, and what that was made from.
    """

    name: str
    kind: Literal["caption", "view", "embedding", "selection"]
    spec: dict[str, Any]
    computed_on: list[str] = field(default_factory=list)
    license: str = "unknown"
    attributions: list[Attribution] = field(default_factory=list)

    @property
    def sha256(self) -> str:
        """Digest of the spec."""
        return spec_digest(self.spec)


def build_columns(
    out: str,
    plans: Sequence[ColumnPlan],
    shards: Sequence[Shard],
    compute: Callable[[Shard, list[str]], Mapping[str, Tensors]],
    *,
    group: int = 0,
    num_groups: int = 1,
    title: str = "",
) -> Work:
    """Compute and commit what is missing of these columns, shard by shard.

    Args:
        out: Output folder or URI of the stage.
        plans: The columns.
        shards: Shards to cover.
        compute: Called with a shard and the names of its missing columns; returns their tensors.
        group: This process's unit of work.
        num_groups: Number of units; unit `g` has every shard whose position is `g` modulo this.
        title: Label of the progress bar.

    Returns:
        What was done, for `timings.json`.
    """
    mine = [shard for index, shard in enumerate(shards) if index % num_groups == group]
    lacking = [shard for shard in mine if any(committed(out, plan, shard) is None for plan in plans)]

    if len(lacking) < len(mine):
        done = len(mine) - len(lacking)
        logger.info("%s: %d of %d shards are done, the rest follows", title or plans[0].name, done, len(mine))

    def work(part: int, parts: int) -> dict[str, float]:
        seconds = {}
        for shard in watched(lacking[part::parts], title or plans[0].name, position=part):
            start = time.perf_counter()
            # Asked again at its turn: a rival may have done it since.
            missing = [plan for plan in plans if committed(out, plan, shard) is None]
            tensors = compute(shard, [plan.name for plan in missing]) if missing else {}
            for plan in missing:
                commit(out, plan, shard, tensors[plan.name])
            seconds[shard.name] = time.perf_counter() - start
        return seconds

    start = time.perf_counter()
    parts = run_forked(work, len(lacking)) if lacking else []
    seconds = {name: value for part in parts for name, value in part.items()}
    return Work(time.perf_counter() - start, seconds, sum(shard.samples for shard in lacking))


def collect(out: str, plans: Iterable[ColumnPlan], shards: Sequence[Shard], manifest: Manifest) -> Manifest:
    """Add finished columns to a manifest.

    Raises:
        MobileClipError: A shard is not committed yet: the sentence names it.
        IntegrityError: A committed file is gone or was cut since.
    """
    for plan in plans:
        parts = {}
        sizes = storage.list_sizes(storage.join(out, plan.name))
        for shard in shards:
            part = committed(out, plan, shard)
            if part is None:
                raise MobileClipError(
                    f"column '{plan.name}': shard '{shard.name}' is not there yet, run its group before the merge."
                )
            _check_size(out, plan, shard, part, sizes)
            parts[shard.name] = part
        manifest = manifest.with_column(
            Column(
                name=plan.name, kind=plan.kind, spec=plan.spec, spec_sha256=plan.sha256,
                computed_on=plan.computed_on, license=plan.license, attributions=plan.attributions, parts=parts,
            )
        )  # fmt: skip
    return manifest


def committed(out: str, plan: ColumnPlan, shard: Shard) -> ColumnPart | None:
    """The part another process or an earlier run has committed, if any."""
    try:
        return _read_record(_record_uri(out, plan, shard))
    except DataError:
        return None


def commit(out: str, plan: ColumnPlan, shard: Shard, tensors: Tensors) -> ColumnPart:
    """Publish one shard's rows; returns the part that counts (the first committed one)."""
    header = {"column": plan.name, "shard": shard.name, "uids_sha256": shard.uids_sha256}
    # One metadata key: safetensors writes several in an order that changes from call to call.
    data = save_safetensors(
        {name: tensor.contiguous() for name, tensor in sorted(tensors.items())},
        metadata={"header": json.dumps(header, sort_keys=True)},
    )
    sha256 = hashlib.sha256(data).hexdigest()
    path = f"{plan.name}/{shard.name}-{sha256[:16]}.safetensors"
    storage.put_if_absent(storage.join(out, path), data)
    part = ColumnPart(path=path, bytes=len(data), sha256=sha256, samples=shard.samples)
    uri = _record_uri(out, plan, shard)
    storage.put_if_absent(uri, (json.dumps(part.model_dump(), sort_keys=True) + "\n").encode())
    return _read_record(uri)


class ColumnReader:
    """Rows of one column of one shard, memory-mapped: only the rows asked for are read.

    The file's digest is checked before its first row is read, by whichever process reads it.
    On S3 the whole file is fetched once (`mobileclip.storage.local_copy`), then read in the same way. The bytes are
    mapped here rather than by safetensors, whose slices cost ten times a row's own copy; it checks the file first.

    Raises:
        IntegrityError: The file belongs to another shard or column.
    """

    def __init__(self, folder: str, column: Column, shard: Shard) -> None:
        """Open `column` of `shard` in the dataset at `folder`."""
        part = column.parts.get(shard.name)
        if part is None:
            raise IntegrityError(f"column '{column.name}': has no rows for shard '{shard.name}'.")
        self._path = storage.local_copy(storage.join(folder, part.path), sha256=part.sha256)
        self._sha256 = part.sha256
        storage.share()
        self._tensors: Tensors | None = None
        metadata = self._check()
        if metadata.get("uids_sha256") != shard.uids_sha256:
            raise IntegrityError(
                f"column '{column.name}': '{self._path.name}' has rows of uids {metadata.get('uids_sha256', '')[:12]}, "
                f"shard '{shard.name}' has {shard.uids_sha256[:12]}."
            )

    def keys(self) -> list[str]:
        """Names of the tensors."""
        return list(self._names)

    def all(self, name: str) -> torch.Tensor:
        """A whole tensor, as it lies in the file: do not write to it."""
        if self._tensors is None:  # mapped on first use, so that loader processes do not share a handle
            storage.verify_local(self._path, self._sha256)
            self._tensors = map_tensors(self._path)
        return self._tensors[name]

    def row(self, name: str, index: int) -> torch.Tensor:
        """One row of a tensor."""
        return self.all(name)[index]

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows start..stop of a tensor."""
        return self.all(name)[start:stop]

    def _check(self) -> dict[str, str]:
        """Let safetensors check the whole layout of the file; our header in it."""
        try:
            with safe_open(str(self._path), framework="pt") as file:
                self._names = tuple(file.keys())
                header: dict[str, str] = json.loads((file.metadata() or {}).get("header", "{}"))
        except Exception as error:  # noqa: BLE001 - safetensors raises its own SafetensorError
            raise IntegrityError(f"column file '{self._path.name}' is damaged: {error}.") from None
        return header

    def __getstate__(self) -> dict[str, Any]:
        """A reader travels to a worker without its memory map."""
        return {**self.__dict__, "_tensors": None}


def check_files(folder: str, shards: Sequence[Shard], columns: Iterable[Column]) -> None:
    """See that shards and columns are there with the sizes that their manifest promises: a listing per folder.

    Raises:
        DataError: A file is missing or cut.
        IntegrityError: A column has no rows for a shard.
    """
    listed: dict[str, dict[str, int]] = {}
    for column in (None, *columns):
        for shard in shards:
            part = shard if column is None else column.parts.get(shard.name)
            if part is None:
                raise IntegrityError(f"column '{column.name if column else ''}': has no rows for shard '{shard.name}'.")
            place, _, name = storage.join(folder, part.path).rpartition("/")
            if place not in listed:
                listed[place] = storage.list_sizes(place)
            if listed[place].get(name) != part.bytes:
                size = listed[place].get(name)
                state = "is missing" if size is None else f"has {size} bytes, the manifest promises {part.bytes}"
                raise DataError(f"data: '{place}/{name}' {state}.")


def pack_texts(texts: Sequence[Sequence[str]]) -> Tensors:
    """Ragged lists of strings as tensors: `bytes` uint8, `offsets` int64 [texts + 1], `counts` int64 [rows + 1]."""
    flat = [text.encode() for row in texts for text in row]
    counts = torch.tensor([0, *(len(row) for row in texts)], dtype=torch.int64).cumsum(0)
    offsets = torch.tensor([0, *(len(text) for text in flat)], dtype=torch.int64).cumsum(0)
    joined = bytearray(b"".join(flat))
    data = torch.frombuffer(joined, dtype=torch.uint8) if joined else torch.zeros(0, dtype=torch.uint8)
    return {"bytes": data, "offsets": offsets, "counts": counts}


def unpack_texts(reader: ColumnReader, index: int) -> list[str]:
    """The strings of one row."""
    first, last = reader.rows("counts", index, index + 2).tolist()
    offsets = reader.rows("offsets", first, last + 1).tolist()
    data = bytes(reader.rows("bytes", offsets[0], offsets[-1]).numpy().tobytes()) if offsets else b""
    base = offsets[0]
    return [data[a - base : b - base].decode() for a, b in itertools.pairwise(offsets)]


def read_captions(folder: str, column: Column, shard: Shard) -> list[list[str]]:
    """All captions of a caption column for one shard, in the shard's order."""
    reader = ColumnReader(folder, column, shard)
    return [unpack_texts(reader, index) for index in range(shard.samples)]


def _check_size(out: str, plan: ColumnPlan, shard: Shard, part: ColumnPart, sizes: Mapping[str, int]) -> None:
    size = sizes.get(part.path.rpartition("/")[2])
    if size != part.bytes:
        state = "is missing" if size is None else f"has {size} bytes, its record promises {part.bytes}"
        raise IntegrityError(
            f"column '{plan.name}': '{storage.join(out, part.path)}' {state}; "
            f"delete it and its record '{_record_uri(out, plan, shard)}' and run again."
        )


def _read_record(uri: str) -> ColumnPart:
    try:
        return ColumnPart.model_validate_json(storage.read_bytes(uri))
    except ValidationError:
        raise IntegrityError(f"{uri}: is no commit record, the file is damaged; delete it and run again.") from None


def _record_uri(out: str, plan: ColumnPlan, shard: Shard) -> str:
    # The shard's own digest is part of the key: a rebuilt shard of the same name is other data.
    key = hashlib.sha256(f"{plan.sha256}|{shard.sha256}".encode()).hexdigest()[:16]
    return storage.join(out, plan.name, f"{shard.name}.{key}.json")
