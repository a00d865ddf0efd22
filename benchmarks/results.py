"""Tables and figures of `docs/results.md`, from the trainings recorded in `docs/results.jsonl`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import step_cost
from mobileclip.config import Params
from mobileclip.evaluation.statistics import over_seeds
from mobileclip.manifest import spec_digest
from mobileclip.reports.figures import new_figure, to_png
from mobileclip.training.contrastive import FREE

PLAIN, REINFORCED, MOST = "plain CLIP", "reinforced", "10 views, 5 synthetic captions"
LENGTHS = (1, 2, 3)
"""Multiples of the steps at which plain CLIP is trained."""
KEYS = {"seen/r1": "seen R@1", "seen/r10": "seen R@10", "unseen/r1": "unseen R@1", "unseen/r10": "unseen R@10"}
Row = dict[str, Any]
Point = tuple[float, float]


def settings_of(params: Params) -> str:
    """Digest of what the params file says of a student's training; length and seed are a row's own."""
    section = params.distill.model_dump(mode="json", exclude_defaults=True, exclude={"training", "seed", "control"})
    training = params.distill.training.model_dump(mode="json", exclude_defaults=True, exclude={"steps", *FREE})
    return spec_digest({"model": params.distill.model, **section, "training": training})[:16]


def read(path: Path, *, dataset: str, steps: int, settings: str) -> list[Row]:
    """Trainings of one dataset, length and setting, each variant and seed once."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows = [json.loads(line) for line in lines]
    wanted = (dataset, steps, settings)
    return [row for row in rows if (row["dataset"], row["steps"], row.get("settings")) == wanted]


def write(
    path: Path,
    *,
    datasets: Mapping[str, str],
    steps: int,
    params: Params,
    teachers: Mapping[str, float],
    out: Path,
    ablations: Sequence[str],
) -> None:
    """Write `results.md` and its figures below `out`; `step-cost.json` there becomes a section.

    Args:
        path: The recorded trainings.
        datasets: Digest of the dataset of the study `main`, and of `counts` where it was run.
        steps: Length of the trainings.
        params: Of the main study.
        teachers: Those that its calibration kept, with their logit scales.
        out: Folder.
        ablations: Variants of the main study that differ in one thing from the reinforced one.
    """
    settings = settings_of(params)
    rows = read(path, dataset=datasets["main"], steps=steps, settings=settings)
    names = list(dict.fromkeys(row["variant"] for row in rows))
    compared = [name for name in names if name not in [*ablations, *map(longer, LENGTHS[1:])]]
    figure = out / "figures" / "learning.png"
    figure.parent.mkdir(parents=True, exist_ok=True)
    figure.write_bytes(_draw(rows, compared))
    counts = read(path, dataset=datasets["counts"], steps=steps, settings=settings) if "counts" in datasets else []
    counted = [name for name in dict.fromkeys(row["variant"] for row in counts) if name != MOST]
    parts = [
        _head(rows, params, teachers),
        "## Learning efficiency\n",
        _table(rows, compared),
        "\n![learning curves](figures/learning.png)\n",
        _differences(rows, compared),
        _lengths(rows),
        *_section("Ablations", "the reinforced student", _ablations(rows, REINFORCED, ablations)),
        *_section(
            "Numbers of views and captions", f"the student with {MOST}, a dataset of its own",
            _ablations(counts, MOST, counted),
        ),
        _differing(out, {REINFORCED: (rows, ablations), MOST: (counts, counted)}),
        _step_cost(out / step_cost.FILE),
    ]  # fmt: skip
    text = "\n".join(part for part in parts if part) + "\n"
    (out / "results.md").write_text(text, encoding="utf-8")


def longer(length: int) -> str:
    """Name of plain CLIP trained at a multiple of the steps."""
    return f"{PLAIN}, {length}× the steps" if length > 1 else PLAIN


def curves(rows: Sequence[Row], variant: str, key: str) -> tuple[list[float], np.ndarray, list[int]]:
    """Samples seen [points], scores [seeds, points] and the seeds of a variant."""
    own = sorted((row for row in rows if row["variant"] == variant), key=lambda row: row["seed"])
    scores = np.array([[point[key] for point in row["curve"]] for row in own])
    return [point["samples"] for point in own[0]["curve"]], scores, [row["seed"] for row in own]


def saving(plain: Sequence[Point], other: Sequence[Point]) -> float:
    """Samples plain training took to its best score, over those the other took to reach that score.

    Both are mean curves of (samples, score); between points the score is taken as linear from (0, 0) on. The result is
    0 where the other never gets there.
    """
    best = max(plain, key=lambda point: point[1])
    before: Point = (0.0, 0.0)
    for samples, score in other:
        if score >= best[1]:
            share = (best[1] - before[1]) / max(score - before[1], 1e-12)
            return best[0] / (before[0] + share * (samples - before[0]))
        before = (samples, score)
    return 0.0


