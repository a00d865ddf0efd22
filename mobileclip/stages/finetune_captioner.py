"""finetune_captioner: pre-train a CoCa on the alt text, fine-tune it on better captions, score it on held-out ones."""

import hashlib
import json
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from open_clip import CoCa

from mobileclip import manifest, storage
from mobileclip.config import FinetuneCaptioner, Training, Views
from mobileclip.data import license_ledger as ledger
from mobileclip.data.images import decode, resize
from mobileclip.data.loader import PairDataset, Recipe
from mobileclip.data.preprocess import image_tensor
from mobileclip.data.progress import progress_bar
from mobileclip.data.shards import Sample, read_samples
from mobileclip.errors import ConfigError
from mobileclip.evaluation.caption_scores import bleu4, cider
from mobileclip.evaluation.captions import assess
from mobileclip.lineage import attribution
from mobileclip.manifest import Attribution, Manifest
from mobileclip.models import attributions as credit
from mobileclip.models import zoo
from mobileclip.models.context import context_length, with_context
from mobileclip.models.embed import embed_pixels, embed_texts
from mobileclip.models.generation import Sampling, write_captions
from mobileclip.models.trunk import TrunkTower, load_trunk
from mobileclip.reports.captioner import caption_page
from mobileclip.reports.examples import thumbnail
from mobileclip.tracking.protocol import Tracker
from mobileclip.training import checkpoint
from mobileclip.training.captioning import caption_validation, train_captioner
from mobileclip.training.contrastive import FREE, checkpoints
from mobileclip.training.curves import reporter, write_history, write_timings
from mobileclip.training.frozen import FrozenTrunk, freeze_trunk
from mobileclip.training.loop import Result
from mobileclip.training.world import join

# A caption speaks of the whole picture: crops stay nearly whole (open_clip trains CoCa with the same scale), no
# RandAugment, which would change the colors that captions name.
_VIEWS = Views(num_views=1, scale_min=0.9, rand_augment_ops=0)
_BATCH = 32
_SHOWN = 20
_OWN_OF_A_PHASE = {"pretrain", "pretrain_field", "finetune", "finetune_field"}


@dataclass(frozen=True)
class _Phase:
    """One of the two trainings."""

    name: str
    field: str
    training: Training


def run(config: FinetuneCaptioner, *, out: str, tracker: Tracker, data: str, towers: str = "") -> dict[str, float]:
    """Train the captioner and save it as a checkpoint folder at `out`.

    The alt text teaches what things are called, the better captions how to say it: without the second step retrieval
    loses about 10 points (MobileCLIP2, arXiv 2508.20691, on the choice of captioner).

    Args:
        config: The `finetune_captioner` section.
        out: Output folder or URI; also gets `history.jsonl`, `samples.json`, `report.html` and `timings.json`.
        tracker: Gets the learning curves.
        data: Prepared dataset; a selection in it is applied.
        towers: Folder with pretrained towers, where the captioner names one.

    Returns:
        Nothing where the stage is off. Per phase the losses at the point of the curve whose weights are saved, and on
        the validation split, where it has `finetune_field` captions, `caption_loss` (nats per token), `cider` (0-10),
        `bleu4` (0-100), `clip_score` (mean cosine by its own towers), `degenerate` (share) and `words/mean` of one
        greedy caption per image. Where weights are given there is no pre-training, and what they score before the
        fine-tuning is `start/validation/...`.

    Raises:
        ConfigError: The model is no CoCa, or has no trunk to load or to freeze; the best weights are to be kept, and no
            validation sample says which they are.
        DataError: No sample has the caption field of a phase.
    """
    if not config.enabled:
        return {}
    content = manifest.read(data)
    torch.manual_seed(config.seed)
    clip, owed = _create(config, content, towers)
    trunk = _sha256(storage.join(towers, config.image_weights)) if config.image_weights else ""
    held_out = _held_out(config, data, content)
    frozen = freeze_trunk(clip, data, content, dropout=config.dropout) if config.lock else None
    results: dict[str, Result] = {}
    metrics: dict[str, float] = {}
    shown: dict[str, Any] = {}
    if _has_weights(config) and join().main and held_out:  # what the weights could do before; there is no pre-training
        scores, shown["start"] = _score(clip, held_out, config)
        loss = caption_validation(clip, data, content, caption_field=config.finetune_field)
        scores |= loss() if loss is not None else {}
        metrics |= {f"start/validation/{name}": value for name, value in scores.items()}
    for phase in _phases(config):
        key = _key(phase, clip, config, content) | {"trunk": trunk}
        results[phase.name] = _train(phase, clip, frozen, config, data, content, key, out, tracker)
        saved = results[phase.name].saved
        metrics |= {f"{phase.name}/{k}": v for k, v in saved.items() if k.startswith(("loss", "validation/"))}
        if join().main and phase.name == "finetune":  # before it is scored, so that a fault there costs no training
            card = _card(config, content) | attribution.to_card(owed)
            zoo.save(out, clip, license=attribution.license_of(owed), card=card)
        if join().main and held_out:
            scores, shown[phase.name] = _score(clip, held_out, config)
            metrics |= {f"{phase.name}/validation/{name}": value for name, value in scores.items()}
    if not join().main:
        return metrics
    samples = [_sample_row(sample, config, shown, place) for place, sample in enumerate(held_out[:_SHOWN])]
    storage.write_bytes(storage.join(out, "samples.json"), (json.dumps(samples, indent=1) + "\n").encode())
    if held_out:
        _write_report(out, metrics, samples, held_out, tracker)
    write_history(out, list(results.values()))
    write_timings(out, results)
    for phase in _phases(config):
        checkpoint.remove(checkpoints(storage.join(out, phase.name)))
    return metrics


