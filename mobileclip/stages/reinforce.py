"""reinforce: N stored views per image and every teacher's embeddings of views and captions, as columns."""

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import PIL
import torch
import torchvision

from mobileclip import manifest
from mobileclip.config import Reinforce, TeacherRef
from mobileclip.data.augment import apply_view, draw_views
from mobileclip.data.columns import ColumnPlan, ColumnReader, Tensors, build_columns, collect, unpack_texts
from mobileclip.data.embeddings import encode
from mobileclip.data.images import decode
from mobileclip.data.shards import Sample, ShardReader
from mobileclip.errors import ConfigError
from mobileclip.manifest import Manifest, Shard
from mobileclip.models import zoo
from mobileclip.models.embed import embed_pixels, embed_texts
from mobileclip.report import Tracker

logger = logging.getLogger(__name__)

GROUND_TRUTH = "captions"


def run(
    config: Reinforce,
    *,
    out: str,
    tracker: Tracker,  # noqa: ARG001 - the metrics are the return value
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
        tracker: Unused.
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
        build_columns(out, plans, shards, compute, group=group, num_groups=num_groups, title="reinforce")
        if num_groups > 1:
            return {}
    final = collect(out, plans, shards, content.moved(data, out))
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
        }
        license_ = refs[name].license or clip.license
        plans.append(ColumnPlan(f"{name}.views", "embedding", {**teacher, "views": views}, ["views"], license_))
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
    """Tensors of the missing columns of one shard; each picture is decoded once."""
    reader = ShardReader(data, shard)
    samples = [reader.sample(index) for index in range(len(reader))]
    found: dict[str, Tensors] = {}
    seeing = [name for name in clips if f"{name}.views" in missing]
    if "views" in missing or seeing:
        found |= _view_columns(config, samples, {name: clips[name] for name in seeing})
    for name, clip in clips.items():
        for kind in (GROUND_TRUTH, *config.captions):
            if f"{name}.{kind}" not in missing:
                continue
            texts = _texts(config, data, content, samples, shard, kind)
            flat = [text for row in texts for text in row]
            features = embed_texts(clip, flat, batch_size=config.batch_size)
            found[f"{name}.{kind}"] = encode(features, [len(row) for row in texts], config.dtype)
    return found


def _view_columns(config: Reinforce, samples: list[Sample], clips: Mapping[str, zoo.Clip]) -> dict[str, Tensors]:
    count = config.views.num_views
    rows = np.zeros((len(samples), count, 8), dtype=np.int32)
    sizes = np.zeros((len(samples), 2), dtype=np.int32)
    pixels: dict[str, list[torch.Tensor]] = {name: [] for name in clips}
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in clips}
    for index, sample in enumerate(samples):
        image = decode(sample.image)
        sizes[index] = image.size
        rows[index] = draw_views(config.views, uid=sample.uid, seed=config.seed, width=image.width, height=image.height)
        for name, clip in clips.items():
            pre = clip.preprocess
            pixels[name] += [apply_view(image, v, size=pre.size, interpolation=pre.interpolation) for v in rows[index]]
            if len(pixels[name]) >= config.batch_size or index == len(samples) - 1:
                parts[name].append(embed_pixels(clip, torch.stack(pixels[name]), batch_size=config.batch_size))
                pixels[name] = []
    found: dict[str, Tensors] = {"views": {"views": torch.from_numpy(rows), "sizes": torch.from_numpy(sizes)}}
    for name in clips:
        found[f"{name}.views"] = encode(torch.cat(parts[name]), [count] * len(samples), config.dtype)
    return found


def _texts(
    config: Reinforce, data: str, content: Manifest, samples: list[Sample], shard: Shard, kind: str
) -> list[list[str]]:
    if kind == GROUND_TRUTH:
        rows = [sample.metadata.get(config.caption_field) or [] for sample in samples]
        return [[row] if isinstance(row, str) else list(row) for row in rows]
    reader = ColumnReader(data, content.column(kind), shard)
    return [unpack_texts(reader, index) for index in range(len(samples))]


def _rows(out: str, content: Manifest, column: str, shards: list[Shard]) -> int:
    return sum(int(ColumnReader(out, content.column(column), s).row("counts", s.samples)) for s in shards)
