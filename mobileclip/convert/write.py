"""A reinforced dataset as DataCompDR/DFNDR tars, for tools that read the public layout."""

import hashlib
import io
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import webdataset

from mobileclip import manifest, storage
from mobileclip.config import Split
from mobileclip.convert import layout as layouts
from mobileclip.convert import param_aug, payload
from mobileclip.convert.layout import CaptionLayout, Layout, TeacherLayout
from mobileclip.convert.rows import MORE_TEXTS
from mobileclip.data.columns import ColumnReader, unpack_texts
from mobileclip.data.embeddings import decode_all
from mobileclip.data.progress import progress_bar
from mobileclip.data.shards import Sample, ShardReader, image_extension
from mobileclip.errors import DataError
from mobileclip.manifest import Manifest, Shard
from mobileclip.parallel import run_forked


@dataclass(frozen=True)
class Writing:
    """How to write a set.

    Attributes:
        encoding: `npz` (float32) or `pth.gz` (bfloat16).
        text_layout: `new` (RayGen, DFNDR): vectors of synthetic captions in arrays of their own; `legacy` (DataCompDR):
            behind those of the ground truth, for one captioner.
        with_images: Off: as the public sets are distributed, without pictures and ground-truth captions.
        splits: Splits to write.
    """

    encoding: Literal["npz", "pth.gz"] = "npz"
    text_layout: Literal["new", "legacy"] = "new"
    with_images: bool = True
    splits: tuple[Split, ...] = ("train",)


def write_datacompdr(data: str, *, out: str, writing: Writing) -> dict[str, Any]:
    """Write one tar per shard, `reinforcement.json` (what tars do not say) and the reference trainer's `config.json`.

    Args:
        data: Reinforced dataset.
        out: Output folder or URI. Tars that are there for the same shard and options are kept.
        writing: How.

    Returns:
        Tars, samples, bytes.

    Raises:
        DataError: The dataset has no views or teachers, or the legacy layout has no place for its captions.
    """
    content = manifest.read(data)
    shards = content.split(*writing.splits)
    layout = describe(content, legacy=writing.text_layout == "legacy")
    _check_cover(content, layout, shards)
    names = [f"{index:08d}" for index in range(len(shards))]

    def work(part: int, parts: int) -> None:
        for index in progress_bar(range(part, len(shards), parts), desc="convert", unit="tar", position=part):
            _write_tar(data, content, shards[index], storage.join(out, names[index]), layout, writing)

    run_forked(work, len(shards))
    storage.write_bytes(storage.join(out, layouts.FILE_NAME), layouts.to_bytes(layout))
    storage.write_bytes(storage.join(out, "config.json"), layouts.trainer_config(layout))
    sizes = [json.loads(storage.read_bytes(storage.join(out, f"{name}.json")))["bytes"] for name in names]
    return {"tars": len(shards), "samples": sum(shard.samples for shard in shards), "bytes": sum(sizes)}


def describe(content: Manifest, *, legacy: bool) -> Layout:
    """The layout of a dataset.

    Raises:
        DataError: It has no views or teachers, or several caption columns for the legacy layout.
    """
    teachers = [
        TeacherLayout(
            name=name, dim=int(content.column(f"{name}.views").spec["dim"]),
            license=content.column(f"{name}.views").license,
            spec={k: v for k, v in content.column(f"{name}.views").spec.items() if k not in {"views", "dtype"}},
        )
        for name in content.teachers()
    ]  # fmt: skip
    if not teachers:
        raise DataError("convert: the dataset has no teacher embeddings, want the output of reinforce.")
    columns = [
        column for column in content.columns
        if column.kind == "caption" and all(content.has(f"{teacher.name}.{column.name}") for teacher in teachers)
    ]  # fmt: skip
    if legacy and len(columns) > 1:
        names = [column.name for column in columns]
        raise DataError(f"convert: the legacy text layout has one caption column, the dataset has {names}; use new.")
    captions = {
        _key(column.name, legacy): CaptionLayout(column=column.name, license=column.license, spec=column.spec)
        for column in columns
    }
    size = int(teachers[0].spec["preprocess"]["size"])
    views = content.column("views").spec
    return Layout(
        teachers=teachers, size=size, upright=True, views=views, captions=captions, sources=content.sources,
    )  # fmt: skip


def _key(column: str, legacy: bool) -> str:
    if legacy:
        return layouts.SYN_PREFIX
    return column if column.startswith(layouts.SYN_PREFIX) else f"{layouts.SYN_PREFIX}_{column}"


def _check_cover(content: Manifest, layout: Layout, shards: list[Shard]) -> None:
    kinds = ["views", "captions", *(caption.column for caption in layout.captions.values())]
    names = ["views", *(f"{teacher.name}.{kind}" for teacher in layout.teachers for kind in kinds)]
    for shard in shards:
        for name in names:
            if shard.name not in content.column(name).parts:
                raise DataError(
                    f"convert: column '{name}' has no rows for shard '{shard.name}', choose other --splits."
                )
    if not shards:
        raise DataError("convert: the dataset has no shard of these splits.")


