"""Learning efficiency: the same student with plain CLIP and with reinforcement, several seeds, against samples seen.

`python -m benchmarks.learning_efficiency --root runs/demo` after `make demo`; every variant sees the same batches and
views in the same order. Scores are on the artist that no training or validation picture is from. Writes
`docs/results.json` and the figures in `docs/figures/`.
"""

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mobileclip import manifest
from mobileclip.config import Params, Training, read_params
from mobileclip.data.images import decode, resize
from mobileclip.data.loader import PairDataset, Recipe
from mobileclip.data.shards import read_samples
from mobileclip.evaluation.figures import new_figure, to_png
from mobileclip.models import zoo
from mobileclip.models.embed import embed_pixels, embed_texts
from mobileclip.parallel import one_thread, run_all
from mobileclip.training.contrastive import Reinforcement, train_clip

# Two-sided 95 % quantiles of Student's t by degrees of freedom.
_T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
VARIANTS = {
    "plain CLIP": (False, False),
    "+ synthetic captions": (True, False),
    "+ distillation": (False, True),
    "reinforced": (True, True),
}


def main() -> None:
    """Train, score, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path("runs/demo"))
    parser.add_argument("--params", type=Path, default=Path("params/demo.yaml"))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=0, help="0: as in the params file")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=["plain CLIP", "reinforced"])
    arguments = parser.parse_args()
    params = read_params(arguments.params)
    runs = [(name, seed) for seed in range(arguments.seeds) for name in arguments.variants]
    tasks = [(run_one, (str(arguments.root), params, name, seed, arguments.steps)) for name, seed in runs]
    curves = run_all(tasks)
    rows = [{"variant": name, "seed": seed, "curve": c} for (name, seed), c in zip(runs, curves, strict=True)]
    summary = summarize(rows, arguments.variants)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "results.json").write_text(json.dumps({"runs": rows, "summary": summary}, indent=1) + "\n")
    draw(rows, arguments.variants, arguments.out / "figures" / "learning.png")
    print(table(summary))


def run_one(root: str, params: Params, variant: str, seed: int, steps: int) -> list[dict[str, float]]:
    """Train one student; its scores on the unseen artist at every point of the learning curve."""
    one_thread()
    os.environ["MOBILECLIP_TRACKING"] = "off"
    synthetic, distill = VARIANTS[variant]
    data = f"{root}/calibrate"
    content = manifest.read(data)
    config = params.distill
    training = config.training.model_copy(update={"steps": steps or config.training.steps, "checkpoint_every": 0})
    teachers = tuple(content.teachers()) if distill else ()
    torch.manual_seed(seed)
    clip = zoo.create(config.model)
    captions = tuple(config.synthetic) if synthetic else ()
    recipe = Recipe(clip.preprocess, clip.tokenizer, config.caption_field, captions, teachers, seed=seed)
    scales = tuple(content.scales[name] for name in teachers)
    score = scorer(clip, data, content)
    result = train_clip(
        clip, PairDataset(data, content, recipe), _curve(training),
        reinforcement=Reinforcement(config.distill_weight if distill else 0.0, teachers, scales),
        seed=seed, key={"variant": variant, "seed": seed}, folder=f"{root}/.benchmark", title=variant, validate=score,
    )  # fmt: skip
    keys = [key for key in result.history[0] if key.startswith("validation/")]
    return [{"samples": p["samples"], **{k.removeprefix("validation/"): p[k] for k in keys}} for p in result.history]


def _curve(training: Training) -> Training:
    return training.model_copy(update={"log_every": max(1, training.steps // 10)})


def scorer(clip: zoo.Clip, data: str, content: manifest.Manifest) -> Any:
    """Recall at 1 and 10 (image to text, text to image, mean) on the test split, per slice of `seen`."""
    samples = list(read_samples(data, content, "test"))
    size, interpolation = clip.preprocess.size, clip.preprocess.interpolation
    pixels = torch.stack([resize(decode(s.image), size, interpolation) for s in samples])
    texts = [s.captions[0] for s in samples]
    ids = torch.tensor([sorted(set(texts)).index(text) for text in texts])
    slices = {
        name: torch.tensor([i for i, s in enumerate(samples) if bool(s.metadata["seen"]) is value])
        for name, value in (("seen", True), ("unseen", False))
    }

    def score() -> dict[str, float]:
        image, text = embed_pixels(clip, pixels, batch_size=64), embed_texts(clip, texts, batch_size=64)
        found = {}
        for name, rows in slices.items():
            similarity = image[rows] @ text[rows].T
            same = ids[rows][:, None] == ids[rows][None]
            for k in (1, 10):
                recalls = [_recall(similarity, same, k), _recall(similarity.T, same, k)]
                found[f"{name}/i2t/r{k}"], found[f"{name}/t2i/r{k}"] = recalls
                found[f"{name}/mean/r{k}"] = sum(recalls) / 2
        return found

    return score


def _recall(similarity: torch.Tensor, same: torch.Tensor, k: int) -> float:
    best = torch.where(same, similarity, -torch.inf).amax(dim=1, keepdim=True)
    return float(((similarity > best).sum(dim=1) < k).float().mean())


def summarize(rows: list[dict[str, Any]], variants: list[str]) -> dict[str, Any]:
    """Per variant and metric mean and 95 % interval over seeds; paired differences to plain; samples to target."""
    summary: dict[str, Any] = {}
    for variant in variants:
        last = [row["curve"][-1] for row in rows if row["variant"] == variant]
        summary[variant] = {key: _interval([point[key] for point in last]) for key in last[0] if key != "samples"}
    plain = [row["curve"] for row in rows if row["variant"] == "plain CLIP"]
    for variant in variants:
        if variant == "plain CLIP" or not plain:
            continue
        other = [row["curve"] for row in rows if row["variant"] == variant]
        keys = [key for key in other[0][0] if key != "samples"]
        summary[f"{variant} minus plain"] = {
            key: _interval([b[-1][key] - a[-1][key] for a, b in zip(plain, other, strict=True)]) for key in keys
        }
        summary[f"{variant}: factor of samples saved"] = {
            key: _saving(_mean_curve(plain, key), _mean_curve(other, key)) for key in keys if key.endswith("mean/r10")
        }
    return summary


def _interval(values: list[float]) -> dict[str, float]:
    mean = float(np.mean(values))
    half = _T95.get(len(values) - 1, 1.96) * float(np.std(values, ddof=1)) / math.sqrt(len(values)) if values[1:] else 0
    return {"mean": round(mean, 5), "low": round(mean - half, 5), "high": round(mean + half, 5)}


def _mean_curve(curves: list[list[dict[str, float]]], key: str) -> list[tuple[float, float]]:
    return [(points[0]["samples"], float(np.mean([p[key] for p in points]))) for points in zip(*curves, strict=True)]


def _saving(plain: list[tuple[float, float]], other: list[tuple[float, float]]) -> float:
    """Samples plain training needed in all, over those the other needed to reach plain's last score."""
    target = plain[-1][1]
    before = (0.0, 0.0)
    for samples, value in other:
        if value >= target:
            share = (target - before[1]) / max(value - before[1], 1e-9)
            return round(plain[-1][0] / (before[0] + share * (samples - before[0])), 2)
        before = (samples, value)
    return 0.0


