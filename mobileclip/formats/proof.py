"""Proof that an exported program computes the student: executed in its runtime, compared on real samples.

The figure that decides is the error **relative to the centered embeddings**, ||program - eager|| / ||eager - mean||.
A CLIP tower's embeddings crowd into a narrow cone, so a raw cosine of 0.999 can hide an error a fifth as large as all
that tells two pictures apart.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mobileclip.data import images
from mobileclip.data.shards import Sample
from mobileclip.errors import DataError, ExportError
from mobileclip.evaluation.retrieval import Gallery, build_gallery, join_equal, rank_pairs
from mobileclip.evaluation.statistics import Floats, compare, draw_resamples, estimate, ratio
from mobileclip.models.zoo import Clip

Encode = Callable[[NDArray[np.generic]], NDArray[np.float32]]
BATCHES = (8, 1)
# Of unit vectors; with random weights MobileCLIP2-S0 has 0.24 for images.
FLAT = 0.1
RESAMPLES, CONFIDENCE, SEED = 1000, 0.95, 0


@dataclass(frozen=True)
class Reference:
    """What the student itself, in PyTorch float32 and as it was trained, makes of the samples.

    Attributes:
        uids: Samples, in order.
        pixels: float32 [samples, 3, size, size], RGB in 0-1.
        tokens: int32 [samples, context_length], of each sample's first caption.
        gallery: Which captions belong to which image.
        image_features: Unit-norm [samples, dim].
        text_features: Unit-norm [samples, dim].
        labels: Class of each sample, int64 [samples]; -1 = none. Empty without a zero-shot task.
        class_tokens: int32 [classes, context_length], one prompt per class.
        class_features: Unit-norm [classes, dim].
    """

    uids: list[str]
    pixels: NDArray[np.float32]
    tokens: NDArray[np.int32]
    gallery: Gallery
    image_features: NDArray[np.float32]
    text_features: NDArray[np.float32]
    labels: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    class_tokens: NDArray[np.int32] = field(default_factory=lambda: np.empty((0, 0), np.int32))
    class_features: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))

    def features(self, tower: str) -> NDArray[np.float32]:
        """The tower's embeddings."""
        return self.image_features if tower == "image" else self.text_features

    def inputs(self, tower: str) -> NDArray[np.generic]:
        """The tower's input."""
        return self.pixels if tower == "image" else self.tokens


def refer(
    clip: Clip, samples: Sequence[Sample], *, batch_size: int = 32, class_field: str = "", template: str = "{}"
) -> Reference:
    """Embed the samples with the student itself.

    Args:
        clip: The student, not folded: folding is among the things to be proved.
        samples: At least two, with captions.
        batch_size: Samples per forward pass.
        class_field: Metadata field of the zero-shot task; empty = none, nor is there one where all samples are of one
            class.
        template: Prompt of that task.

    Raises:
        DataError: No sample has the field.
    """
    names = [str(sample.metadata.get(class_field) or "") for sample in samples]
    classes = sorted(set(names) - {""})
    if class_field and not classes:
        known = ", ".join(sorted({name for sample in samples for name in sample.metadata})) or "none"
        raise DataError(f"export.zero_shot_field: got '{class_field}', the samples have the fields {known}.")
    classes = classes if len(classes) > 1 else []
    prompts = [template.replace("{}", name) for name in classes]
    fitted = [images.resize(images.decode(sample.image), clip.preprocess) for sample in samples]
    pixels = torch.stack(fitted).float() / 255
    captions = [sample.captions[0] for sample in samples]
    tokens = clip.tokenizer(captions)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (clip.preprocess.mean, clip.preprocess.std))
    with one_thread(), torch.no_grad():
        image_parts = [clip.encode_image((part - mean) / std) for part in torch.split(pixels, batch_size)]
        text_parts, class_parts = (
            [clip.encode_text(texts[i : i + batch_size]) for i in range(0, len(texts), batch_size)]
            for texts in (captions, prompts)
        )
    if not classes:
        task: tuple[NDArray[Any], ...] = ()
    else:
        labels = np.array([classes.index(name) if name else -1 for name in names], np.int64)
        task = (labels, clip.tokenizer(prompts).to(torch.int32).numpy(), torch.cat(class_parts).numpy())
    return Reference(
        [sample.uid for sample in samples],
        pixels.numpy(),
        tokens.to(torch.int32).numpy(),
        build_gallery(join_equal([[caption] for caption in captions], clip.tokenizer)),
        torch.cat(image_parts).numpy(),
        torch.cat(text_parts).numpy(),
        *task,
    )


