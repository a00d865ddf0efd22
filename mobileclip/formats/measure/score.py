"""Score exported programs on a dataset as evaluate scores students, and next to the student itself, paired."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from mobileclip.config import Evaluate
from mobileclip.data import images
from mobileclip.data.shards import read_samples
from mobileclip.errors import DataError
from mobileclip.evaluation import scores, statistics, zero_shot
from mobileclip.evaluation.features import caption_lists, field_values
from mobileclip.evaluation.retrieval import build_gallery, join_equal, rank_pairs
from mobileclip.evaluation.scores import Measure, Scores
from mobileclip.formats.bundle import tokenizer
from mobileclip.formats.contract import Contract
from mobileclip.formats.runtime import Programs
from mobileclip.manifest import Manifest
from mobileclip.models.embed import embed_pixels, embed_texts
from mobileclip.models.zoo import Clip

Floats = NDArray[np.float32]
# The table's names for "what is judged" and "what it is compared with".
PROGRAM, PYTORCH = scores.STUDENT, scores.CONTROL


@dataclass(frozen=True)
class Encoders:
    """One way to compute embeddings.

    Attributes:
        pixels: uint8 [batch, 3, size, size] to unit-norm [batch, dim].
        texts: Texts to unit-norm [texts, dim].
        logit_scale: Scale of the softmax.
        tokenize: Texts to token ids [texts, context]; texts that are the same tokens are one.
    """

    pixels: Callable[[torch.Tensor], Floats]
    texts: Callable[[Sequence[str]], Floats]
    logit_scale: float
    tokenize: Callable[[Sequence[str]], Any]


def agreed(programs: Programs) -> Contract:
    """The contract of programs that can be scored.

    Raises:
        DataError: They are a single file, or their tokenizer is not CLIP's.
    """
    terms = programs.contract
    if terms is None or terms.text.tokenizer != "clip-bpe":
        raise DataError(f"score: '{programs.folder}' has no contract or not CLIP's tokenizer, want an export of both.")
    return terms


def of_programs(programs: Programs) -> Encoders:
    """The exported programs with their exported tokenizer.

    Raises:
        DataError: They are a single file, or their tokenizer is not CLIP's.
    """
    terms = agreed(programs)
    tokenize = tokenizer.load(programs.folder / tokenizer.FOLDER)
    return Encoders(
        lambda pixels: programs.encode_image(pixels.numpy().astype(np.float32) / 255),
        lambda texts: programs.encode_text(tokenize(texts)),
        terms.logit_scale,
        tokenize,
    )


def of_student(clip: Clip, *, batch_size: int = 64) -> Encoders:
    """The student itself in PyTorch float32."""
    return Encoders(
        lambda pixels: embed_pixels(clip, pixels, batch_size=batch_size).numpy(),
        lambda texts: embed_texts(clip, list(texts), batch_size=batch_size).numpy(),
        clip.logit_scale,
        clip.tokenizer,
    )


def score(
    programs: Programs, data: str, content: Manifest, config: Evaluate, *, student: Clip | None = None
) -> dict[str, Any]:
    """Retrieval and every zero-shot task of the section, with bootstrap intervals.

    Args:
        programs: Loaded from a bundle or export.
        data: Dataset folder or URI.
        content: Its manifest.
        config: The `evaluate` section.
        student: The checkpoint to compare with, on the same samples and resamples.

    Returns:
        `samples`, `split`, and `metrics` by name: `student` is the program, `control` PyTorch, `delta` their paired
        difference.

    Raises:
        DataError: The split is empty, its samples lack a field the section names, or the checkpoint is not the one
            that the programs were made from.
    """
    config = config.model_copy(update={"split": content.held_out(config.split)})
    if student is not None:
        _check_student(agreed(programs), student)
    ways = {PROGRAM: of_programs(programs)} | ({PYTORCH: of_student(student)} if student else {})
    image = agreed(programs).image
    features: dict[str, list[Floats]] = {name: [] for name in ways}
    metadata: list[dict[str, Any]] = []
    stream = iter(read_samples(data, content, config.split))
    while batch := list(islice(stream, config.batch_size)):
        metadata += [sample.metadata for sample in batch]
        fitted = [images.resize(images.decode(sample.image), image) for sample in batch]
        for name, way in ways.items():
            features[name].append(way.pixels(torch.stack(fitted)))
    if not metadata:
        raise DataError(f"score: '{data}' has no samples of split '{config.split}'.")
    embedded = {name: np.concatenate(parts) for name, parts in features.items()}
    return {"samples": len(metadata), "split": config.split, "metrics": _table(ways, embedded, metadata, config)}


def _check_student(terms: Contract, student: Clip) -> None:
    wanted = terms.lineage.student_sha256
    if wanted and student.sha256 != wanted:
        raise DataError(
            f"score: the weights of '{student.name}' have sha256 {student.sha256[:12]}, the programs were made from "
            f"{wanted[:12]}: want the student that was exported."
        )


def _table(
    ways: Mapping[str, Encoders], embedded: Mapping[str, Floats], metadata: list[dict[str, Any]], config: Evaluate
) -> Scores:
    captions = caption_lists(metadata, field=config.retrieval_field, limit=config.retrieval_captions)
    tokenize = next(iter(ways.values())).tokenize
    gallery = build_gallery(join_equal(captions, tokenize))
    measures: dict[str, dict[str, Measure]] = {}
    for name, way in ways.items():
        ranks = rank_pairs(embedded[name], _in_batches(way.texts, gallery.texts, size=config.batch_size), gallery)
        measures[name] = scores.retrieval_measures(ranks, gallery)
    for index, task in enumerate(config.classifications):
        values = field_values(metadata, task.field, key=f"evaluate.classifications.{index}.field")
        classes = sorted({value for value in values if value is not None})
        rows = np.array([row for row, value in enumerate(values) if value is not None])
        labels = np.array([classes.index(value) for value in values if value is not None])
        same = zero_shot.equal_rows(tokenize, classes, task.templates)
        for name, way in ways.items():
            prompts = zero_shot.class_embeddings(
                functools.partial(_in_batches, way.texts, size=config.batch_size), classes, task.templates
            )
            found = zero_shot.classify(embedded[name][rows], prompts, labels, logit_scale=way.logit_scale, same=same)
            part = scores.zero_shot_measures(task.field, found, labels, len(classes))
            measures[name] |= scores.restrict(part, rows, len(metadata))
    resamples = statistics.draw_resamples(
        len(metadata), resamples=config.bootstrap, confidence=config.confidence, seed=config.seed
    )
    return scores.score(measures, resamples)


def _in_batches(encode: Callable[[Sequence[str]], Floats], texts: Sequence[str], *, size: int) -> Floats:
    return np.concatenate([encode(texts[start : start + size]) for start in range(0, len(texts), size)])


def render(found: Mapping[str, Any]) -> Table:
    """The scores as a table for the terminal, shares in percent."""
    table = Table("metric", "program", "PyTorch", "difference", "verdict", box=None)
    for name, row in found["metrics"].items():
        scale = 1 if name.endswith("median_rank") else 100
        cells = [_interval(row.get(key), scale) for key in (PROGRAM, PYTORCH, "delta")]
        table.add_row(name, *cells, str(row.get("delta", {}).get("verdict", "")))
    return table


def _interval(cell: Mapping[str, Any] | None, scale: int) -> str:
    if not cell or cell["value"] is None:
        return ""
    value, low, high = (f"{scale * cell[key]:.2f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"