def _create(config: FinetuneCaptioner, content: Manifest, towers: str) -> tuple[zoo.Clip, list[Attribution]]:
    """The captioner to start from, and what comes out owes to: data and weights."""
    owed = attribution.of_data(content)
    clip = zoo.start(config.model, pretrained=config.pretrained)
    if _has_weights(config):
        owed += credit.attributions(clip, "weights")
    if not isinstance(clip.model, CoCa):
        raise ConfigError(f"finetune_captioner.model: got '{config.model}', want a CoCa, which can write captions.")
    if config.context_length not in {0, context_length(clip)}:
        clip = with_context(clip, config.context_length)
    if config.image_weights or config.lock:
        _load_trunk(clip, config, towers)
    if config.image_weights:
        owed.append(ledger.of_tower(towers, config.image_weights, key="finetune_captioner.towers"))
    return clip, attribution.merged(owed)


def _load_trunk(clip: zoo.Clip, config: FinetuneCaptioner, towers: str) -> None:
    visual = clip.model.visual
    if not isinstance(visual, TrunkTower):
        key = "image_weights" if config.image_weights else "lock"
        raise ConfigError(
            f"finetune_captioner.{key}: got {getattr(config, key)!r}, but '{config.model}' has no timm image trunk."
        )
    if not config.image_weights:
        return
    if _has_weights(config):
        raise ConfigError("finetune_captioner: names weights of the whole model and of its trunk, want one.")
    if not towers:
        raise ConfigError("finetune_captioner: names pretrained trunk weights, but input 'towers' is empty.")
    weights = storage.join(towers, config.image_weights)
    load_trunk(visual.trunk, weights, whose="finetune_captioner", heads=("classifier.", "head."))


def _has_weights(config: FinetuneCaptioner) -> bool:
    return zoo.has_weights(config.model, config.pretrained)


def _phases(config: FinetuneCaptioner) -> list[_Phase]:
    first = _Phase("pretrain", config.pretrain_field, config.pretrain)
    second = _Phase("finetune", config.finetune_field, config.finetune)
    return [second] if _has_weights(config) else [first, second]


def _card(config: FinetuneCaptioner, content: Manifest) -> dict[str, Any]:
    """Origin of the captioner; a local folder's path is no part of it."""
    return zoo.origin(config.model, config.pretrained) | {
        "stage": "finetune_captioner",
        "dataset": content.digest(),
        "fields": {phase.name: phase.field for phase in _phases(config)},
    }


def _train(
    phase: _Phase, clip: zoo.Clip, frozen: FrozenTrunk | None, config: FinetuneCaptioner, data: str, content: Manifest,
    key: dict[str, Any], out: str, tracker: Tracker,
) -> Result:  # fmt: skip
    recipe = Recipe(clip.preprocess, clip.tokenizer, phase.field, views=_VIEWS, seed=config.seed)
    return train_captioner(
        clip, PairDataset(data, content, recipe), phase.training,
        caption_weight=config.caption_weight, contrastive_weight=config.contrastive_weight, seed=config.seed,
        key=key,
        folder=storage.join(out, phase.name), title=phase.name,
        validate=caption_validation(clip, data, content, caption_field=phase.field),
        report=reporter(tracker), frozen=frozen,
    )  # fmt: skip


