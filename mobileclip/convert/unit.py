"""One tar of a DataCompDR set becomes shards and column files."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from mobileclip.config.base import Dtype
from mobileclip.convert.join import Joined, LeftOut, join
from mobileclip.convert.layout import Layout
from mobileclip.convert.pictures import PictureSet
from mobileclip.convert.reading import Reading
from mobileclip.convert.rows import Row, Shape, teacher_slice
from mobileclip.data.columns import ColumnPlan, Tensors, commit, pack_texts
from mobileclip.data.embeddings import encode
from mobileclip.data.shards import write_shard
from mobileclip.data.tars import scan
from mobileclip.manifest import ColumnPart, Shard

_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}")
_SPLITS: tuple[Literal["train", "validation"], ...] = ("train", "validation")


@dataclass(frozen=True)
class Job:
    """All that the conversion of every tar has in common."""

    layout: Layout
    shape: Shape
    plans: list[ColumnPlan]
    reading: Reading
    pictures: PictureSet
    out: str
    scratch: Path


class Unit(BaseModel):
    """What one tar became: the commit record of its conversion."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tar: str
    rows: int
    """Samples in the tar."""
    shards: list[Shard]
    parts: dict[str, dict[str, ColumnPart]]
    """Column files by column and shard."""
    uids: list[str]
    """Of all samples, joined or not."""
    left_out: list[dict[str, str]]
    """uid, cause, reason."""
    bytes: dict[str, int]
    """Joined pictures whose bytes are those of the recorded sha256 (`same`), others, and where none is recorded."""
    licenses: dict[str, int]


def plan_columns(layout: Layout, shape: Shape, dtype: Dtype) -> list[ColumnPlan]:
    """View, caption and embedding columns of a set."""
    views: dict[str, Any] = {**layout.views, "num_views": shape.num_views}
    plans = [ColumnPlan("views", "view", views)]
    synthetic = {key: layout.caption(key) for key in shape.keys}
    plans += [ColumnPlan(c.column, "caption", c.spec, license=c.license) for c in synthetic.values()]
    for teacher in layout.teachers:
        spec = {**teacher.spec, "dtype": dtype, "origin": "datacompdr"}
        name, license_ = teacher.name, teacher.license
        plans.append(ColumnPlan(f"{name}.views", "embedding", {**spec, "views": views}, ["views"], license_))
        plans.append(ColumnPlan(f"{name}.captions", "embedding", {**spec, "field": "captions"}, [], license_))
        for caption in synthetic.values():
            column = {**spec, "captions": ColumnPlan(caption.column, "caption", caption.spec).sha256}
            plans.append(ColumnPlan(f"{name}.{caption.column}", "embedding", column, [caption.column], license_))
    return plans


def convert_tar(job: Job, index: int, name: str, path: Path) -> Unit:
    """Write the shards and column files of one tar.

    Args:
        job: What all tars have in common.
        index: The tar's position in the set; shards are named by it.
        name: Its name in messages.
        path: Where it lies.
    """
    uids: list[str] = []
    left_out: list[dict[str, str]] = []
    counts: Counter[str] = Counter()
    licenses: Counter[str] = Counter()

    def joined() -> Iterator[Joined]:
        seen: set[str] = set()
        for entry in scan(path, name=name, where="convert", scratch=job.scratch):
            uid = entry.key.rpartition("/")[2]
            try:
                _check_uid(uid, seen)
                uids.append(uid)
                found = join(uid, entry, job.layout, job.shape, job.reading, job.pictures)
            except LeftOut as why:
                left_out.append({"uid": ascii(uid)[1:-1], "cause": why.cause, "reason": why.reason})
                continue
            counts[found.bytes] += 1
            licenses[str(found.sample.metadata["license"])] += 1
            yield found

    shards: list[Shard] = []
    parts: dict[str, dict[str, ColumnPart]] = {plan.name: {} for plan in job.plans}
    for split, number, rows in _chunks(joined(), job.reading):
        samples = [(row.sample, row.extension) for row in rows]
        shard = write_shard(job.out, f"{split}-{index:05d}-{number:03d}", split, samples)
        shards.append(shard)
        for plan in job.plans:
            parts[plan.name][shard.name] = commit(job.out, plan, shard, _tensors(job, plan, rows))
    return Unit(
        tar=name, rows=counts.total() + len(left_out), shards=shards, parts=parts,
        uids=uids, left_out=left_out, bytes=dict(sorted(counts.items())), licenses=dict(sorted(licenses.items())),
    )  # fmt: skip


def _check_uid(uid: str, seen: set[str]) -> None:
    if not _UID.fullmatch(uid):
        raise LeftOut("damaged_row", "its name is no uid (letters, digits, - and _)")
    if uid in seen:
        raise LeftOut("duplicate", "the tar has this uid twice")
    seen.add(uid)


def _chunks(rows: Iterator[Joined], reading: Reading) -> Iterator[tuple[str, int, list[Joined]]]:
    """Split, number and rows of each shard, as soon as it is full."""
    pending: dict[str, list[Joined]] = {split: [] for split in _SPLITS}
    numbers = dict.fromkeys(_SPLITS, 0)
    for row in rows:
        split = row.sample.metadata["split"]
        pending[split].append(row)
        if len(pending[split]) == reading.shard_samples:
            yield split, numbers[split], pending[split]
            pending[split] = []
            numbers[split] += 1
    for split in _SPLITS:
        if pending[split]:
            yield split, numbers[split], pending[split]


def _tensors(job: Job, plan: ColumnPlan, rows: list[Joined]) -> Tensors:
    """One column of some samples."""
    found: list[Row] = [row.row for row in rows]
    if plan.kind == "view":
        sizes = torch.tensor([row.size for row in rows], dtype=torch.int32)
        return {"views": torch.from_numpy(np.stack([row.views for row in found])), "sizes": sizes}
    keys = {job.layout.caption(key).column: key for key in job.shape.keys}
    if plan.kind == "caption":
        return pack_texts([row.synthetic[keys[plan.name]][0] for row in found])
    index, kind = next(
        (i, kind)
        for i, teacher in enumerate(job.layout.teachers)
        for kind in ("views", "captions", *keys)
        if plan.name == f"{teacher.name}.{kind}"
    )
    if kind == "views":
        vectors = [row.images for row in found]
    elif kind == "captions":
        vectors = [row.texts for row in found]
    else:
        vectors = [row.synthetic[keys[kind]][1] for row in found]
    features = teacher_slice(torch.cat(vectors), job.layout, index)
    return encode(features, [len(part) for part in vectors], job.reading.dtype)
