"""reinforce: N stored views per image and every teacher's embeddings of views and captions, as columns."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import PIL
import torch
import torchvision

from mobileclip import manifest
from mobileclip.config import Reinforce, TeacherRef
from mobileclip.data.augment import apply_views, draw_views
from mobileclip.data.columns import ColumnPlan, ColumnReader, Tensors, build_columns, collect, read_captions
from mobileclip.data.embeddings import encode
from mobileclip.data.images import decode
from mobileclip.data.progress import progress_bar, write_timings
from mobileclip.data.shards import ShardReader
from mobileclip.errors import ConfigError, DataError
from mobileclip.manifest import Manifest, Shard
from mobileclip.models import attributions as credit
from mobileclip.models import zoo
from mobileclip.models.embed import check_finite, embed_pixels, embed_texts
from mobileclip.parallel import ahead
from mobileclip.tracking.protocol import Tracker

GROUND_TRUTH = "captions"
# Raise when vectors of the same spec would come out otherwise: committed columns are then computed anew.
_VERSION = 2

Format = tuple[int, str]
"""Size and interpolation of a teacher's input."""


def run(
    config: Reinforce,
    *,
    out: str,
    tracker: Tracker,
    data: str,
    teachers: str = "",
    group: int = 0,
    num_groups: int = 1,
    merge: bool = False,
) -> dict[str, float]:
    """Compute what is missing of the view and embedding columns; publish the manifest.

    Args:
        config: The `reinforce` section.
        out: Output folder or URI; committed shards there are kept.
        tracker: Gets the speed; the metrics are the return value.
        data: Dataset with the caption columns named in the section.
        teachers: Folder of train_teacher, for `trained:NAME`.
        group: This process's unit of work.
        num_groups: Number of units; with more than one the manifest is published by the merge alone.
        merge: Only check that all units are done and publish.

    Returns:
        Samples, views and embeddings in the finished dataset; nothing for one unit.
    """
    content = manifest.read(data)
    shards = content.split(*config.splits)
    columns = [content.column(name) for name in config.captions]
    if not config.teachers:
        raise ConfigError("reinforce.teachers: got an empty list, want at least one teacher.")
    if not shards:
        raise ConfigError(f"reinforce.splits: got {config.splits}, the dataset has no shard of these splits.")
    refs = {ref.name: ref for ref in config.teachers}
    clips = {name: zoo.load(r.model, pretrained=r.pretrained, trained=teachers) for name, r in refs.items()}
    plans = _plans(config, content, refs, clips)
    if not merge:
        compute = partial(_compute, config, data, content, clips)
        work = build_columns(out, plans, shards, compute, group=group, num_groups=num_groups, title="reinforce")
        write_timings(out, work, group=group, num_groups=num_groups, views=work.samples * config.views.num_views)
        if work.samples:
            tracker.log_metrics({"samples_per_second": work.rate})
        if num_groups > 1:
            return {}
    final = collect(out, plans, shards, content.moved(data, out))
    if not _rows(out, final, f"{next(iter(refs))}.{GROUND_TRUTH}", shards):
        raise DataError(f"reinforce.caption_field: got '{config.caption_field}', no sample has captions of that name.")
    manifest.write(out, final)
    samples = sum(shard.samples for shard in shards)
    texts = sum(_rows(out, final, f"{next(iter(refs))}.{kind}", shards) for kind in (GROUND_TRUTH, *config.captions))
    return {
        "samples": float(samples),
        "views": float(samples * config.views.num_views),
        "texts": float(texts),
        "teachers": float(len(refs)),
        "caption_columns": float(len(columns)),
        "bytes": float(sum(p.bytes for plan in plans for p in final.column(plan.name).parts.values())),
    }


def _plans(
    config: Reinforce, content: Manifest, refs: Mapping[str, TeacherRef], clips: Mapping[str, zoo.Clip]
) -> list[ColumnPlan]:
    """Every column with all that decides its bytes."""
    views = {
        **config.views.model_dump(mode="json"),
        "seed": config.seed,
        "backend": "pillow",
        "pillow": PIL.__version__,
        "torchvision": torchvision.__version__,
        "layout": "top,left,height,width,op,bin,op,bin",
    }
    plans = [ColumnPlan("views", "view", views)]
    for name, clip in clips.items():
        teacher: dict[str, Any] = {
            "teacher": name,
            "model": clip.name,
            "sha256": clip.sha256,
            "dim": clip.embed_dim,
            "logit_scale": clip.logit_scale,
            "preprocess": clip.preprocess.as_open_clip(),
            "context_length": clip.config["text_cfg"].get("context_length", 77),
            "dtype": config.dtype,
            "batch_size": config.batch_size,  # float rounding may depend on it
            "precision": config.precision,
            "version": _VERSION,
        }
        license_ = refs[name].license or clip.license
        owed = credit.attributions(clip, "teacher", name, license=license_)
        plans.append(ColumnPlan(f"{name}.views", "embedding", {**teacher, "views": views}, ["views"], license_, owed))
        truth = {**teacher, "field": config.caption_field}
        plans.append(ColumnPlan(f"{name}.{GROUND_TRUTH}", "embedding", truth, [], license_))
        for caption in config.captions:
            spec = {**teacher, "captions": content.column(caption).spec_sha256}
            plans.append(ColumnPlan(f"{name}.{caption}", "embedding", spec, [caption], license_))
    return plans