def _key(phase: _Phase, clip: zoo.Clip, config: FinetuneCaptioner, content: Manifest) -> dict[str, Any]:
    """All that decides a phase but its own `Training`: of the fine-tuning the pre-training before it, too."""
    phases = _phases(config)
    before = phases[: phases.index(phase)]
    return {
        "data": content.digest(), "start": clip.sha256, "field": phase.field,
        "config": config.model_dump(mode="json", exclude=_OWN_OF_A_PHASE | {"held_out_samples"}),
        "before": [(p.field, p.training.model_dump(mode="json", exclude=FREE)) for p in before],
    }  # fmt: skip


def _sha256(uri: str) -> str:
    return hashlib.sha256(storage.read_bytes(uri)).hexdigest()


def _held_out(config: FinetuneCaptioner, data: str, content: Manifest) -> list[Sample]:
    """The first validation samples with captions of the better kind (shards are in the order of a hash)."""
    found = (s for s in read_samples(data, content, "validation") if s.metadata.get(config.finetune_field))
    held_out = list(islice(found, config.held_out_samples))
    if not held_out and config.finetune.keep_weights == "best":  # said here, the pre-training takes long
        raise ConfigError(
            "finetune_captioner.finetune.keep_weights: got 'best', but there is no validation split with "
            f"'{config.finetune_field}' captions to choose by."
        )
    return held_out


def _score(clip: zoo.Clip, samples: list[Sample], config: FinetuneCaptioner) -> tuple[dict[str, float], list[Any]]:
    """Scores of one greedy caption per held-out image, and for those shown that caption with two drawn ones."""
    device = join().device
    clip.model.to(device)
    length = context_length(clip)
    greedy = Sampling("greedy", min_tokens=1, max_tokens=length)
    drawn = Sampling("top_p", min_tokens=1, max_tokens=length)
    pixels = torch.stack([resize(decode(sample.image), clip.preprocess) for sample in samples])
    uids = [sample.uid for sample in samples]
    captions: list[str] = []
    for start in progress_bar(range(0, len(samples), _BATCH), desc="held-out captions", unit="batch"):
        part = slice(start, start + _BATCH)
        images = image_tensor(pixels[part].to(device), clip.preprocess)
        rows = write_captions(clip, images, uids[part], num_captions=1, sampling=greedy, seed=config.seed)
        captions += [row[0] for row in rows]
    images = image_tensor(pixels[:_SHOWN].to(device), clip.preprocess)
    draws = write_captions(clip, images, uids[:_SHOWN], num_captions=2, sampling=drawn, seed=config.seed)
    references = [_references(sample, config) for sample in samples]
    quality = assess(
        [[caption] for caption in captions],
        image_features=embed_pixels(clip, pixels, batch_size=_BATCH),
        text_features=embed_texts(clip, captions, batch_size=_BATCH),
    ).metrics
    scores = {name: quality[name] for name in ("clip_score", "degenerate", "words/mean")}
    scores |= {"cider": sum(cider(captions, references)) / len(samples), "bleu4": bleu4(captions, references)}
    return scores, [{"greedy": g, "drawn": d} for g, d in zip(captions, draws, strict=False)]


def _write_report(
    out: str, metrics: dict[str, float], samples: list[dict[str, Any]], held_out: list[Sample], tracker: Tracker
) -> None:
    """Scores and sample captions as a page."""
    scores: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        phase, _, score = name.partition("/validation/")
        if score:
            scores.setdefault(phase, {})[score] = value
    pictures = (thumbnail(decode(sample.image)) for sample in held_out)
    rows = [{**row, "picture": picture} for row, picture in zip(samples, pictures, strict=False)]
    page = storage.join(out, "report.html")
    storage.write_bytes(page, caption_page(scores, rows, held_out=len(held_out)).encode())
    if not storage.is_s3(page):
        tracker.log_file(page, folder="captioner")


def _references(sample: Sample, config: FinetuneCaptioner) -> list[str]:
    texts = sample.metadata[config.finetune_field]
    return [texts] if isinstance(texts, str) else list(texts)


def _sample_row(sample: Sample, config: FinetuneCaptioner, shown: dict[str, Any], place: int) -> dict[str, Any]:
    written = {phase: rows[place] for phase, rows in shown.items()}
    return {"uid": sample.uid, "alt_text": sample.captions, "references": _references(sample, config), **written}
