"""The study of docs/results.md: the demo's student with and without reinforcement, over samples seen and over images.

    python -m benchmarks.learning_efficiency --root runs/demo --params params/demo.yaml

needs a root whose `calibrate` is finished (`make results` makes it). Every training is the stage `distill` with some
keys of its section changed, and is scored by the stage `evaluate` on the artist that no training or validation image is
from. All variants of a seed start from the same weights. Every finished training is one line of `docs/results.jsonl`,
so a stopped study goes on where it was; the tables, the figure and `docs/results.md` are made from that file by
`benchmarks.results`.
"""

import argparse
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from benchmarks import results
from benchmarks.results import Variant
from mobileclip import manifest
from mobileclip.config import Distill, Params, read_params
from mobileclip.data.columns import ColumnPlan, ColumnReader, Tensors, build_columns, collect
from mobileclip.data.shards import ShardReader
from mobileclip.manifest import Shard
from mobileclip.parallel import one_thread, run_all
from mobileclip.stages import distill, evaluate
from mobileclip.tracking.protocol import LogTracker


def main() -> None:
    """Train what is not yet in the results file, then write the tables and the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path("runs/demo"))
    parser.add_argument("--params", type=Path, default=Path("params/demo.yaml"))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--seeds", type=int, default=5, help="of the trainings of several lengths")
    parser.add_argument("--image-seeds", type=int, default=3, help="of the trainings on a share of the images")
    parser.add_argument("--other-seeds", type=int, default=3, help="of everything else")
    options = parser.parse_args()
    params = read_params(options.params)
    content = manifest.read(str(options.root / "calibrate"))
    study = results.Study(content.digest(), results.settings_of(params))
    store = options.out / "results.jsonl"
    store.parent.mkdir(parents=True, exist_ok=True)
    done = {(row["variant"], row["seed"]) for row in results.read(store, study)}
    seeds = {"length": options.seeds, "images": options.image_seeds, "terms": options.other_seeds}
    waiting = [run for run in plan(seeds) if run not in done]
    processes = max(1, int(os.environ.get("MOBILECLIP_PROCESSES", "2")))
    for share in {results.VARIANTS[name].images for name, _ in waiting} - {1.0}:  # workers may not fork
        share_of(str(options.root / "calibrate"), images_folder(str(options.root), share), share)
    for first in range(0, max(1, len(waiting)), processes):
        runs = waiting[first : first + processes]
        found = run_all([(run_one, (str(options.root), params, name, seed)) for name, seed in runs])
        with store.open("a", encoding="utf-8") as file:
            for (name, seed), scores in zip(runs, found, strict=True):
                row = {"variant": name, "seed": seed, "dataset": study.dataset, "settings": study.settings, **scores}
                file.write(json.dumps(row) + "\n")
        results.write(store, study, params=params, teachers=content.scales, images=_images(content), out=options.out)


def plan(seeds: dict[str, int]) -> list[tuple[str, int]]:
    """(variant, seed), the most telling first: all variants of the first seeds before the last seeds of any.

    Args:
        seeds: Number of seeds by kind of variant.
    """
    runs = [(seed, name) for name, variant in results.VARIANTS.items() for seed in range(seeds[variant.kind])]
    return [(name, seed) for seed, name in sorted(runs, key=lambda run: run[0])]


def run_one(root: str, params: Params, name: str, seed: int) -> dict[str, Any]:
    """Train one student and score it on the unseen artist.

    Returns:
        `samples` seen in training, `scores` by metric and `floor`: what the best constant or random answer scores.
    """
    one_thread()
    os.environ["MOBILECLIP_TRACKING"] = "off"
    variant = results.VARIANTS[name]
    config = section(params, variant, seed=seed)
    folder = f"{root}/.benchmark/{hashlib.sha256(f'{name}|{seed}'.encode()).hexdigest()[:12]}"
    data = f"{root}/calibrate"
    if variant.images < 1:
        data = images_folder(root, variant.images)
    distill.run(config, out=folder, tracker=LogTracker(), data=data)
    scoring = params.evaluate.model_copy(update={"gallery": 0, "bootstrap": 1})
    found = evaluate.run(scoring, out=f"{folder}/scores", tracker=LogTracker(), data=data, student=folder)
    shutil.rmtree(folder)
    chance, constant = _chosen(found, "chance"), _chosen(found, "majority")
    return {
        "samples": config.training.steps * config.training.batch_size,
        "scores": _chosen(found, "student"),
        "floor": {key: max(value, constant[key]) for key, value in chance.items()},
    }


def _chosen(found: dict[str, float], model: str) -> dict[str, float]:
    """A model's scores that the tables show, by metric: evaluate names it between the slice and the metric."""
    own = {key.replace(f"{model}/", "", 1): value for key, value in found.items() if f"{model}/" in key}
    return {key: round(value, 6) for key, value in own.items() if results.label(key)}


def section(params: Params, variant: Variant, *, seed: int) -> Distill:
    """The `distill` section of a variant; without the bank it trains at the control's learning rate."""
    config = params.distill
    training = config.training.model_copy(update={"steps": max(1, round(config.training.steps * variant.length))})
    if not variant.changes.get("bank_weight", config.bank_weight) and config.control_lr:
        optimizer = training.optimizer.model_copy(update={"lr": config.control_lr})
        training = training.model_copy(update={"optimizer": optimizer})
    changed = {**variant.changes, "training": training, "seed": seed, "control": False}
    return Distill.model_validate(config.model_copy(update=changed).model_dump())


def images_folder(root: str, share: float) -> str:
    """Where the dataset with a share of the images lies."""
    return f"{root}/.benchmark/images-{share:g}"


def share_of(data: str, out: str, share: float) -> None:
    """The dataset with a share of its training images: a larger share holds the smaller one's.

    Args:
        data: Reinforced dataset.
        out: Where the selection column goes; nothing is copied.
        share: Between 0 and 1; a hash of the uid decides.
    """
    content = manifest.read(data)
    shards = content.split("train")
    before = next((column for column in content.columns if column.name == "selection"), None)
    rest = content.model_copy(update={"columns": [c for c in content.columns if c is not before]})
    chosen = ColumnPlan("selection", "selection", {"share": share, "of": before.spec_sha256 if before else ""})

    def compute(shard: Shard, _: list[str]) -> dict[str, Tensors]:
        uids = ShardReader(data, shard).uids
        kept = ColumnReader(data, before, shard).all("keep") if before else torch.ones(len(uids), dtype=torch.uint8)
        within = [int.from_bytes(hashlib.sha256(uid.encode()).digest()[:8]) < share * 2**64 for uid in uids]
        return {"selection": {"keep": kept * torch.tensor(within, dtype=torch.uint8)}}

    build_columns(out, [chosen], shards, compute)
    manifest.write(out, collect(out, [chosen], shards, rest.moved(data, out)))


def _images(content: manifest.Manifest) -> int:
    return sum(shard.samples for shard in content.split("train"))


if __name__ == "__main__":
    main()