def needed(scores: Mapping[int, float], wanted: float) -> float:
    """Multiple of the length at which plain training scores as wanted, linear between those tried; infinite = at none.

    Args:
        scores: Last score by multiple of the length, each of a training with a schedule of its own.
        wanted: The reinforced student's score.
    """
    before, low = 0, 0.0
    for length, score in sorted(scores.items()):
        if score >= wanted:
            return before + (length - before) * (wanted - low) / max(score - low, 1e-12)
        before, low = length, score
    return float("inf")


def _lengths(rows: Sequence[Row]) -> str:
    """What plain training reaches when it is trained for longer, against the reinforced student."""
    trained = {row["variant"] for row in rows}
    lengths = [length for length in LENGTHS if longer(length) in trained]
    if len(lengths) < 2 or REINFORCED not in trained:
        return ""
    # Longer trainings were run on fewer seeds: each line of seeds is compared as far as it goes.
    tables, before = [], 0
    for count in range(len(lengths), 1, -1):
        shared = _shared_seeds(rows, [REINFORCED, *map(longer, lengths[:count])])
        if len(shared) > before:
            tables.append(_length_table(rows, lengths[:count], shared))
            before = len(shared)
    return "\n".join([
        "\n### Plain CLIP for longer\n",
        "Each length is a training with a schedule of its own, on the same stored views. *Needed*: the multiple of",
        "the samples at which plain CLIP scores as the reinforced student of the first line does, linear between the",
        "lengths, with its 95 % interval over draws of the seeds.\n",
        "\n\n".join(reversed(tables)),
    ])  # fmt: skip


