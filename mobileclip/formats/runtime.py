"""Run exported programs in their real runtimes, behind one `encode_image` / `encode_text`.

This is the deployed side: ONNX and LiteRT need numpy and the runtime, not torch.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mobileclip.errors import ConfigError, DataError, IntegrityError
from mobileclip.formats import contract, image_input, registry
from mobileclip.formats.bundle import tokenizer
from mobileclip.formats.bundle.prompt_bank import PromptBank, embed
from mobileclip.formats.contract import Contract, Tower
from mobileclip.formats.image_input import MAX_PIXELS, ImageLike
from mobileclip.formats.program_ports import Port, disagreement

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
BATCH_SIZE = 32
PACKAGES = (".mlpackage", ".aimodel")  # programs that are folders


@dataclass(frozen=True)
class Encoder:
    """One loaded program.

    Attributes:
        path: Its file.
        given: Its input, as the file says.
        result: Its output.
        execute: Checked input array to unit-norm embeddings [batch, dim]; pixels in 0-1 also where it takes a picture.
    """

    path: Path
    given: Port
    result: Port
    execute: Callable[[NDArray[np.generic]], Floats]

    @property
    def tower(self) -> str:
        """`image` or `text`."""
        return self.given.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Input shape without the batch."""
        return tuple(int(size) for size in self.given.shape[1:])

    @property
    def batch(self) -> int:
        """Rows that `execute` takes at a time; 0 = any number."""
        rows = self.given.shape[0]
        return 0 if isinstance(rows, str) else rows

    def __call__(self, rows: NDArray[np.generic]) -> Floats:
        """Encode a batch.

        Args:
            rows: float32 [batch, 3, size, size] RGB in 0-1, or int32 [batch, context_length] token ids.

        Raises:
            DataError: Shape, type or range are not the program's.
        """
        if rows.ndim != len(self.shape) + 1 or rows.shape[1:] != self.shape or len(rows) == 0:
            raise DataError(f"{self.tower}: got shape {list(rows.shape)}, want {['batch', *self.shape]}.")
        if self.tower == "image":
            _check_pixels(rows)
        elif rows.dtype.kind not in "iu":
            raise DataError(f"text: got {rows.dtype}, want token ids as int32.")
        typed = rows.astype(np.float32 if self.tower == "image" else np.int32, copy=False)
        if not self.batch:
            return self.execute(typed)
        calls = np.split(filled(typed, self.batch), range(self.batch, len(typed), self.batch))
        return np.concatenate([self.execute(call) for call in calls])[: len(typed)]


@dataclass(frozen=True)
class Programs:
    """A student's programs, ready to run.

    Attributes:
        image: The image program, if loaded.
        text: The text program, if loaded.
        contract: What the export says about them; absent for a single file.
        folder: Where they lie.
    """

    image: Encoder | None
    text: Encoder | None
    contract: Contract | None
    folder: Path

    def encode_image(
        self,
        images: Iterable[ImageLike] | NDArray[np.floating],
        *,
        batch_size: int = BATCH_SIZE,
        max_pixels: int = MAX_PIXELS,
    ) -> Floats:
        """Images to unit-norm embeddings [images, dim].

        Args:
            images: Paths, encoded bytes, Pillow images or uint8 arrays [height, width, 3], in any mixture and from any
                iterable: decoded, turned, laid on white and resized as the contract says. Or a batch as the program
                takes it: one array float32 [batch, 3, size, size], RGB in 0-1.
            batch_size: Images that are in memory at a time.
            max_pixels: Larger images are refused before they are decoded.

        Raises:
            DataError: There is no image program or no contract, or an image cannot be decoded.
        """
        if self.image is None:
            raise DataError(f"programs: '{self.folder}' is no image program.")
        if isinstance(images, np.ndarray):
            return self.image(images)
        how, encode = self._terms().image, self.image
        parts = image_input.batches(images, how, batch_size=batch_size, max_pixels=max_pixels)
        return _joined([encode(part.astype(np.float32) / 255) for part in parts], self._terms())

    def encode_text(
        self, texts: Sequence[str] | NDArray[np.integer], *, batch_size: int = BATCH_SIZE
    ) -> Floats:  # fmt: skip
        """Texts to unit-norm embeddings [texts, dim].

        Args:
            texts: Texts, or one array int32 [batch, context_length] of token ids.
            batch_size: Texts per call of the program.

        Raises:
            DataError: There is no text program, no contract, or no tokenizer beside it.
        """
        if self.text is None:
            raise DataError(f"programs: '{self.folder}' is no text program.")
        if isinstance(texts, np.ndarray):
            return self.text(texts)
        wrong = [text for text in texts if not isinstance(text, str)] if not isinstance(texts, str) else [texts]
        if wrong:
            raise DataError(f"text: got {wrong[0]!r:.60}, want a list of texts.")
        rows = [self.tokenize(texts[start : start + batch_size]) for start in range(0, len(texts), batch_size)]
        return _joined([self.text(row) for row in rows], self._terms())

    def zero_shot(
        self,
        images: Iterable[ImageLike] | NDArray[np.floating],
        labels: Sequence[str] | PromptBank,
        *,
        template: str | Sequence[str] = "a photo of a {}.",
        batch_size: int = BATCH_SIZE,
    ) -> Floats:
        """Probability of each label for each image, float32 [images, labels]: softmax of scaled cosines.

        Args:
            images: As for `encode_image`.
            labels: Class names, or a prompt bank of the bundle, which needs no text program.
            template: Prompt with `{}` for the label; of several the mean embedding is taken.
            batch_size: Images, and texts, per call of a program.

        Raises:
            DataError: No labels, one of them twice, or a template without `{}`.
        """
        scale = self._terms().logit_scale
        classes = labels if isinstance(labels, PromptBank) else self.class_embeddings(labels, template=template)
        return softmax(scale * self.encode_image(images, batch_size=batch_size) @ classes.features.T)

    def class_embeddings(self, labels: Sequence[str], *, template: str | Sequence[str]) -> PromptBank:
        """Class embeddings of labels: the mean of their prompts' embeddings, at unit norm.

        Args:
            labels: Class names, each once.
            template: One prompt or several, with `{}` for the label.

        Raises:
            DataError: No labels, one of them twice, or a template without `{}`.
        """
        return embed(self.encode_text, labels, [template] if isinstance(template, str) else template)

    @cached_property
    def tokenize(self) -> tokenizer.Tokenize:
        """Texts to token ids int32 [texts, context_length], cleaned as the contract says."""
        return tokenizer.of_export(self.folder, self._terms().text)

    def _terms(self) -> Contract:
        if self.contract is None:
            raise DataError(
                f"programs: '{self.folder}' is a single program without {contract.FILE_NAME}, want a bundle, an export "
                "folder, or a batch as the program takes it."
            )
        return self.contract


