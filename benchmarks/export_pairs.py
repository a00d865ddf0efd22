"""Accuracy with both towers exchanged for programs, from the embeddings that `bench_export` keeps of each."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.export_results import METRICS, Row
from mobileclip.evaluation import scores, statistics, zero_shot
from mobileclip.evaluation.retrieval import rank_pairs
from mobileclip.formats import proof, registry
from mobileclip.formats.programs import Plan
from mobileclip.formats.proof import Encode, Reference
from mobileclip.formats.towers import Towers
from mobileclip.models import zoo

PLAIN, MIXED, TUNED = "", "mixed", "tuned"
# Precisions of image and text tower that an app would ship together.
TOGETHER = (
    ("float32", "float32"), ("float16", "float16"), ("float32", "int8"), ("int8_weights", "int8_weights"),
    ("int8_weights", "int8"), ("int8_static", "int8"),
)  # fmt: skip


@dataclass(frozen=True)
class Student:
    """What is measured.

    Attributes:
        name: In the tables.
        weights: First digits of their digest, or `random`.
        clip: The student.
        towers: The same, folded and split.
        reference: Samples of the proof.
        calibration: Others.
        data: Folder of a trained student's dataset; else empty.
    """

    name: str
    weights: str
    clip: zoo.Clip
    towers: Towers
    reference: Reference
    calibration: Reference
    data: str

    @property
    def samples(self) -> int:
        """Samples of the proof."""
        return len(self.reference.uids)


def embed(encode: Encode, tower: str, reference: Reference) -> dict[str, NDArray[np.float32]]:
    """What a program makes of the samples, and the text tower of the class prompts."""
    own = {"features": proof.encode_in_batches(encode, reference.inputs(tower), 8)}
    if tower == "text" and len(reference.class_tokens):
        own["classes"] = proof.encode_in_batches(encode, reference.class_tokens, 8)
    return own


def features_file(work: Path, item: Plan, variant: str) -> Path:
    """Where a program's embeddings are kept."""
    return work / f"{item.file_name}.{variant or 'plain'}.npz"


def rows(student: Student, formats: Sequence[str], work: Path) -> Iterator[Row]:
    """Pairs of executed programs of one format, paired with PyTorch on the same samples."""
    for name, (image, text), variant in itertools.product(formats, TOGETHER, (PLAIN, MIXED, TUNED)):
        files = (
            features_file(work, Plan("image", name, image), variant),
            features_file(work, Plan("text", name, text), PLAIN),
        )
        if registry.FORMATS[name].executed and all(file.is_file() for file in files):
            yield {
                "student": student.name, "weights": student.weights, "samples": student.samples, "kind": "pair",
                "format": name, "image": image, "text": text, "variant": variant,
                "scores": scored(student, np.load(files[0]), np.load(files[1])),
            }  # fmt: skip


def scored(student: Student, image: Any, text: Any) -> dict[str, Any]:
    """R@1 both ways and zero-shot accuracy of a pair, of PyTorch, and their paired difference."""
    reference = student.reference
    ways = {
        scores.STUDENT: (image["features"], text["features"], text["classes"]),
        scores.CONTROL: (reference.image_features, reference.text_features, reference.class_features),
    }
    known = np.flatnonzero(reference.labels >= 0)
    first = proof.first_rows(reference.gallery)
    measures = {}
    for name, (pictures, captions, classes) in ways.items():
        ranks = rank_pairs(pictures, captions[first], reference.gallery)
        found = zero_shot.classify(
            pictures[known], classes, reference.labels[known], logit_scale=student.clip.logit_scale
        )  # fmt: skip
        part = scores.zero_shot_measures("group", found, reference.labels[known], len(classes))
        whole = scores.retrieval_measures(ranks, reference.gallery) | scores.restrict(part, known, student.samples)
        measures[name] = {metric: whole[metric] for metric in METRICS}
    resamples = statistics.draw_resamples(
        student.samples, resamples=proof.RESAMPLES, confidence=proof.CONFIDENCE, seed=proof.SEED
    )  # fmt: skip
    return scores.score(measures, resamples)
