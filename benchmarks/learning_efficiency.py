"""Learning efficiency and ablations: one student, plain CLIP against reinforced training, several seeds.

    python -m benchmarks.learning_efficiency --root runs/results --params params/results.yaml

needs a finished `calibrate` in the root (`make results` makes it), and for numbers of views and captions in
`runs/counts` (`make ablations` makes it). All variants of a seed start from the same weights
and see the same pictures and views in the same order. Scores are on the artist that no training or validation picture
is from. Every finished training is one line of `docs/results.jsonl`, so a stopped study goes on where it was; the
tables, the figures and `docs/results.md` are made from that file by `benchmarks.results`.
"""

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import results
from mobileclip import manifest
from mobileclip.config import Params, read_params
from mobileclip.data.embeddings import as_stored
from mobileclip.data.images import decode, resize
from mobileclip.data.loader import PairDataset, Recipe
from mobileclip.data.shards import read_samples
from mobileclip.evaluation.retrieval import best_ranks
from mobileclip.models import zoo
from mobileclip.models.embed import embed_pixels, embed_texts
from mobileclip.parallel import one_thread, run_all
from mobileclip.training.contrastive import Reinforcement, TeacherFeatures, train_clip
from mobileclip.training.objective import Batch

POINTS = 6
"""Points of a learning curve."""


@dataclass(frozen=True)
class Variant:
    """What a training differs in from the params file.

    Attributes:
        synthetic: Learn from the synthetic captions too.
        distill_weight: Lambda; below 0 = as in the params file.
        teachers: Teachers by name, at the scales calibrated for them; empty = the ensemble that `calibrate` chose.
        scale_factor: Multiplies the calibrated logit scales.
        views: Stored views used; 0 = all.
        captions: Synthetic captions used; 0 = all.
        dtype: Storage type that the teachers' embeddings go through before they are learned from; empty = as stored.
        length: Multiplies the steps.
    """

    synthetic: bool = True
    distill_weight: float = -1.0
    teachers: tuple[str, ...] = ()
    scale_factor: float = 1.0
    views: int = 0
    captions: int = 0
    dtype: str = ""
    length: int = 1


MAIN = {
    results.PLAIN: Variant(synthetic=False, distill_weight=0.0),
    results.REINFORCED: Variant(),
    "plain + synthetic captions": Variant(distill_weight=0.0),
    "distillation, real captions": Variant(synthetic=False),
}
LONGER = {
    results.longer(length): Variant(synthetic=False, distill_weight=0.0, length=length)
    for length in results.LENGTHS[1:]
}
ABLATIONS = {
    "λ = 0.3": Variant(distill_weight=0.3),
    "λ = 1": Variant(distill_weight=1.0),
    "teachers `locked` and `scratch`": Variant(teachers=("locked", "scratch")),
    "teacher `scratch` alone": Variant(teachers=("scratch",)),
    "scales × 1/3": Variant(scale_factor=1 / 3),
    "scales × 3": Variant(scale_factor=3.0),
    "int8 targets": Variant(dtype="int8"),
    "bfloat16 targets": Variant(dtype="bfloat16"),
}
COUNTS = {
    results.MOST: Variant(),
    "5 views": Variant(views=5),
    "2 views": Variant(views=2),
    "1 view": Variant(views=1),
    "2 synthetic captions": Variant(captions=2),
    "1 synthetic caption": Variant(captions=1),
    "no synthetic caption": Variant(synthetic=False),
}