def _compute(
    config: Reinforce,
    data: str,
    content: Manifest,
    clips: Mapping[str, zoo.Clip],
    shard: Shard,
    missing: list[str],
) -> dict[str, Tensors]:
    """Tensors of the missing columns of one shard; each picture is decoded once, each distinct text embedded once."""
    reader = ShardReader(data, shard)
    found: dict[str, Tensors] = {}
    seeing = {name: clip for name, clip in clips.items() if f"{name}.views" in missing}
    if "views" in missing or seeing:
        found |= _view_columns(config, reader, seeing)
    for kind in (GROUND_TRUTH, *config.captions):
        reading = [name for name in clips if f"{name}.{kind}" in missing]
        if not reading:
            continue
        texts = _texts(config, data, content, reader, shard, kind)
        flat, counts = [text for row in texts for text in row], [len(row) for row in texts]
        for name in reading:
            features = embed_texts(clips[name], flat, batch_size=config.batch_size, precision=config.precision)
            check_finite(features, model=f"teacher '{name}'", where=f"texts of shard '{shard.name}'")
            found[f"{name}.{kind}"] = encode(features, counts, config.dtype)
    return found


@dataclass(frozen=True)
class _Seen:
    """A decoded picture's views: parameters int32 [N, 8], its size, and pixels [N, 3, s, s] for every input format."""

    views: np.ndarray
    size: tuple[int, int]
    pixels: dict[Format, torch.Tensor]


def _view_columns(config: Reinforce, reader: ShardReader, clips: Mapping[str, zoo.Clip]) -> dict[str, Tensors]:
    """Draw, render and embed the views of a shard; pictures are prepared on threads while teachers compute.

    Teachers of the same size and interpolation share the pixels. Batches are cut from the row of all views, so they do
    not depend on the threads.
    """
    teachers: dict[Format, list[str]] = defaultdict(list)
    for name, clip in clips.items():
        teachers[clip.preprocess.size, clip.preprocess.interpolation].append(name)
    waiting: dict[Format, list[torch.Tensor]] = {form: [] for form in teachers}
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in clips}

    def embed(form: Format, pixels: torch.Tensor) -> None:
        for name in teachers[form]:
            features = embed_pixels(clips[name], pixels, batch_size=config.batch_size, precision=config.precision)
            check_finite(features, model=f"teacher '{name}'", where=f"views of shard '{reader.name}'")
            parts[name].append(features)

    rows: list[np.ndarray] = []
    sizes: list[tuple[int, int]] = []
    prepare = partial(_prepare, config, reader, list(teachers))
    for seen in progress_bar(
        ahead(prepare, range(len(reader)), workers=config.workers),
        total=len(reader), desc=reader.name, unit="image", leave=False,
    ):  # fmt: skip
        rows.append(seen.views)
        sizes.append(seen.size)
        for form, pixels in seen.pixels.items():
            full, waiting[form] = _cut([*waiting[form], pixels], config.batch_size)
            for batch in full:
                embed(form, batch)
    for form, queue in waiting.items():
        if queue:
            embed(form, torch.cat(queue))
    found: dict[str, Tensors] = {
        "views": {
            "views": torch.from_numpy(np.stack(rows)),
            "sizes": torch.tensor(sizes, dtype=torch.int32),
        }
    }
    for name in clips:
        found[f"{name}.views"] = encode(torch.cat(parts[name]), [config.views.num_views] * len(reader), config.dtype)
    return found


def _cut(waiting: list[torch.Tensor], size: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Full batches of what waits, and what is left; pixels are copied once per batch, not with every picture."""
    if sum(map(len, waiting)) < size:
        return [], waiting
    parts = torch.split(torch.cat(waiting), size)
    whole = len(parts) if len(parts[-1]) == size else len(parts) - 1
    return list(parts[:whole]), list(parts[whole:])


def _prepare(config: Reinforce, reader: ShardReader, formats: Sequence[Format], index: int) -> _Seen:
    sample = reader.sample(index)
    try:
        image = decode(sample.image)
    except DataError as error:
        raise DataError(f"shard '{reader.name}': picture '{sample.uid}': {error}") from None
    views = draw_views(config.views, uid=sample.uid, seed=config.seed, width=image.width, height=image.height)
    pixels = {form: apply_views(image, views, size=form[0], interpolation=form[1]) for form in formats}
    return _Seen(views, image.size, pixels)


def _texts(
    config: Reinforce, data: str, content: Manifest, reader: ShardReader, shard: Shard, kind: str
) -> list[list[str]]:
    if kind == GROUND_TRUTH:
        rows = [reader.sample(index).metadata.get(config.caption_field) or [] for index in range(len(reader))]
        return [[row] if isinstance(row, str) else list(row) for row in rows]
    return read_captions(data, content.column(kind), shard)


def _rows(out: str, content: Manifest, column: str, shards: list[Shard]) -> int:
    return sum(int(ColumnReader(out, content.column(column), s).row("counts", s.samples)) for s in shards)