def _write_tar(data: str, content: Manifest, shard: Shard, target: str, layout: Layout, writing: Writing) -> None:
    """One tar with its record; nothing where both are there."""
    parts = [column.parts[shard.name].sha256 for column in content.columns if shard.name in column.parts]
    made_from = hashlib.sha256(repr((shard.sha256, parts, asdict(writing), layout)).encode()).hexdigest()
    if storage.exists(f"{target}.tar") and storage.exists(f"{target}.json"):
        record = json.loads(storage.read_bytes(f"{target}.json"))
        if record["made_from"] == made_from:
            return
    reader = ShardReader(data, shard)
    columns = _Columns(data, content, shard, layout)
    stream = io.BytesIO()
    with webdataset.TarWriter(stream, encoder=False, mtime=0) as writer:
        for row in range(shard.samples):
            writer.write(_members(reader.sample(row), row, columns, layout, writing))
    tar = stream.getvalue()
    storage.write_bytes(f"{target}.tar", tar)
    record = {
        "made_from": made_from, "shard": shard.name, "samples": shard.samples, "bytes": len(tar),
        "sha256": hashlib.sha256(tar).hexdigest(),
    }  # fmt: skip
    storage.write_bytes(f"{target}.json", (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())


class _Columns:
    """All columns of one shard: views, captions by key, and per kind the teachers' vectors, concatenated."""

    def __init__(self, data: str, content: Manifest, shard: Shard, layout: Layout) -> None:
        self.views = ColumnReader(data, content.column("views"), shard).all("views").numpy()
        self.captions = {key: ColumnReader(data, content.column(c.column), shard) for key, c in layout.captions.items()}
        self.field = str(content.column(f"{layout.teachers[0].name}.captions").spec.get("field", "captions"))
        self._vectors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for kind in ("views", "captions", *(c.column for c in layout.captions.values())):
            parts = [decode_all(ColumnReader(data, content.column(f"{t.name}.{kind}"), shard)) for t in layout.teachers]
            self._vectors[kind] = torch.cat([features for features, _ in parts], dim=1), parts[0][1]

    def vectors(self, kind: str, row: int) -> torch.Tensor:
        """float32 [rows of the sample, width]."""
        features, ends = self._vectors[kind]
        return features[int(ends[row]) : int(ends[row + 1])]


def _members(sample: Sample, row: int, columns: _Columns, layout: Layout, writing: Writing) -> dict[str, Any]:
    synthetic = {key: unpack_texts(reader, row) for key, reader in columns.captions.items()}
    num_ops = layout.view_spec.rand_augment_ops
    views = [param_aug.encode_row(view, size=layout.size, num_ops=num_ops) for view in columns.views[row]]
    metadata = {**sample.metadata, "uid": sample.metadata.get("uid") or sample.uid}
    metadata["sha256"] = hashlib.sha256(sample.image).hexdigest()
    truth = metadata.get(columns.field) or []
    truth = metadata["captions"] = [truth] if isinstance(truth, str) else truth
    members: dict[str, Any] = {
        "__key__": sample.uid,
        "paug.json": json.dumps({"param_aug": views}).encode(),
        "syn.json": json.dumps(synthetic, ensure_ascii=False).encode(),
    }
    if writing.with_images:
        members[image_extension(sample.image)] = sample.image
        if truth:
            members["txt"] = truth[0].encode()
    else:
        metadata = {k: v for k, v in metadata.items() if k in {"uid", "sha256", "url", "license"}}
    if isinstance(metadata.get("url"), str):
        members["url.txt"] = metadata["url"].encode()
    members["json"] = json.dumps(metadata, sort_keys=True, ensure_ascii=False).encode()
    arrays = _arrays(row, columns, layout, legacy=writing.text_layout == "legacy")
    members[writing.encoding] = payload.to_npz(arrays) if writing.encoding == "npz" else payload.to_pth(arrays)
    return members


def _arrays(row: int, columns: _Columns, layout: Layout, *, legacy: bool) -> payload.Arrays:
    """One ground-truth vector in `text_emb`, as the reference expects beside one `txt`; more in our own array."""
    truth = columns.vectors("captions", row)
    synthetic = {key: columns.vectors(c.column, row) for key, c in layout.captions.items()}
    arrays = {"image_emb": columns.vectors("views", row), "text_emb": truth[:1]}
    if legacy:
        arrays["text_emb"] = torch.cat([truth[:1], *synthetic.values()])
    else:
        arrays |= {f"{key}_emb": vectors for key, vectors in synthetic.items()}
    if len(truth) > 1:
        arrays[MORE_TEXTS] = truth[1:]
    return arrays