def main() -> None:
    """Train what is not yet in the results file, then write the tables and figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path("runs/results"))
    parser.add_argument(
        "--counts", type=Path, default=Path("runs/counts"), help="root of 10 views and 5 captions, where there is one"
    )
    parser.add_argument("--params", type=Path, default=Path("params/results.yaml"))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--seeds", type=int, default=5, help="of plain and reinforced")
    parser.add_argument("--other-seeds", type=int, default=5, help="of the variants in between")
    parser.add_argument("--longer-seeds", type=int, default=5, help="of plain training at multiples of the length")
    parser.add_argument("--ablation-seeds", type=int, default=2, help="of everything else")
    parser.add_argument("--steps", type=int, default=0, help="0: as in the params file")
    options = parser.parse_args()
    params = read_params(options.params)
    steps = options.steps or params.distill.training.steps
    store = options.out / "results.jsonl"
    store.parent.mkdir(parents=True, exist_ok=True)
    roots = {"main": options.root} | ({"counts": options.counts} if (options.counts / "calibrate").is_dir() else {})
    contents = {study: manifest.read(str(root / "calibrate")) for study, root in roots.items()}
    datasets = {study: content.digest() for study, content in contents.items()}
    settings = results.settings_of(params)
    done = {
        (study, row["variant"], row["seed"])
        for study, dataset in datasets.items()
        for row in results.read(store, dataset=dataset, steps=steps, settings=settings)
    }
    waiting = [
        run
        for run in _plan(options.seeds, options.other_seeds, options.longer_seeds, options.ablation_seeds)
        if run[0] in roots and run not in done
    ]

    def write() -> None:
        """After every round, so that a study that is stopped has its tables."""
        results.write(
            store, datasets=datasets, steps=steps, params=params, teachers=contents["main"].scales,
            out=options.out, ablations=list(ABLATIONS),
        )  # fmt: skip

    processes = max(1, int(os.environ.get("MOBILECLIP_PROCESSES", "2")))
    for first in range(0, len(waiting), processes):
        runs = waiting[first : first + processes]
        tasks = [(run_one, (str(roots[study]), params, name, seed, steps)) for study, name, seed in runs]
        with store.open("a", encoding="utf-8") as file:
            for (study, name, seed), curve in zip(runs, run_all(tasks), strict=True):
                row = {"variant": name, "seed": seed, "steps": steps, "dataset": datasets[study]}
                file.write(json.dumps({**row, "settings": settings, "curve": curve}) + "\n")
        write()
    if not waiting:
        write()


def _plan(seeds: int, other_seeds: int, longer_seeds: int, ablation_seeds: int) -> list[tuple[str, str, int]]:
    """(study, variant, seed), the most telling first."""
    main = list(MAIN)
    plan = [("main", name, seed) for seed in range(seeds) for name in main[:2]]
    plan += [("main", name, seed) for seed in range(other_seeds) for name in main[2:]]
    plan += [("main", name, seed) for name in LONGER for seed in range(longer_seeds)]
    for study, variants in (("counts", COUNTS), ("main", ABLATIONS)):
        plan += [(study, name, seed) for seed in range(ablation_seeds) for name in variants]
    return plan


def run_one(root: str, params: Params, name: str, seed: int, steps: int) -> list[dict[str, float]]:
    """Train one student; its scores on the unseen artist at every point of the learning curve."""
    one_thread()
    os.environ["MOBILECLIP_TRACKING"] = "off"
    variant = (MAIN | LONGER | ABLATIONS | COUNTS)[name]
    steps *= variant.length
    data, config = f"{root}/calibrate", params.distill
    content = manifest.read(data)
    weight = config.distill_weight if variant.distill_weight < 0 else variant.distill_weight
    calibrated = scales_of(data, variant.teachers) if variant.teachers else content.scales
    calibrated = calibrated if weight else {}
    teachers = tuple(calibrated)
    torch.manual_seed(seed)
    clip = zoo.create(config.model)
    recipe = Recipe(
        clip.preprocess, clip.tokenizer, config.caption_field, tuple(config.synthetic) if variant.synthetic else (),
        teachers, seed=seed, use_views=variant.views, use_captions=variant.captions,
    )  # fmt: skip
    scales = tuple(scale * variant.scale_factor for scale in calibrated.values())
    training = config.training.model_copy(
        update={"steps": steps, "checkpoint_every": 0, "log_every": max(1, steps // POINTS)}
    )
    result = train_clip(
        clip, PairDataset(data, content, recipe), training, reinforcement=Reinforcement(weight, teachers, scales),
        seed=seed, key={"variant": name, "seed": seed}, folder=f"{root}/.benchmark/{name}", title=f"{name}, {seed}",
        validate=scorer(clip, data, content), online=restored(variant.dtype) if variant.dtype else None,
    )  # fmt: skip
    keys = [key for key in result.history[0] if key.startswith("validation/")]
    return [
        {"samples": p["samples"], **{k.removeprefix("validation/"): round(p[k], 6) for k in keys}}
        for p in result.history
    ]


def scales_of(data: str, teachers: tuple[str, ...]) -> dict[str, float]:
    """The logit scales that `calibrate` found best for an ensemble, whether it chose that ensemble or not."""
    tried = json.loads(Path(data, "curves.json").read_text(encoding="utf-8"))["ensembles"]
    found: dict[str, float] = next(row["scales"] for row in tried if set(row["scales"]) == set(teachers))
    return {teacher: found[teacher] for teacher in teachers}


def restored(dtype: str) -> TeacherFeatures:
    """A function that gives a batch's teacher embeddings as they are after being stored in a type (see `Variant`)."""

    def run(batch: Batch) -> Batch:
        return {name: as_stored(value, dtype) for name, value in batch.items() if name.startswith("teacher_")}

    return run


def scorer(clip: zoo.Clip, data: str, content: manifest.Manifest) -> Callable[[], dict[str, float]]:
    """Recall at 1 and 10 (mean of both directions) on the test split, per slice of `seen`."""
    samples = list(read_samples(data, content, "test"))
    pixels = torch.stack([resize(decode(s.image), clip.preprocess) for s in samples])
    texts = [s.captions[0] for s in samples]
    order = sorted(set(texts))
    ids = torch.tensor([order.index(text) for text in texts])
    slices = {
        name: torch.tensor([i for i, s in enumerate(samples) if bool(s.metadata["seen"]) is value])
        for name, value in (("seen", True), ("unseen", False))
    }

    def score() -> dict[str, float]:
        image = embed_pixels(clip, pixels, batch_size=64).numpy()
        text = embed_texts(clip, texts, batch_size=64).numpy()
        found = {}
        for name, rows in slices.items():
            same = ids[rows][:, None] == ids[rows][None]  # symmetric: right pairs are the same in both directions
            pairs = [column.numpy() for column in same.nonzero(as_tuple=True)]
            ranks = [best_ranks(a[rows.numpy()], b[rows.numpy()], *pairs) for a, b in ((image, text), (text, image))]
            for k in (1, 10):
                found[f"{name}/r{k}"] = sum(float((rank <= k).mean()) for rank in ranks) / 2
                found[f"{name}/chance/r{k}"] = _chance(same.sum(dim=1), k)
        return found

    return score


def _chance(right: torch.Tensor, k: int) -> float:
    """Recall at k of a random order of as many candidates as there are queries, of which `right` are right."""
    right, missed = right.double(), torch.ones(len(right), dtype=torch.float64)
    for place in range(min(k, len(right))):
        missed *= (len(right) - right - place).clamp(min=0) / (len(right) - place)
    return float(1 - missed.mean())


if __name__ == "__main__":
    main()
