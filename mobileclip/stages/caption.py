"""caption: M synthetic captions per image as a caption column, with a report on their quality."""

import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import zip_longest
from typing import Any

import open_clip
import torch

from mobileclip import manifest, storage
from mobileclip.config import Caption
from mobileclip.data.columns import ColumnPlan, Tensors, build_columns, collect, pack_texts, read_captions
from mobileclip.data.images import decode, resize
from mobileclip.data.preprocess import Preprocess, image_tensor
from mobileclip.data.progress import progress_bar, write_timings
from mobileclip.data.shards import ShardReader
from mobileclip.errors import ConfigError, MobileClipError
from mobileclip.evaluation.captions import Quality, assess, clip_score, fault
from mobileclip.manifest import Column, Manifest, Shard
from mobileclip.models import attributions as credit
from mobileclip.models import zoo
from mobileclip.models.embed import embed_pixels, embed_texts
from mobileclip.models.generation import Sampling, check, write_captions
from mobileclip.reports.figures import draw_lengths
from mobileclip.tracking.protocol import Tracker

logger = logging.getLogger(__name__)

# Raise when captions of the same spec would come out otherwise: committed columns are then written anew.
_VERSION = 1
_SCORED_SHARDS = 10
_SHOWN = 20


def run(
    config: Caption,
    *,
    out: str,
    tracker: Tracker,
    data: str,
    captioner: str = "",
    group: int = 0,
    num_groups: int = 1,
    merge: bool = False,
) -> dict[str, float]:
    """Write what is missing of the caption column, judge it, publish the manifest.

    Every sample of the splits is captioned, also those a filter dropped: training applies the selection.

    Args:
        config: The `caption` section.
        out: Output folder or URI; committed shards there are kept.
        tracker: Gets the speed and the histogram of lengths.
        data: Dataset to caption.
        captioner: Folder of finetune_captioner, for `model: trained`.
        group: This process's unit of work.
        num_groups: Number of units; with more than one the manifest is published by the merge alone.
        merge: Only check that all units are done, judge and publish.

    Returns:
        The metrics of `mobileclip.evaluation.captions.assess`; nothing for one unit, or where the stage is off, which
        leaves a manifest without the column.

    Raises:
        ConfigError: The model writes no captions, or the length does not fit it.
        MobileClipError: More captions than `max_degenerate_share` are empty, of one word, or loop;
            nothing is published.
    """
    content = manifest.read(data)
    if not config.enabled:
        if merge or num_groups == 1:
            manifest.write(out, content.moved(data, out))
        return {}
    shards = content.split(*config.splits)
    clip = _load(config, captioner)
    plan = _plan(config, clip)
    if not merge:
        compute = partial(_compute, config, clip, data)
        title = f"caption {config.name}"
        work = build_columns(out, [plan], shards, compute, group=group, num_groups=num_groups, title=title)
        speed = {"images": work.samples, "images_per_second": round(work.rate, 3)}
        write_timings(out, work, group=group, num_groups=num_groups, **speed)
        if work.samples:
            tracker.log_metrics({"images_per_second": work.rate})
        if num_groups > 1:
            return {}
    final = collect(out, [plan], shards, content.moved(data, out))
    quality = _report(config, clip, out, final, tracker)
    manifest.write(out, final)
    return quality.metrics


def _load(config: Caption, captioner: str) -> zoo.Clip:
    clip = zoo.load(config.model, pretrained=config.pretrained, trained=captioner)
    try:
        check(clip, _sampling(config))
    except ConfigError as error:
        raise ConfigError(f"caption.{error}") from None
    return clip


def _sampling(config: Caption) -> Sampling:
    keys = ("method", "top_p", "top_k", "temperature", "min_tokens", "max_tokens", "num_beams")
    return Sampling(**{key: getattr(config, key) for key in keys})


def _plan(config: Caption, clip: zoo.Clip) -> ColumnPlan:
    """The column with all that decides its bytes; keys that the method does not read are left out."""
    chosen: dict[str, Any] = {}
    if config.method in {"top_p", "top_k"}:
        chosen = {config.method: getattr(config, config.method), "temperature": config.temperature, "seed": config.seed}
    elif config.method == "beam":
        chosen = {"num_beams": config.num_beams, "score": "mean log-probability"}
    elif config.method == "beam_logits":
        chosen = {"num_beams": config.num_beams, "score": "mean logit"}
    spec: dict[str, Any] = {
        "sha256": clip.sha256,
        "preprocess": clip.preprocess.as_open_clip(),
        "context_length": int(clip.config["text_cfg"].get("context_length", 77)),
        "method": config.method,
        **chosen,
        "num_captions": config.num_captions,
        "min_tokens": config.min_tokens,
        "max_tokens": config.max_tokens,
        "open_clip": open_clip.__version__,
        "version": _VERSION,
    }
    owed = credit.attributions(clip, "captioner", config.name)
    return ColumnPlan(config.name, "caption", spec, license=clip.license, attributions=owed)