def prove(encode: Encode, tower: str, reference: Reference) -> dict[str, float]:
    """Execute a program on all samples and compare it with the student.

    Args:
        encode: The loaded program.
        tower: `image` or `text`.
        reference: The student's own embeddings.

    Returns:
        `error` (the larger of the two batch sizes), `error_batch_N`, `spread` (root mean square distance of the
        student's own embeddings from their mean, 0 to 1), `cosine_min`, `cosine_mean`, `max_abs`,
        `norm_error`, `agreement` (share of samples with the same first answer against the student's other tower),
        `recall/...`: R@1 of the student, of the program, their difference and its paired 95 % interval, and the same
        of zero-shot accuracy, `zero_shot/...`, where the reference has classes.
    """
    wanted = reference.features(tower)
    by_batch = {size: encode_in_batches(encode, reference.inputs(tower), size) for size in BATCHES}
    figures = {f"error_batch_{size}": relative_error(got, wanted) for size, got in by_batch.items()}
    worst = np.nan_to_num(by_batch[max(by_batch, key=lambda size: figures[f"error_batch_{size}"])])
    cosines = (worst * wanted).sum(1) / np.maximum(np.linalg.norm(worst, axis=1), 1e-12)
    other = reference.features("text" if tower == "image" else "image")
    same = (worst @ other.T).argmax(1) == (wanted @ other.T).argmax(1)
    return {
        "error": max(figures.values()),
        **figures,
        "spread": float(np.linalg.norm(wanted - wanted.mean(0)) / len(wanted) ** 0.5),
        "cosine_min": float(cosines.min()),
        "cosine_mean": float(cosines.mean()),
        "max_abs": float(np.abs(worst - wanted).max()),
        "norm_error": float(np.abs(np.linalg.norm(worst, axis=1) - 1).max()),
        "agreement": float(same.mean()),
        **_recall(worst, tower, reference),
        **_zero_shot(encode, worst, tower, reference),
    }


def check(name: str, figures: dict[str, float], budget: float, *, layers: str = "") -> None:
    """Refuse a program that misses its budget.

    Args:
        name: File name.
        figures: Of `prove`.
        budget: Largest error allowed.
        layers: The layers that lose most, and what more is known of them, if they were measured.

    Raises:
        ExportError: With program, figure, budget and layers.
    """
    if figures["error"] > budget:
        worst = f"; quantized alone these layers lose most: {layers}" if layers else ""
        # The error is relative to the spread: without one, rounding is as large as what tells two samples apart.
        if (spread := figures.get("spread", 1.0)) < FLAT:
            worst += (
                f"; the student's own embeddings of these samples hardly differ (spread {spread:.2g}, at most 1), as "
                "after a training that is too short: train it longer before you judge its programs"
            )
        raise ExportError(
            f"export: program '{name}' has error {figures['error']:.3g} relative to the centered embeddings, "
            f"its budget is {budget:g} (smallest cosine {figures['cosine_min']:.6f}){worst}; nothing was published."
        )


def relative_error(got: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """||got - wanted|| / ||wanted - mean of wanted||; 0 is perfect.

    Infinite where all wanted rows are equal or a value is no number.
    """
    spread = float(np.linalg.norm(wanted.astype(np.float64) - wanted.mean(0, dtype=np.float64)))
    distance = float(np.linalg.norm(got.astype(np.float64) - wanted))
    return distance / spread if spread > 0 and np.isfinite(distance) else float("inf")


def encode_in_batches(encode: Encode, rows: NDArray[np.generic], size: int) -> NDArray[np.float32]:
    """Run a program over all rows, `size` at a time."""
    return np.concatenate([encode(rows[start : start + size]) for start in range(0, len(rows), size)])


def first_rows(gallery: Gallery) -> NDArray[np.int64]:
    """Sample whose caption embedding stands for each text [texts]: equal captions are one text, its first counts."""
    rows = np.zeros(len(gallery.texts), dtype=np.int64)
    rows[gallery.columns[::-1]] = gallery.images[::-1]
    return rows


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: the order of its sums, and so the last bits, depends on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _recall(got: NDArray[np.float32], tower: str, reference: Reference) -> dict[str, float]:
    """Retrieval with this tower exchanged and the other one kept, paired with the student's own."""
    before, after = _hits(reference.features(tower), tower, reference), _hits(got, tower, reference)
    return _paired("recall", before, after)


def _zero_shot(encode: Encode, got: NDArray[np.float32], tower: str, reference: Reference) -> dict[str, float]:
    """Accuracy with this tower exchanged: the pictures' embeddings, or those of the class prompts."""
    known = reference.labels >= 0
    if known.sum() < 2:
        return {}
    images, classes = reference.image_features, reference.class_features
    changed = (got, classes) if tower == "image" else (images, encode_in_batches(encode, reference.class_tokens, 8))
    before, after = (
        ((pictures @ prompts.T).argmax(1) == reference.labels)[known].astype(np.float64)
        for pictures, prompts in ((images, classes), changed)
    )
    return _paired("zero_shot", before, after)


def _paired(name: str, before: Floats, after: Floats) -> dict[str, float]:
    """Mean hits of student and program, their difference and its paired interval."""
    resamples = draw_resamples(len(after), resamples=RESAMPLES, confidence=CONFIDENCE, seed=SEED)
    student, program = estimate(ratio(before), resamples), estimate(ratio(after), resamples)
    change = compare(program, student, differing=int((before != after).sum()), confidence=CONFIDENCE)
    return {
        f"{name}/student": student.value,
        f"{name}/program": program.value,
        f"{name}/change": change.delta,
        f"{name}/change_low": change.low,
        f"{name}/change_high": change.high,
    }


def _hits(features: NDArray[np.float32], tower: str, reference: Reference) -> Floats:
    """1 where an image finds its caption first (image tower) or a caption its image (text tower), else 0."""
    gallery, rows = reference.gallery, first_rows(reference.gallery)
    if tower == "image":
        ranks = rank_pairs(features, reference.text_features[rows], gallery).image_to_text
    else:
        ranks = rank_pairs(reference.image_features, features[rows], gallery).text_to_image
    return (ranks == 1).astype(np.float64)
