"""A small run for the tests of the evaluation: drawn pictures with unruly captions, views and two models."""

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mobileclip import manifest
from mobileclip.config import Classification, Evaluate, Prepare, Reinforce, TeacherRef, Views
from mobileclip.data.columns import ColumnPlan, build_columns, collect, pack_texts
from mobileclip.entry import run_stage
from mobileclip.models import zoo
from mobileclip.stages import prepare, reinforce
from mobileclip.tracking.protocol import LogTracker
from tests import students

HOSTILE = '<script>alert(1)</script> & "it\'s" </title> $title ${style} {} é 猫'
CONFIG = Evaluate(
    classifications=[
        Classification(field="group", templates=["a {} square", "{}"]),
        Classification(field="number", templates=["number {}"]),
    ],
    slice_field="seen",
    retrieval_captions=2,
    headline="retrieval/mean/r5",
    bootstrap=200,
    batch_size=32,
    gallery=6,
    seed=3,
)


@functools.cache
def inputs() -> tuple[Path, Path]:
    """Build everything before evaluate, once per test process.

    Returns:
        The reinforced dataset and the folder that distill leaves: a student that knows colors, an untrained control.
    """
    torch.set_num_threads(1)
    root = _folder()
    prepare.run(
        Prepare(shard_samples=20), out=str(root / "prepare"), tracker=LogTracker(), source=str(_draw(root / "raw"))
    )
    captioned, teachers = root / "caption", root / "teachers"
    _add_captions(root / "prepare", captioned)
    torch.manual_seed(5)
    zoo.save(str(teachers / "teacher"), zoo.create("tiny-mci"), license="MIT", card={})
    spec = Reinforce(views=Views(num_views=3), teachers=[TeacherRef(name="teacher", model="trained:teacher")])
    reinforce.run(spec, out=str(root / "reinforce"), tracker=LogTracker(), data=str(captioned), teachers=str(teachers))
    folder = students.distill(root, root / "reinforce", good=True)
    torch.manual_seed(1)
    zoo.save(str(folder / "control"), zoo.create("tiny-mci"), license="MIT", card={"model": "tiny-mci"})
    _write_history(folder)
    return root / "reinforce", folder


@functools.cache
def evaluated() -> tuple[Path, dict[str, float]]:
    """Evaluate it through the door, once per test process.

    Returns:
        The output folder and the metrics.
    """
    data, folder = inputs()
    out = _folder()
    return out, run_stage("evaluate", CONFIG, out=out, data=data, student=folder)


def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="mobileclip-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _draw(folder: Path, *, count: int = 96) -> Path:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    colors = list(students.COLORS)
    rows = []
    for index in range(count):
        color = colors[index % len(colors)]
        pixels = np.array(students.COLORS[color]) + rng.normal(0, 12, (40, 40, 3))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{index:03d}.png")
        row = {
            "image": f"{index:03d}.png",
            "captions": [students.CAPTION.format(color), f"{HOSTILE} {index % 5}", "never used"],
            "group": color,
            "split": "train" if index < count // 2 else "test",
            "seen": index % 3 > 0,
            "license": "CC0-1.0" if index % 2 else HOSTILE,
        }
        if index % 4:  # some samples lack the second task's field, which is a number with many classes
            row["number"] = index % 20
        rows.append(row)
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _add_captions(data: Path, out: Path) -> None:
    content = manifest.read(str(data))
    plan = ColumnPlan("coca", "caption", {"texts": 2}, license="MIT")
    shards = content.split("train")

    def compute(shard, _missing):
        return {"coca": pack_texts([[f"synthetic {i}", HOSTILE] for i in range(shard.samples)])}

    build_columns(str(out), [plan], shards, compute)
    manifest.write(str(out), collect(str(out), [plan], shards, content.moved(str(data), str(out))))


def _write_history(folder: Path) -> None:
    points = [
        {
            "model": model,
            "step": step,
            "samples": step * 32,
            "loss": 4.0 / step + gap,
            "loss/clip": 3.0 / step + gap,
            "loss/distill": gap,
            "grad_norm": 1.0,
            "validation/i2t/r1": 0.02 * step + gap / 10,
        }
        for model, gap in (("student", 0.5), ("control", 0.0))
        for step in range(1, 6)
    ]
    (folder / "history.jsonl").write_text("".join(json.dumps(point, sort_keys=True) + "\n" for point in points))
