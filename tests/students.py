"""A small real chain for tests: drawn pictures, students of known quality, and the folders their stages leave."""

import atexit
import functools
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mobileclip import config, entry, manifest
from mobileclip.data import images
from mobileclip.data.preprocess import image_tensor
from mobileclip.data.shards import read_samples
from mobileclip.lineage import record as records
from mobileclip.models import zoo

COLORS = {
    "red": (200, 30, 30), "green": (30, 180, 40), "blue": (30, 50, 210), "yellow": (230, 220, 30),
    "purple": (140, 30, 160), "orange": (240, 130, 20), "white": (245, 245, 245), "black": (15, 15, 15),
}  # fmt: skip
CAPTION = "a {} square"


@dataclass(frozen=True)
class World:
    """A dataset, a good and a bad student, each with its evaluation and programs."""

    root: Path
    data: Path

    def folders(self, name: str) -> dict[str, Path]:
        """Inputs of promote for `good` or `bad`."""
        root = self.root / name
        return {"student": root / "distill", "evaluation": root / "evaluate", "programs": root / "export"}


@functools.cache
def world() -> World:
    """Made once per process: it takes half a minute."""
    root = Path(tempfile.mkdtemp(prefix="students-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    before = os.environ.get("MOBILECLIP_TRACKING", "")
    os.environ["MOBILECLIP_TRACKING"] = "off"
    try:
        data = prepare(root)
        for name in ("good", "bad"):
            student = distill(root / name, data, good=name == "good")
            evaluate(root / name, data, student)
            export(root / name, data, student)
    finally:
        os.environ["MOBILECLIP_TRACKING"] = before
    return World(root, data)


def draw(folder: Path, *, count: int = 96, license_: str = "CC0-1.0") -> Path:
    """Noisy squares of eight colors with their captions, half of them to test on."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    rows = []
    for index in range(count):
        color = list(COLORS)[index % len(COLORS)]
        pixels = np.array(COLORS[color]) + rng.normal(0, 12, (40, 40, 3))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{index:03d}.png")
        rows.append(
            {
                "image": f"{index:03d}.png",
                "captions": [CAPTION.format(color)],
                "group": color,
                "split": "train" if index < count // 2 else "test",
                "source": "drawn",
                "license": license_,
            }
        )
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def prepare(root: Path, **drawing: Any) -> Path:
    """Pictures and the dataset made from them."""
    source = draw(root / "raw", **drawing)
    entry.run_stage("prepare", config.Prepare(), out=root / "prepare", source=source)
    return root / "prepare"


def distill(root: Path, data: Path, *, good: bool, seed: int = 0) -> Path:
    """The folder that distill leaves, of a student that is good or knows nothing.

    The good one is a random network whose text projection is solved in closed form, so that each color's caption
    points at its pictures: seconds instead of minutes of training, and as good on colors.
    """
    torch.manual_seed(seed)
    clip = zoo.create("tiny-mci")
    clip.model.eval()
    if good:
        _teach_colors(clip, data)
    card = {"model": "tiny-mci", "dataset": manifest.read(str(data)).digest(), "teachers": {}, "seed": seed}
    zoo.save(str(root / "distill" / "student"), clip, license="CC0-1.0", card=card)
    finish("distill", config.Distill(seed=seed), root / "distill", {"good": float(good)}, data=data)
    return root / "distill"


def finish(stage: str, section: config.Section, out: Path, metrics: dict[str, float], **inputs: Path) -> None:
    """Leave config, metrics and record as the door does after a stage."""
    entry._write_json(str(out), "config.json", section.model_dump(mode="json"))
    entry._write_json(str(out), "metrics.json", metrics)
    record = records.build_record(stage, section, str(out), {name: str(path) for name, path in inputs.items()})
    entry._write_json(str(out), records.RECORD, record)


def evaluate(root: Path, data: Path, student: Path, *, seed: int = 0) -> Path:
    """Run the stage evaluate."""
    section = config.Evaluate(classifications=[config.Classification()], bootstrap=200, gallery=0, seed=seed)
    entry.run_stage("evaluate", section, out=root / "evaluate", data=data, student=student)
    return root / "evaluate"


def export(root: Path, data: Path, student: Path) -> Path:
    """Run the stage export; untrained networks look at every picture alike, so the budget is wide."""
    entry.run_stage(
        "export",
        config.Export(samples=4, max_error_float32=0.1, latency_runs=0),
        out=root / "export",
        data=data,
        student=student,
    )
    return root / "export"


@torch.no_grad()
def _teach_colors(clip: zoo.Clip, data: Path) -> None:
    content = manifest.read(str(data))
    samples = list(read_samples(str(data), content, "train"))
    pixels = torch.stack([images.resize(images.decode(s.image), clip.preprocess) for s in samples])
    features = clip.encode_image(image_tensor(pixels, clip.preprocess)).double()
    colors = list(COLORS)
    target = torch.tensor([[float(s.metadata["group"] == c) for c in colors] for s in samples]).double()
    eye = 1e-6 * torch.eye(features.shape[1]).double()
    wanted = torch.linalg.solve(features.T @ features + eye, features.T @ (target - target.mean())).T
    text = clip.model.text
    projection = text.text_projection.data.clone()
    text.text_projection.data = torch.eye(*projection.shape)
    hidden = clip.model.encode_text(clip.tokenizer([CAPTION.format(c) for c in colors])).double()
    text.text_projection.data = (torch.linalg.pinv(hidden) @ wanted).float()
