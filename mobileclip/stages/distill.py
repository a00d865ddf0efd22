"""distill: train a student on a reinforced dataset, and on request the plain-CLIP control beside it."""

import logging
from collections.abc import Sequence

import torch

from mobileclip import manifest, storage
from mobileclip.config import Distill, Training
from mobileclip.data.loader import PairDataset, Recipe
from mobileclip.errors import ConfigError
from mobileclip.lineage import attribution
from mobileclip.manifest import Attribution, Manifest
from mobileclip.models import attributions as credit
from mobileclip.models import zoo
from mobileclip.models.interpolate import mix_in, snapshot
from mobileclip.tracking.protocol import Tracker
from mobileclip.training import checkpoint
from mobileclip.training.bank import Bank, read_bank
from mobileclip.training.clip_objective import SIGMOID_BIAS, Reinforcement, TeacherAffinity
from mobileclip.training.contrastive import checkpoints, train_clip
from mobileclip.training.curves import log_history, reporter, write_history, write_timings
from mobileclip.training.loop import Result
from mobileclip.training.online import load_teachers, online_teachers, precisions, teacher_inputs
from mobileclip.training.validation import retrieval_validation
from mobileclip.training.world import join, one_by_one, train_models

logger = logging.getLogger(__name__)


def run(config: Distill, *, out: str, tracker: Tracker, data: str, teachers: str = "") -> dict[str, float]:
    """Train `out/student` and, with `control`, `out/control` from the same start on the same batches.

    Args:
        config: The `distill` section.
        out: Output folder or URI.
        tracker: Gets the learning curves.
        data: Reinforced dataset; its manifest holds teachers, scales and views.
        teachers: Folder of train_teacher, for those of its teachers that run in the step.

    Returns:
        Per model the loss at the point of the curve whose weights are saved, and their recall on the validation split.

    Raises:
        ConfigError: A named teacher is not in the manifest, or there is none while lambda is above 0, or it cannot be
            loaded to run in the step.
    """
    content = manifest.read(data)
    used = _used_teachers(config, content)
    runs = {"student": (_reinforcement(config, content, used), tuple(config.synthetic))}
    if config.control:
        runs["control"] = (Reinforcement(affinity=config.affinity), ())
    results: dict[str, Result] = {}
    metrics: dict[str, float] = {}
    live = tracker if one_by_one(len(runs)) else None
    outcomes = train_models([(_train, (config, name, *what, data, teachers, out, live)) for name, what in runs.items()])
    for name, result in zip(runs, outcomes, strict=True):
        results[name] = result
        if live is None:
            log_history(tracker, result)
        saved = results[name].saved
        metrics |= {f"{name}/{k}": v for k, v in saved.items() if k == "loss" or k.startswith("validation/")}
    if join().main:
        write_history(out, list(results.values()))
        write_timings(out, results)
        for name in runs:
            checkpoint.remove(checkpoints(storage.join(out, name)))
    return metrics


def _used_teachers(config: Distill, content: Manifest) -> tuple[str, ...]:
    """The teachers that some term of the loss looks at."""
    teachers = tuple(config.teachers or content.scales or content.teachers())
    for name in teachers:
        if name not in content.teachers():
            raise ConfigError(f"distill.teachers: got '{name}', the dataset has {content.teachers()}.")
    wanted = next((key for key in ("distill_weight", "feature_weight", "bank_weight") if getattr(config, key) > 0), "")
    if wanted and not teachers:
        raise ConfigError(f"distill.{wanted}: got a value above 0, but the dataset has no teacher embeddings.")
    used = teachers if wanted else ()
    if config.teacher_biases and len(config.teacher_biases) != len(used):
        raise ConfigError(f"distill.teacher_biases: got {len(config.teacher_biases)}, want one for each of {used}.")
    return used


def _reinforcement(config: Distill, content: Manifest, teachers: tuple[str, ...]) -> Reinforcement:
    biases = config.teacher_biases or [SIGMOID_BIAS] * len(teachers)
    return Reinforcement(
        teachers=tuple(map(TeacherAffinity, teachers, _scales(content, teachers), biases)),
        distill_weight=config.distill_weight,
        divergence=config.divergence,
        affinity=config.affinity,
        feature_weight=config.feature_weight,
        feature_distance=config.feature_distance,
        bank_weight=config.bank_weight,
    )


