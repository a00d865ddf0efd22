"""train_teacher: in-domain CLIP teachers, from scratch or by locked tuning of pretrained towers."""

import contextlib
import hashlib
from pathlib import Path
from typing import Any

import torch

from mobileclip import manifest, storage
from mobileclip.config import Teacher, TrainTeacher, Views
from mobileclip.data import license_ledger as ledger
from mobileclip.data.loader import PairDataset, Recipe
from mobileclip.data.progress import progress_bar
from mobileclip.data.shards import Sample, read_samples
from mobileclip.errors import ConfigError, DataError
from mobileclip.lineage import attribution
from mobileclip.manifest import Attribution, Manifest
from mobileclip.models import attributions as credit
from mobileclip.models import zoo
from mobileclip.models.interpolate import mix_in, snapshot
from mobileclip.models.trunk import load_trunk
from mobileclip.tracking.protocol import Tracker
from mobileclip.training import checkpoint
from mobileclip.training.clip_objective import Reinforcement
from mobileclip.training.contrastive import checkpoints, train_clip
from mobileclip.training.curves import log_history, reporter, write_history, write_timings
from mobileclip.training.frozen import look, read
from mobileclip.training.locked import train_heads
from mobileclip.training.loop import Report, Result
from mobileclip.training.validation import locked_validation, retrieval_validation
from mobileclip.training.world import join, one_by_one, train_models

# Milder than the reinforced views: a teacher learns from whole objects.
_VIEWS = Views(num_views=1, scale_min=0.6, rand_augment_ops=1, rand_augment_magnitude=6)
# Pairs of the validation split that are scored at every point of the curve, as distill does.
_SCORED = 500


def run(config: TrainTeacher, *, out: str, tracker: Tracker, data: str, towers: str = "") -> dict[str, float]:
    """Train the teachers one after the other; each becomes a checkpoint folder `out/NAME`.

    Args:
        config: The `train_teacher` section.
        out: Output folder or URI.
        tracker: Gets the learning curves.
        data: Prepared dataset.
        towers: Folder with pretrained towers, where a teacher names some.

    Returns:
        Per teacher: loss at the point of the curve whose weights are saved, and their recall on the validation split
        where there is one.
    """
    live = tracker if one_by_one(len(config.teachers)) else None
    outcomes = train_models([(_train_one, (config, teacher, out, data, towers, live)) for teacher in config.teachers])
    results: dict[str, Result] = {}
    metrics: dict[str, float] = {}
    for teacher, (result, scores) in zip(config.teachers, outcomes, strict=True):
        results[teacher.name] = result
        metrics |= scores
        if live is None:
            log_history(tracker, result)
    if join().main:
        write_history(out, list(results.values()))
        write_timings(out, results)
        for teacher in config.teachers:
            checkpoint.remove(checkpoints(storage.join(out, teacher.name)))
    return metrics


def _train_one(
    config: TrainTeacher, teacher: Teacher, out: str, data: str, towers: str, live: Tracker | None
) -> tuple[Result, dict[str, float]]:
    """Train, save and score one teacher, in a process of its own."""
    with _fetched(teacher, towers) as root:
        return _train_from(root, config, teacher, out, data, live)


def _fetched(teacher: Teacher, towers: str) -> contextlib.AbstractContextManager[Path]:
    """The folder with the towers that a teacher names; of an object store a copy, removed when the teacher is saved."""
    if not (teacher.image_weights or teacher.text_weights):
        return contextlib.nullcontext(Path())
    if not towers:
        raise ConfigError(
            f"train_teacher: teacher '{teacher.name}' names pretrained towers, but input 'towers' is empty."
        )
    return storage.fetched(towers)


def _train_from(
    root: Path, config: TrainTeacher, teacher: Teacher, out: str, data: str, live: Tracker | None
) -> tuple[Result, dict[str, float]]:
    content = manifest.read(data)
    torch.manual_seed(config.seed)
    clip = _create(teacher, root)
    train_one = _train_locked if teacher.lock else _train_whole
    key = {
        "data": content.digest(), "seed": config.seed, "model": teacher.model, "captions": config.captions,
        "start": clip.sha256, "towers": _digests(teacher, root),
    }  # fmt: skip
    start = snapshot(clip.model) if teacher.start_share else {}
    result = train_one(teacher, clip, config, data, content, key, out, reporter(live) if live else None)
    if teacher.start_share:
        mix_in(clip.model, start, start_share=teacher.start_share)
    if not join().main:
        return result, {}
    card = zoo.origin(teacher.model, teacher.pretrained) | {
        "stage": "train_teacher", "dataset": content.digest(), "teacher": teacher.name,
        "start": {"sha256": clip.sha256, "share": teacher.start_share},
    }  # fmt: skip
    owed = attribution.merged(attribution.of_data(content), _start(teacher, clip, root))
    license_ = attribution.license_of(owed)
    zoo.save(storage.join(out, teacher.name), clip, license=license_, card=card | attribution.to_card(owed))
    scores = {f"{teacher.name}/loss": result.saved["loss"]}
    validate = retrieval_validation(clip, data, content, caption_field=config.captions[0])
    if validate is not None:
        scores |= {f"{teacher.name}/validation/{name}": value for name, value in validate().items()}
    return result, scores