def _compute(config: Caption, clip: zoo.Clip, data: str, shard: Shard, _: list[str]) -> dict[str, Tensors]:
    """Captions of one shard, with a uint8 flag [samples, M] for the degenerate ones."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clip.model.to(device)
    rows: list[list[str]] = []
    progress = progress_bar(total=shard.samples, desc=shard.name, unit="image", leave=False)
    for uids, pixels in _batches(ShardReader(data, shard), clip.preprocess, config.batch_size):
        images = image_tensor(pixels, clip.preprocess).to(device)
        rows += write_captions(
            clip, images, uids, num_captions=config.num_captions, sampling=_sampling(config), seed=config.seed
        )
        progress.update(len(uids))
    progress.close()
    flags = torch.tensor([[bool(fault(text)) for text in row] for row in rows], dtype=torch.uint8)
    return {config.name: {**pack_texts(rows), "degenerate": flags}}


def _batches(
    reader: ShardReader, preprocess: Preprocess, batch_size: int, limit: int = 0
) -> Iterator[tuple[list[str], torch.Tensor]]:
    """Uids and uint8 pixels [batch, 3, size, size]; the next pictures are decoded while a batch is worked on."""

    def load(part: range) -> torch.Tensor:
        images = (decode(reader.sample(index).image) for index in part)
        return torch.stack([resize(image, preprocess) for image in images])

    count = min(limit or len(reader), len(reader))
    parts = [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    with ThreadPoolExecutor(max_workers=1) as pool:
        ahead = pool.submit(load, parts[0])
        for part, following in zip_longest(parts, parts[1:]):
            pixels = ahead.result()
            if following is not None:
                ahead = pool.submit(load, following)
            yield [reader.uids[index] for index in part], pixels


def _report(config: Caption, clip: zoo.Clip, out: str, final: Manifest, tracker: Tracker) -> Quality:
    """Judge the column; write `quality.json` and `lengths.png`, then hold it against the limit."""
    column, shards = final.column(config.name), final.split(*config.splits)
    places = [(shard.name, row) for shard in shards for row in range(shard.samples)]
    captions = [texts for shard in shards for texts in read_captions(out, column, shard)]
    quality = assess(captions)
    quality.metrics.update(_clip_score(config, clip, out, column, shards))
    bad = [
        {"shard": shard, "row": row, "caption": text, "reason": reason}
        for (shard, row), texts, reasons in zip(places, captions, quality.reasons, strict=True)
        for text, reason in zip(texts, reasons, strict=True)
        if reason
    ]
    step = max(1, len(places) // _SHOWN)
    samples = [
        {"shard": shard, "row": row, "captions": texts}
        for (shard, row), texts in list(zip(places, captions, strict=True))[::step][:_SHOWN]
    ]
    report = {
        "column": config.name, "captioner": column.spec, "metrics": quality.metrics,
        "lengths": {str(words): count for words, count in quality.lengths.items()},
        "degenerate": bad[:_SHOWN], "samples": samples,
    }  # fmt: skip
    _write_json(out, "quality.json", report)
    figure = storage.join(out, "lengths.png")
    storage.write_bytes(figure, draw_lengths(quality.lengths))
    if not storage.is_s3(figure):
        tracker.log_file(figure, folder="caption")
    share = quality.metrics["degenerate"]
    if share > config.max_degenerate_share:
        raise MobileClipError(
            f"caption.max_degenerate_share: {share:.1%} of {sum(map(len, captions))} captions are empty, short or loop,"
            f" want at most {config.max_degenerate_share:.1%}; the first is {bad[0]['caption']!r} ({bad[0]['reason']})."
        )
    return quality


def _clip_score(config: Caption, clip: zoo.Clip, out: str, column: Column, shards: Sequence[Shard]) -> dict[str, float]:
    """Mean cosine of captions and images over the first samples of evenly chosen shards."""
    if not config.score_samples or not shards:
        return {}
    scorer = zoo.load(config.score_model) if config.score_model else clip
    scorer.model.cpu()
    chosen = shards[:: max(1, len(shards) // _SCORED_SHARDS)][:_SCORED_SHARDS]
    each = -(-config.score_samples // len(chosen))
    captions: list[list[str]] = []
    pixels: list[torch.Tensor] = []
    for shard in chosen:
        captions += read_captions(out, column, shard)[:each]
        reader = ShardReader(out, shard)
        pixels += [part for _, part in _batches(reader, scorer.preprocess, config.batch_size, limit=each)]
    image = embed_pixels(scorer, torch.cat(pixels), batch_size=config.batch_size)
    text = embed_texts(scorer, [text for row in captions for text in row], batch_size=config.batch_size)
    return {"clip_score": clip_score(captions, image, text)}


def _write_json(out: str, name: str, value: Any) -> None:
    storage.write_bytes(storage.join(out, name), (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())