def load(
    path: str | Path, *, image: str = "float32", text: str = "float32", format: str = "onnx", threads: int = 0
) -> Programs:  # fmt: skip
    """Load programs of an export folder, or one program file.

    Args:
        path: Folder with `contract.json`, or a single program.
        image: Precision of the image program; empty = the most exact one there is.
        text: Precision of the text program; the same.
        format: Program format.
        threads: Threads per program; 0 = the runtime's choice.

    Raises:
        DataError: There is no such program.
        IntegrityError: A file is not the one the contract was written for, or not what it says.
    """
    path = Path(path)
    if path.is_file() or path.suffix in PACKAGES:
        encoder = load_program(path, threads=threads)
        of = {encoder.tower: encoder}
        return Programs(of.get("image"), of.get("text"), None, path)
    terms = contract.read(path)
    files = {
        "image": terms.program("image", precision=image or _most_exact(terms, "image", format), format=format),
        "text": terms.program("text", precision=text or _most_exact(terms, "text", format), format=format),
    }
    loaded = {tower: load_program(contract.check(path, file), threads=threads) for tower, file in files.items()}
    for tower, file in files.items():
        if wrong := disagreement((loaded[tower].given, loaded[tower].result), (file.input, file.output)):
            raise IntegrityError(f"{file.path}: the program {wrong}.")
    return Programs(loaded["image"], loaded["text"], terms, path)


def load_program(path: Path, *, threads: int = 0) -> Encoder:
    """Load one program by its suffix, in its runtime or, where that exists on phones alone, its emulation.

    Raises:
        DataError: Unknown suffix, or the runtime refuses the file.
        ConfigError: The runtime is not installed, or the number of threads is below 0.
    """
    if threads < 0:
        raise ConfigError(f"programs: threads: got {threads}, want 0 (the runtime's choice) or more.")
    encoder: Encoder = registry.opener(path).open_program(path, threads)
    return encoder


def filled(rows: NDArray[np.generic], batch: int) -> NDArray[np.generic]:
    """Rows in a number that calls of `batch` rows can take, the missing ones copies of the first; 0 = as they are."""
    return np.concatenate([rows, rows[:1].repeat(-len(rows) % batch, axis=0)]) if batch else rows


def refusal(runtime: str, path: Path, error: Exception) -> DataError:
    """What is said of a file that a runtime does not take, with the beginning of its own reason."""
    return DataError(f"programs: {runtime} refuses '{path.name}': {' '.join(str(error).split())[:200]}.")


def softmax(logits: NDArray[np.floating]) -> Floats:
    """Rows of logits [rows, labels] to probabilities float32."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True, initial=-np.inf))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def _most_exact(terms: Contract, tower: Tower, format: str) -> str:
    """The precision of the program with the least error of a tower; `float32` where there is none, to be refused."""
    found = [p for p in terms.programs if (p.tower, p.format) == (tower, format)]
    return min(found, key=lambda p: (p.figures.get("error", p.budget), p.path)).precision if found else "float32"


def _joined(parts: list[Floats], terms: Contract) -> Floats:
    return np.concatenate([np.zeros((0, terms.embed_dim), np.float32), *parts])


def _check_pixels(pixels: NDArray[np.generic]) -> None:
    if pixels.dtype.kind != "f":
        raise DataError(f"image: got {pixels.dtype}, want RGB divided by 255 as float32.")
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= -_SLACK and high <= 1 + _SLACK):
        raise DataError(f"image: got values from {low:.3g} to {high:.3g}, want RGB in 0-1 (not normalized).")


# Resampling filters overshoot by rounding alone; more is a wrong range.
_SLACK = 1e-3
