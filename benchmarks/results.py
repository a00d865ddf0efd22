"""Tables and figure of `docs/results.md`, from the trainings recorded in `docs/results.jsonl`."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure

from benchmarks import step_cost
from mobileclip.config import Params
from mobileclip.evaluation.statistics import over_seeds
from mobileclip.manifest import spec_digest
from mobileclip.reports.figures import ACCENT, MUTED, to_png
from mobileclip.training.contrastive import FREE

Row = dict[str, Any]
HEADLINE = "retrieval/mean/r10"


@dataclass(frozen=True)
class Study:
    """What rows must have in common to stand in one table.

    Attributes:
        dataset: Digest of the reinforced dataset.
        settings: Digest of the training's settings, see `settings_of`.
    """

    dataset: str
    settings: str


@dataclass(frozen=True)
class Variant:
    """What a training differs in from the params file.

    Attributes:
        kind: The table it stands in.
        changes: Keys of the `distill` section.
        length: Multiplies the steps; each length has a schedule of its own.
        images: Share of the training images.
    """

    kind: Literal["length", "images", "terms"]
    changes: Mapping[str, Any] = field(default_factory=dict)
    length: float = 1.0
    images: float = 1.0


PLAIN, REINFORCED = "plain CLIP", "reinforced"
_PLAIN = {"distill_weight": 0.0, "bank_weight": 0.0, "synthetic": []}
SHARES = (0.5, 0.25, 0.1)
LENGTHS = {PLAIN: (1.0, 2.0, 4.0), REINFORCED: (1.0, 0.5, 0.25)}


def longer(name: str, length: float) -> str:
    """Name of a variant trained at a multiple of the steps."""
    return name if length == 1 else f"{name}, {length:g}× the samples"


def fewer(name: str, share: float) -> str:
    """Name of a variant trained on a share of the images."""
    return name if share == 1 else f"{name}, {100 * share:g} % of the images"


VARIANTS: dict[str, Variant] = {
    PLAIN: Variant("length", _PLAIN),
    REINFORCED: Variant("length"),
    longer(REINFORCED, 0.5): Variant("length", length=0.5),
    longer(PLAIN, 2): Variant("length", _PLAIN, length=2),
    longer(REINFORCED, 0.25): Variant("length", length=0.25),
    longer(PLAIN, 4): Variant("length", _PLAIN, length=4),
    **{fewer(PLAIN, share): Variant("images", _PLAIN, images=share) for share in SHARES},
    **{fewer(REINFORCED, share): Variant("images", images=share) for share in SHARES},
    "the batch's affinities alone, λ 0.7 (MobileCLIP)": Variant("terms", {"bank_weight": 0.0, "distill_weight": 0.7}),
    "the same and features through a learned map (CLIP-KD)": Variant(
        "terms", {"bank_weight": 0.0, "distill_weight": 0.7, "feature_weight": 20.0}
    ),
    "reinforced without synthetic captions": Variant("terms", {"synthetic": []}),
    "plain CLIP with synthetic captions": Variant("terms", {"distill_weight": 0.0, "bank_weight": 0.0}),
}


def label(key: str) -> str:
    """A metric's name in a table; empty = it is in none."""
    parts = re.fullmatch(r"(?:slice/([^/]+)/)?(?:retrieval/mean/r(1|10)|zero_shot/([^/]+)/top1)", key)
    if parts is None or (parts[1] and parts[3]) or (parts[1] and parts[2] == "1"):
        return ""
    name = f"R@{parts[2]}" if parts[2] else f"{parts[3]} top-1"
    return name + (f", {parts[1]}" if parts[1] else "")


def settings_of(params: Params) -> str:
    """Digest of what the params file says of a student's training and of its scoring; the seed is a row's own."""
    section = params.distill.model_dump(mode="json", exclude_defaults=True, exclude={"training", "seed", "control"})
    training = params.distill.training.model_dump(mode="json", exclude_defaults=True, exclude=FREE)
    scoring = params.evaluate.model_dump(mode="json", include={"split", "classifications", "slice_field"})
    return spec_digest({"model": params.distill.model, **section, "training": training, "scoring": scoring})[:16]


def read(path: Path, study: Study) -> list[Row]:
    """The trainings of a study."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if (row["dataset"], row["settings"]) == (study.dataset, study.settings)]


def write(path: Path, study: Study, *, params: Params, teachers: Mapping[str, float], images: int, out: Path) -> None:
    """Write `results.md` and its figure below `out`; `step-cost.json` there becomes a section.

    Args:
        path: The recorded trainings.
        study: Which of them.
        params: Of the study.
        teachers: Those that calibration kept, with their logit scales.
        images: Training images of the dataset.
        out: Folder.
    """
    rows = read(path, study)
    figure = out / "figures" / "learning.png"
    figure.parent.mkdir(parents=True, exist_ok=True)
    figure.write_bytes(_draw(rows, images))
    parts = [
        _head(rows, params, teachers, images),
        "![recall over samples seen and over training images](figures/learning.png)",
        _samples(rows),
        _images(rows),
        _terms(rows),
        _step_cost(out / step_cost.FILE),
    ]
    (out / "results.md").write_text("\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def needed(scores: Mapping[float, float], wanted: float) -> float:
    """Multiple of the samples (or share of the images) at which a wanted score is reached, linear between those tried.

    Args:
        scores: Score by multiple, each of a training of its own; 0 at 0.
        wanted: The score to reach.

    Returns:
        Infinite where none of them reaches it.
    """
    before, low = 0.0, 0.0
    for length, score in sorted(scores.items()):
        if score >= wanted:
            return before + (length - before) * (wanted - low) / max(score - low, 1e-12)
        before, low = length, score
    return float("inf")


def scores(rows: Sequence[Row], variant: str, key: str = HEADLINE) -> dict[int, float]:
    """A variant's score by seed."""
    return {row["seed"]: row["scores"][key] for row in rows if row["variant"] == variant}