def _create(teacher: Teacher, root: Path) -> zoo.Clip:
    text = root / teacher.text_weights if teacher.text_weights else None
    if text is not None and not (text / "config.json").is_file():
        raise DataError(f"train_teacher: teacher '{teacher.name}': no Hugging Face text model in '{text}'.")
    if zoo.has_weights(teacher.model, teacher.pretrained) and (teacher.image_weights or teacher.text_weights):
        raise ConfigError(
            f"train_teacher: teacher '{teacher.name}' names weights of the whole model and of a tower, want one."
        )
    clip = zoo.start(teacher.model, pretrained=teacher.pretrained, text_folder=text)
    model: Any = clip.model
    whose = f"train_teacher: teacher '{teacher.name}'"
    towers_of = ("timm_proj" in clip.config["vision_cfg"], "hf_proj_type" in clip.config["text_cfg"])
    if teacher.lock and not all(towers_of):
        raise ConfigError(
            f"train_teacher: teacher '{teacher.name}': lock is on, but '{teacher.model}' has no timm image tower "
            "beside a Hugging Face text tower."
        )
    if teacher.image_weights:
        load_trunk(model.visual.trunk, root / teacher.image_weights, whose=whose, heads=("classifier.", "head."))
    if text is not None:
        load_trunk(model.text.transformer, text / "model.safetensors", whose=whose, heads=("pooler.",))
    return clip


def _digests(teacher: Teacher, root: Path) -> dict[str, str]:
    """Of the pretrained towers' weights, by tower."""
    files = {
        "image": teacher.image_weights,
        "text": teacher.text_weights and f"{teacher.text_weights}/model.safetensors",
    }
    return {tower: storage.digest_file(root / file) for tower, file in files.items() if file}


def _train_whole(
    teacher: Teacher,
    clip: zoo.Clip,
    config: TrainTeacher,
    data: str,
    content: Manifest,
    key: dict[str, Any],
    out: str,
    report: Report | None,
) -> Result:
    recipe = Recipe(
        clip.preprocess, clip.tokenizer, config.captions[0], views=_VIEWS, selection=False, seed=config.seed,
        more_fields=tuple(config.captions[1:]),
    )  # fmt: skip
    dataset = PairDataset(data, content, recipe)
    return train_clip(
        clip, dataset, teacher.training, reinforcement=Reinforcement(), seed=config.seed, key=key,
        folder=storage.join(out, teacher.name), title=teacher.name,
        validate=retrieval_validation(clip, data, content, caption_field=config.captions[0], limit=_SCORED),
        report=report,
    )  # fmt: skip


def _train_locked(
    teacher: Teacher,
    clip: zoo.Clip,
    config: TrainTeacher,
    data: str,
    content: Manifest,
    key: dict[str, Any],
    out: str,
    report: Report | None,
) -> Result:
    image, text, owners = _trunk_features(clip, config, data, content)
    digest = hashlib.sha256(image.numpy().tobytes() + text.numpy().tobytes()).hexdigest()
    return train_heads(
        clip, image, text, owners, teacher.training, seed=config.seed,
        key=key | {"features": digest, "dropout": teacher.dropout},
        folder=storage.join(out, teacher.name), title=teacher.name, dropout=teacher.dropout,
        validate=locked_validation(clip, data, content, caption_field=config.captions[0], limit=_SCORED),
        report=report,
    )  # fmt: skip


@torch.no_grad()
def _trunk_features(
    clip: zoo.Clip, config: TrainTeacher, data: str, content: Manifest
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pooled features of both frozen trunks: [images, w], [texts, v], and each text's image."""
    model: Any = clip.model
    samples: list[Sample] = []
    texts: list[str] = []
    owners: list[int] = []
    for sample in read_samples(data, content, "train"):
        values = [sample.metadata.get(field) or [] for field in config.captions]
        captions = [text for value in values for text in ([value] if isinstance(value, str) else value)]
        if not captions:
            continue
        texts += captions
        owners += [len(samples)] * len(captions)
        samples.append(sample)
    if not texts:
        raise DataError(f"data: no sample with a '{', '.join(config.captions)}' caption is left in '{data}'.")
    image = look(model.visual.trunk, samples, clip.preprocess)
    # Many captions are shared by several pictures (one concept, many artists): embed each once. Sorting by length
    # keeps padding short.
    unique = sorted(set(texts), key=lambda t: (len(t), t))
    starts = progress_bar(range(0, len(unique), 64), desc="text trunk")
    rows = [read(clip, clip.tokenizer(unique[start : start + 64])) for start in starts]
    place = {text: index for index, text in enumerate(unique)}
    text = torch.cat(rows)[[place[t] for t in texts]]
    return image, text, torch.tensor(owners)


def _start(teacher: Teacher, clip: zoo.Clip, root: Path) -> list[Attribution]:
    """The weights a teacher started from: of the whole model, or of its towers."""
    if zoo.has_weights(teacher.model, teacher.pretrained):
        return credit.attributions(clip, "weights")
    given = [path for path in (teacher.image_weights, teacher.text_weights) if path]
    return [ledger.of_tower(str(root), path, key="train_teacher.towers") for path in given]
