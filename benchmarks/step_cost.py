"""Seconds per training step: plain CLIP, the same with stored teacher embeddings, the same with teachers in the step.

`python -m benchmarks.step_cost --root runs/demo` after `make demo`. All three read the same samples, views and captions
(ground truth plus one synthetic), so what differs is the teachers' part. They take turns step by step, so that other
work on the machine slows all alike; wall time and this process's own CPU time are both given. Writes
`docs/step-cost.json`, a section of `docs/results.md`.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mobileclip import manifest
from mobileclip.config import Optimizer, Training
from mobileclip.data.loader import PairDataset, Recipe
from mobileclip.models import zoo
from mobileclip.parallel import one_thread
from mobileclip.training.backward import backward
from mobileclip.training.clip_objective import ClipObjective, Reinforcement, TeacherAffinity
from mobileclip.training.contrastive import batch_source
from mobileclip.training.objective import Batch
from mobileclip.training.online import online_teachers, teacher_inputs
from mobileclip.training.optimizer import create_optimizer
from mobileclip.training.replica import Replicas
from mobileclip.training.world import join

VARIANTS = ("plain", "stored", "online")
FILE = "step-cost.json"


@dataclass
class Run:
    """One variant between two steps."""

    clip: zoo.Clip
    replicas: Replicas
    optimizer: torch.optim.AdamW
    feed: Iterator[Batch]


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path("runs/demo"))
    parser.add_argument("--data", default="", help="reinforced dataset; default: ROOT/calibrate")
    parser.add_argument("--teachers", default="", help="train_teacher's output; default: ROOT/train_teacher")
    parser.add_argument("--model", default="tiny-mci")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("docs") / FILE)
    arguments = parser.parse_args()
    one_thread()
    found = measure(
        arguments.data or str(arguments.root / "calibrate"),
        arguments.teachers or str(arguments.root / "train_teacher"),
        model=arguments.model, batch_size=arguments.batch_size, steps=arguments.steps,
    )  # fmt: skip
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


def measure(data: str, trained: str, *, model: str, batch_size: int, steps: int) -> dict[str, Any]:
    """Time `steps` steps of each variant, in turn, after two that do not count.

    Args:
        data: Reinforced dataset with a caption column.
        trained: Folder with its teachers, one each.
        model: Architecture of the student.
        batch_size: Samples per step.
        steps: Steps of each variant.

    Returns:
        Per variant seconds of every step (`wall`, `cpu`), their medians, and the median over steps of the ratio to
        plain with its quartiles.
    """
    content = manifest.read(data)
    names = tuple(content.scales or content.teachers())
    teachers = {name: zoo.load(f"trained:{name}", trained=trained) for name in names}
    training = Training(steps=steps + 2, batch_size=batch_size, workers=0, optimizer=Optimizer(lr=1e-4))
    runs = {name: _start(name, data, content, teachers, model, training) for name in VARIANTS}
    seconds: dict[str, dict[str, list[float]]] = {name: {"wall": [], "cpu": []} for name in VARIANTS}
    for step in range(steps + 2):
        for turn in range(len(VARIANTS)):  # who comes first changes from step to step
            name = VARIANTS[(step + turn) % len(VARIANTS)]
            wall, cpu = time.perf_counter(), time.process_time()
            _step(runs[name])
            if step >= 2:
                seconds[name]["wall"].append(time.perf_counter() - wall)
                seconds[name]["cpu"].append(time.process_time() - cpu)
    return {"model": model, "batch_size": batch_size, "teachers": list(names), "variants": _summary(seconds)}


def _start(
    variant: str, data: str, content: manifest.Manifest, teachers: dict[str, zoo.Clip], model: str, training: Training
) -> Run:
    torch.manual_seed(0)
    clip = zoo.create(model)
    clip.model.to(memory_format=torch.channels_last).train()
    captions = tuple(column.name for column in content.columns if column.kind == "caption")[:1]
    recipe = Recipe(clip.preprocess, clip.tokenizer, synthetic=captions)
    names = tuple(teachers)
    learned = tuple(
        TeacherAffinity(name, content.scales.get(name, teacher.logit_scale)) for name, teacher in teachers.items()
    )
    reinforcement = Reinforcement() if variant == "plain" else Reinforcement(teachers=learned, distill_weight=1.0)
    online = None
    if variant == "stored":
        recipe = replace(recipe, teachers=names)
    if variant == "online":
        recipe, online = replace(recipe, online=teacher_inputs(teachers)), online_teachers(teachers)
    world = join()
    objective = ClipObjective(clip, reinforcement, world, total=training.batch_size, online=online)
    feed = batch_source(PairDataset(data, content, recipe), training, 0, world)(0, training.steps)
    return Run(clip, Replicas(clip.model, objective, world), create_optimizer(clip.model, training.optimizer), feed)


def _step(run: Run) -> None:
    batch = next(run.feed)
    run.optimizer.zero_grad(set_to_none=True)
    backward(run.replicas, batch, autocast=lambda: torch.autocast("cpu", enabled=False))
    run.optimizer.step()


def _summary(seconds: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, clocks in seconds.items():
        row: dict[str, Any] = {}
        for clock, values in clocks.items():
            ratio = np.array(values) / np.array(seconds["plain"][clock])
            low, middle, high = (round(float(q), 4) for q in np.quantile(ratio, [0.25, 0.5, 0.75]))
            row[clock] = {
                "median_seconds": round(float(np.median(values)), 5),
                "ratio_to_plain": {"median": middle, "quartiles": [low, high]},
                "seconds": [round(value, 5) for value in values],
            }
        found[name] = row
    return found


def table(found: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = ["| | s/step | CPU s/step | CPU, times plain [quartiles] |", "|---|---|---|---|"]
    for name, row in found["variants"].items():
        ratio = row["cpu"]["ratio_to_plain"]
        low, high = ratio["quartiles"]
        wall, cpu = row["wall"]["median_seconds"], row["cpu"]["median_seconds"]
        lines.append(f"| {name} | {wall:.3f} | {cpu:.3f} | {ratio['median']:.3f} [{low:.3f}, {high:.3f}] |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