def _keys(rows: Sequence[Row]) -> list[str]:
    return list(rows[0]["scores"])


def _head(rows: Sequence[Row], params: Params, teachers: Mapping[str, float], images: int) -> str:
    training = params.distill.training
    kept = " and ".join(f"`{name}` at logit scale {scale:g}" for name, scale in teachers.items())
    trained = " and ".join(f"`{teacher.name}`" for teacher in params.train_teacher.teachers)
    views, captions = params.reinforce.views.num_views, params.caption.num_captions
    return f"""# Results

Made by `make results` from [results.jsonl](results.jsonl), one line per training; nothing here is written by hand.

{_headline(rows)}

Student `{params.distill.model}`, {training.steps} steps of {training.batch_size} samples on {images:,} emoji by four
artists ({views} stored views and {captions} synthetic captions per image; of the teachers that the chain itself
trained, {trained}, the calibration kept {kept}). All are
scored on a **fifth artist whose images no training or validation saw**. Recall (R) is the mean of image-to-text and
text-to-image, in percent; *true* are concepts whose other drawings were in the training, *false* those that were not.
Mean and 95 % interval over seeds of weights, order and draws; data, teachers and captions are the same for all. All
variants of a seed start from the same weights. Plain CLIP learns at its own best rate.
"""


def _headline(rows: Sequence[Row]) -> str:
    """The study in one sentence, from its numbers."""
    plain, own = scores(rows, PLAIN), scores(rows, REINFORCED)
    shared = sorted(plain.keys() & own.keys())
    if not shared:
        return ""
    mean = {name: sum(found[seed] for seed in shared) / len(shared) for name, found in ((PLAIN, plain), ("own", own))}
    text = (
        f"**At the same samples the reinforced student finds {100 * mean['own']:.1f} % within the first ten, "
        f"plain CLIP {100 * mean[PLAIN]:.1f} %: {mean['own'] / max(mean[PLAIN], 1e-12):.1f} times as many"
    )
    factor = _factor(rows, LENGTHS[PLAIN], PLAIN, longer, REINFORCED)
    return text + (f"; plain CLIP needs {factor} the samples for that.**" if factor else ".**")


def _factor(rows: Sequence[Row], steps: Sequence[float], name: str, named: Any, other: str) -> str:
    """What `name` needs, over `steps`, to score as `other` does, with its interval over draws of the shared seeds."""
    found = {step: scores(rows, named(name, step)) for step in steps}
    found = {step: by_seed for step, by_seed in found.items() if by_seed}
    wanted = scores(rows, other)
    seeds = sorted(set(wanted).intersection(*(set(by_seed) for by_seed in found.values())))
    if len(found) < 2 or not seeds:
        return ""
    rng = np.random.default_rng(0)
    draws = [np.arange(len(seeds)), *rng.integers(len(seeds), size=(2000, len(seeds)))]
    values = {step: np.array([by_seed[seed] for seed in seeds]) for step, by_seed in found.items()}
    goal = np.array([wanted[seed] for seed in seeds])
    times = [needed({s: float(v[d].mean()) for s, v in values.items()}, float(goal[d].mean())) for d in draws]
    low, high = np.quantile(times[1:], [0.025, 0.975], method="nearest")  # interpolation has no infinity
    most = max(found)
    return f"{_times(times[0], most)} [{_times(low, most)}, {_times(high, most)}]"


def _times(value: float, most: float) -> str:
    return f"{value:.2g}×" if np.isfinite(value) else f"over {most:g}×"


def _samples(rows: Sequence[Row]) -> str:
    names = [longer(name, length) for name in LENGTHS for length in LENGTHS[name]]
    table = _table(rows, names)
    lines = ["\n## Over samples seen\n", "Each line is a training with a schedule of its own.\n", table]
    up = _factor(rows, LENGTHS[PLAIN], PLAIN, longer, REINFORCED)
    down = _factor(rows, LENGTHS[REINFORCED], REINFORCED, longer, PLAIN)
    if up:
        lines.append(f"\nTo reach the reinforced student's R@10 plain CLIP needs {up} the samples")
        lines.append("(linear between the lengths, 95 % interval over draws of the seeds).")
    if down:
        lines.append(f"To reach plain CLIP's the reinforced student needs {down} the samples.")
    return "\n".join(lines)