def _length_table(rows: Sequence[Row], lengths: Sequence[int], seeds: set[int]) -> str:
    own = [row for row in rows if row["seed"] in seeds]
    lines = ["| | seeds | " + " | ".join(KEYS.values()) + " |", "|---|---|" + "---|" * len(KEYS)]
    for name in (REINFORCED, *map(longer, lengths)):
        cells = [_interval(curves(own, name, key)[1][:, -1]) for key in KEYS]
        lines.append(f"| {name} | {len(seeds)} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "| **needed** | | " + " | ".join(_needed(own, lengths, key) for key in KEYS) + " |"])


def _shared_seeds(rows: Sequence[Row], names: Sequence[str]) -> set[int]:
    return set.intersection(*(set(curves(rows, name, "seen/r1")[2]) for name in names))


def _needed(rows: Sequence[Row], lengths: Sequence[int], key: str) -> str:
    """`needed` for the mean over seeds, and its interval over seeds drawn with replacement."""
    plain = {length: curves(rows, longer(length), key)[1][:, -1] for length in lengths}
    wanted = curves(rows, REINFORCED, key)[1][:, -1]
    rng = np.random.default_rng(0)
    draws = [np.arange(len(wanted)), *rng.integers(len(wanted), size=(2000, len(wanted)))]
    found = [needed({k: float(v[draw].mean()) for k, v in plain.items()}, float(wanted[draw].mean())) for draw in draws]
    low, high = np.quantile(found[1:], [0.025, 0.975], method="nearest")  # interpolation has no infinity
    return f"{_times(found[0])} [{_times(low)}, {_times(high)}]".replace("inf", f"over {max(lengths)}")


def _times(value: float) -> str:
    return f"{value:.1f}×" if np.isfinite(value) else "inf×"


def _head(rows: Sequence[Row], params: Params, teachers: Mapping[str, float]) -> str:
    training = params.distill.training
    steps = rows[0]["steps"]
    trained = " and ".join(f"`{teacher.name}`" for teacher in params.train_teacher.teachers)
    kept = " and ".join(f"`{name}` at logit scale {scale:g}" for name, scale in teachers.items())
    views, captions = params.reinforce.views.num_views, params.caption.num_captions
    return f"""# Results

Made by `make results` and `make ablations` from [results.jsonl](results.jsonl), one line per training; nothing here is
written by hand.

Student `{params.distill.model}`, {steps} steps of {training.batch_size} samples on emoji by four artists
({views} stored views and {captions} synthetic captions per picture; of the teachers that the chain itself trained,
{trained}, the calibration kept {kept}).
The reinforced student has λ = {params.distill.distill_weight:g}. All are scored on a **fifth artist whose pictures no
training or validation saw**. Recall is the mean of image-to-text and text-to-image, in percent, over concepts whose
other drawings were in the training (*seen*) or were not (*unseen*). Mean and 95 % interval over seeds; all variants of
a seed start from the same weights and see the same pictures and views in the same order.
"""


def _table(rows: Sequence[Row], names: Sequence[str]) -> str:
    lines = ["| | seeds | " + " | ".join(KEYS.values()) + " |", "|---|---|" + "---|" * len(KEYS)]
    for name in names:
        cells = [_interval(curves(rows, name, key)[1][:, -1]) for key in KEYS]
        lines.append(f"| {name} | {len(curves(rows, name, 'seen/r1')[2])} | " + " | ".join(cells) + " |")
    chance = [rows[0]["curve"][-1][key.replace("/", "/chance/")] for key in KEYS]
    return "\n".join([*lines, "| chance | | " + " | ".join(f"{100 * value:.1f}" for value in chance) + " |"])


def _differences(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Paired by seed against plain CLIP, with the factor of samples saved."""
    if PLAIN not in names:
        return ""
    head = [f"{KEYS[key]}, difference" for key in KEYS] + ["samples saved, seen R@10"]
    lines = ["Against plain CLIP, paired by seed:\n", "| | " + " | ".join(head) + " |", "|---|" + "---|" * len(head)]
    for name in names:
        if name == PLAIN:
            continue
        cells = [_interval(_paired(rows, name, key), sign=True) for key in KEYS]
        mean = {n: _mean_curve(rows, n, "seen/r10") for n in (PLAIN, name)}
        factor = saving(mean[PLAIN], mean[name])
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {f'{factor:.1f}×' if factor else 'not reached'} |")
    return "\n".join(lines)


def _section(title: str, base: str, table: str) -> list[str]:
    return [f"\n## {title}\n", f"Each line changes one thing of {base}.\n", table] if table else []


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


def _differing(out: Path, studies: Mapping[str, tuple[Sequence[Row], Sequence[str]]]) -> str:
    """The figure of the ablations; empty where none was trained."""
    lines = []
    for base, (rows, names) in studies.items():
        trained = {row["variant"] for row in rows}
        lines += [
            (name, 100 * _paired(rows, name, "seen/r10", base=base))
            for name in names
            if name in trained and base in trained
        ]
    if not lines:
        return ""
    (out / "figures" / "ablations.png").write_bytes(_draw_differences(lines))
    return "\n![differences to the unchanged student, seen R@10](figures/ablations.png)"


def _draw_differences(lines: Sequence[tuple[str, np.ndarray]]) -> bytes:
    """One row per variant: a dot per seed, a bar at their mean."""
    figure, axes = new_figure(width=6.4, height=0.9 + 0.26 * len(lines))
    for place, (_, values) in enumerate(lines):
        axes.barh(place, values.mean(), height=0.6, color="tab:blue", alpha=0.35)
        axes.plot(values, [place] * len(values), "o", color="tab:blue", markersize=4)
    axes.set_yticks(range(len(lines)), [name for name, _ in lines])
    axes.invert_yaxis()
    axes.axvline(0, color="gray", linewidth=1)
    axes.set_xlabel("difference in recall at 10, seen concepts [points]")
    return to_png(figure)


def _ablations(rows: Sequence[Row], base: str, names: Sequence[str]) -> str:
    """The base, and each variant's difference to it with the same seeds."""
    found = {row["variant"] for row in rows}
    names = [name for name in names if name in found]
    if not names or base not in found:
        return ""
    head = "| difference, paired by seed | seeds | " + " | ".join(KEYS.values()) + " |"
    own = [_interval(curves(rows, base, key)[1][:, -1]) for key in KEYS]
    lines = [head, "|---|---|" + "---|" * len(KEYS)]
    lines.append(f"| {base}, score | {len(curves(rows, base, 'seen/r1')[2])} | " + " | ".join(own) + " |")
    for name in names:
        pairs = [_paired(rows, name, key, base=base) for key in KEYS]
        cells = [_interval(values, sign=True) for values in pairs]
        lines.append(f"| {name} | {len(pairs[0])} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _paired(rows: Sequence[Row], name: str, key: str, *, base: str = PLAIN) -> np.ndarray:
    """Last score of a variant minus the base's, for the seeds both have."""
    ends = []
    for variant in (name, base):
        _, scores, seeds = curves(rows, variant, key)
        ends.append(dict(zip(seeds, scores[:, -1], strict=True)))
    return np.array([ends[0][seed] - ends[1][seed] for seed in ends[0] if seed in ends[1]])


def _mean_curve(rows: Sequence[Row], name: str, key: str) -> list[Point]:
    samples, scores, _ = curves(rows, name, key)
    return list(zip(samples, scores.mean(axis=0).tolist(), strict=True))


def _interval(values: np.ndarray, *, sign: bool = False) -> str:
    form = "+.1f" if sign else ".1f"
    if len(values) == 0:
        return ""
    if len(values) == 1:
        return format(100 * values[0], form)
    found = over_seeds([float(value) for value in values])
    return f"{100 * float(values.mean()):{form}} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _draw(rows: Sequence[Row], names: Sequence[str]) -> bytes:
    """Recall at 10 on seen concepts against samples seen, with the range over seeds."""
    figure, axes = new_figure(width=6.4, height=3.8)
    for name in names:
        samples, scores, _ = curves(rows, name, "seen/r10")
        line = axes.plot(samples, 100 * scores.mean(axis=0), marker="o", markersize=3, label=name)[0]
        low, high = 100 * scores.min(axis=0), 100 * scores.max(axis=0)
        axes.fill_between(samples, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.axhline(
        100 * rows[0]["curve"][-1]["seen/chance/r10"], color="gray", linestyle=":", linewidth=1, label="chance"
    )
    axes.set_xlabel("training samples seen")
    axes.set_ylabel("recall at 10, artist never seen [%]")
    axes.legend(frameon=False)
    return to_png(figure)