def draw(rows: list[dict[str, Any]], variants: list[str], target: Path) -> None:
    """Mean recall at 10 against samples seen, with the range over seeds."""
    figure, axes = new_figure(width=6.4, height=3.8)
    for variant in variants:
        curves = [row["curve"] for row in rows if row["variant"] == variant]
        x = [point["samples"] for point in curves[0]]
        y = 100 * np.array([[point["seen/mean/r10"] for point in curve] for curve in curves])
        line = axes.plot(x, y.mean(axis=0), marker="o", markersize=3, label=variant)[0]
        axes.fill_between(x, y.min(axis=0), y.max(axis=0), color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set_xlabel("training samples seen")
    axes.set_ylabel("recall at 10, artist never seen [%]")
    axes.legend(frameon=False)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(to_png(figure))


def table(summary: dict[str, Any]) -> str:
    """The summary as Markdown."""
    keys = ["seen/mean/r1", "seen/mean/r10", "unseen/mean/r1", "unseen/mean/r10"]
    lines = ["| | " + " | ".join(keys) + " |", "|---|" + "---|" * len(keys)]
    for name, row in summary.items():
        cells = [_cell(row.get(key)) for key in keys]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.2f}×"
    return f"{100 * value['mean']:.1f} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


if __name__ == "__main__":
    main()