def _images(rows: Sequence[Row]) -> str:
    names = [fewer(name, share) for share in (1.0, *SHARES) for name in (PLAIN, REINFORCED)]
    if not any(scores(rows, fewer(PLAIN, share)) for share in SHARES):
        return ""
    text = (
        "Equal steps on a share of the images, their captions and their stored embeddings; the teachers have seen all."
    )
    down = _factor(rows, (1.0, *SHARES), REINFORCED, fewer, PLAIN)
    lines = ["\n## Over training images\n", text + "\n", _table(rows, names)]
    if down:
        lines.append(f"\nTo reach plain CLIP's R@10 on all images the reinforced student needs {down} the images.")
    return "\n".join(lines)


def _terms(rows: Sequence[Row]) -> str:
    names = [name for name, variant in VARIANTS.items() if variant.kind == "terms" and scores(rows, name)]
    if not names:
        return ""
    lines = [f"| difference to {PLAIN}, paired by seed | seeds | {_titles(rows)} |", _rule(rows)]
    for name in [REINFORCED, *names]:
        pairs = {key: _paired(rows, name, key) for key in _keys(rows)}
        cells = [_interval(values, sign=True) for values in pairs.values()]
        lines.append(f"| {name} | {len(pairs[HEADLINE])} | " + " | ".join(cells) + " |")
    return "\n".join(["\n## What carries the knowledge\n", *lines])


def _table(rows: Sequence[Row], names: Sequence[str]) -> str:
    lines = [f"| | seeds | {_titles(rows)} |", _rule(rows)]
    for name in names:
        if scores(rows, name):
            cells = [_interval(np.array(list(scores(rows, name, key).values()))) for key in _keys(rows)]
            lines.append(f"| {name} | {len(scores(rows, name))} | " + " | ".join(cells) + " |")
    floor = " | ".join(f"{100 * rows[0]['floor'][key]:.1f}" for key in _keys(rows))
    return "\n".join([*lines, f"| best constant or random answer | | {floor} |"])


def _titles(rows: Sequence[Row]) -> str:
    return " | ".join(label(key) for key in _keys(rows))


def _rule(rows: Sequence[Row]) -> str:
    return "|---|---|" + "---|" * len(_keys(rows))


def _paired(rows: Sequence[Row], name: str, key: str) -> np.ndarray:
    """Score minus plain CLIP's, for the seeds both have."""
    own, plain = scores(rows, name, key), scores(rows, PLAIN, key)
    return np.array([own[seed] - plain[seed] for seed in sorted(own.keys() & plain.keys())])


def _interval(values: np.ndarray, *, sign: bool = False) -> str:
    form = "+.1f" if sign else ".1f"
    if len(values) < 2:
        return "".join(format(100 * value, form) for value in values)
    found = over_seeds([float(value) for value in values])
    return f"{100 * float(values.mean()):{form}} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _step_cost(path: Path) -> str:
    """What the teachers' part of a step costs, where it was measured."""
    if not path.is_file():
        return ""
    found = json.loads(path.read_text(encoding="utf-8"))
    return f"""
## Cost of a step

Made by `python -m benchmarks.step_cost`. Student `{found["model"]}`, batches of {found["batch_size"]}, teachers
{", ".join(f"`{name}`" for name in found["teachers"])}, one thread of a shared x86 machine. All three learn from the
same views with two captions each and take turns step by step: *plain* has no teachers, *stored* reads their
embeddings from the dataset, *online* runs them in the step.

{step_cost.table(found)}"""


def _draw(rows: Sequence[Row], images: int) -> bytes:
    """Recall at 10 on the unseen artist: left over samples seen, right over training images; range over seeds."""
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for name, color in ((REINFORCED, ACCENT), (PLAIN, MUTED)):
        names = sorted((length, longer(name, length)) for length in LENGTHS[name])
        samples = {row["variant"]: row["samples"] for row in rows}
        _line(left, [(samples.get(one, 0), scores(rows, one)) for _, one in names], name, color)
        shares = [(images * share, scores(rows, fewer(name, share))) for share in sorted((1.0, *SHARES))]
        _line(right, shares, name, color)
    for axes, title in ((left, "training samples seen"), (right, "training images")):
        axes.set_xscale("log")
        axes.set_xlabel(title)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(bottom=0)
    left.set_ylabel("recall at 10, artist never seen [%]")
    left.legend(frameon=False)
    return to_png(figure)


def _line(axes: Any, points: Sequence[tuple[float, Mapping[int, float]]], name: str, color: str) -> None:
    known = [(x, [100 * value for value in by_seed.values()]) for x, by_seed in points if by_seed]
    if not known:
        return
    xs = [x for x, _ in known]
    axes.plot(xs, [float(np.mean(v)) for _, v in known], marker="o", markersize=4, label=name, color=color)
    axes.fill_between(xs, [min(v) for _, v in known], [max(v) for _, v in known], color=color, alpha=0.2, linewidth=0)