def _train(
    config: Distill,
    name: str,
    reinforcement: Reinforcement,
    synthetic: tuple[str, ...],
    data: str,
    trained: str,
    out: str,
    live: Tracker | None,
) -> Result:
    """Train and save one student; where it is not in a process of its own, the tracker follows it live."""
    content = manifest.read(data)
    names = reinforcement.names if config.online_teachers else ()
    online = load_teachers(content, names, trained=trained)  # before the seed: loading draws, too
    torch.manual_seed(config.seed)  # student and control start from the same weights
    clip = zoo.start(config.model, pretrained=config.pretrained)
    start = snapshot(clip.model) if config.start_share else {}
    recipe = Recipe(
        clip.preprocess, clip.tokenizer, config.caption_field, synthetic, () if online else reinforcement.names,
        views="stored" if content.has("views") else "whole", selection=config.selection, seed=config.seed,
        mix=config.synthetic_share if config.caption_use == "mix" else None, sequential=config.choice == "sequential",
        extra_augment=(config.extra_augment_ops, config.extra_augment_magnitude),
        online=teacher_inputs(online),
    )  # fmt: skip
    dataset = PairDataset(data, content, recipe)
    validate = retrieval_validation(clip, data, content, caption_field=config.caption_field, limit=500)
    bank = _bank(config, data, content, reinforcement, synthetic, clip.embed_dim)
    result = train_clip(
        clip, dataset, _training(config, name), reinforcement=reinforcement, seed=config.seed,
        key={
            "data": content.digest(), "start": clip.sha256,
            "config": config.model_dump(mode="json", exclude={"training", "control", "control_lr"}),
        },
        folder=storage.join(out, name), title=name, validate=validate,
        online=online_teachers(online, precision=precisions(content, names)) if online else None,
        bank=bank, report=reporter(live) if live else None,
    )  # fmt: skip
    if config.start_share:
        mix_in(clip.model, start, start_share=config.start_share)
        if validate is not None and join().main:
            result.saved = result.saved | {f"validation/{k}": v for k, v in validate().items()}
    card = zoo.origin(config.model, config.pretrained) | {
        "stage": "distill",
        "start": {"sha256": clip.sha256, "share": config.start_share},
        "dataset": content.digest(),
        "teachers": {t: content.column(f"{t}.views").spec["sha256"] for t in reinforcement.names},
        "teacher_logit_scales": reinforcement.scales,
        "distill_weight": reinforcement.distill_weight,
        "synthetic": list(synthetic),
    }
    if join().main:
        owed = _attributions(content, reinforcement, synthetic)
        if zoo.has_weights(config.model, config.pretrained):
            owed = attribution.merged(owed, credit.attributions(clip, "weights"))
        license_ = attribution.license_of(owed)
        zoo.save(storage.join(out, name), clip, license=license_, card=card | attribution.to_card(owed))
    return result


def _training(config: Distill, name: str) -> Training:
    if name != "control" or not config.control_lr:
        return config.training
    optimizer = config.training.optimizer.model_copy(update={"lr": config.control_lr})
    return config.training.model_copy(update={"optimizer": optimizer})


def _bank(
    config: Distill, data: str, content: Manifest, reinforcement: Reinforcement, synthetic: Sequence[str], width: int
) -> Bank | None:
    if not reinforcement.bank_weight:
        return None
    return read_bank(
        data, content, reinforcement.scales, columns=("captions", *synthetic), width=width, size=config.bank_size,
        seed=config.seed, selection=config.selection,
    )  # fmt: skip


def _scales(content: Manifest, teachers: tuple[str, ...]) -> tuple[float, ...]:
    own = {name: content.column(f"{name}.views").spec["logit_scale"] for name in teachers}
    left_out = [name for name in teachers if content.scales and name not in content.scales]
    if left_out:
        logger.warning(
            "distill.teachers: calibrate left out %s, which is used with its own logit scale %s; calibrate.select: "
            "false calibrates all teachers together.",
            ", ".join(left_out), ", ".join(f"{own[name]:g}" for name in left_out),
        )  # fmt: skip
    return tuple(float(content.scales.get(name, own[name])) for name in teachers)


def _attributions(content: Manifest, reinforcement: Reinforcement, synthetic: tuple[str, ...]) -> list[Attribution]:
    """Everything of the dataset that a student learns from: pictures, captions, captioners, teachers."""
    captioners = [attribution.of_column(content, name, "captioner") for name in synthetic]
    teachers = [attribution.of_column(content, f"{name}.views", "teacher") for name in reinforcement.names]
    return attribution.merged(attribution.of_data(content), *captioners, *teachers)
