"""Run exported programs in their real runtimes, behind one `encode_image` / `encode_text`.

This is the deployed side: ONNX and LiteRT need numpy and the runtime, not torch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mobileclip.errors import ConfigError, DataError, IntegrityError
from mobileclip.formats import contract, registry
from mobileclip.formats.contract import Contract
from mobileclip.formats.program_ports import Port, disagreement

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
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

    def encode_image(self, pixels: NDArray[np.generic]) -> Floats:
        """float32 [batch, 3, size, size], RGB in 0-1, to unit-norm embeddings [batch, dim]."""
        if self.image is None:
            raise DataError(f"programs: '{self.folder}' is no image program.")
        return self.image(pixels)

    def encode_text(self, tokens: NDArray[np.generic]) -> Floats:
        """int32 [batch, context_length] to unit-norm embeddings [batch, dim]."""
        if self.text is None:
            raise DataError(f"programs: '{self.folder}' is no text program.")
        return self.text(tokens)


def load(
    path: str | Path, *, image: str = "float32", text: str = "float32", format: str = "onnx", threads: int = 0
) -> Programs:  # fmt: skip
    """Load programs of an export folder, or one program file.

    Args:
        path: Folder with `contract.json`, or a single program.
        image: Precision of the image program.
        text: Precision of the text program.
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
        "image": terms.program("image", precision=image, format=format),
        "text": terms.program("text", precision=text, format=format),
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


def _check_pixels(pixels: NDArray[np.generic]) -> None:
    if pixels.dtype.kind != "f":
        raise DataError(f"image: got {pixels.dtype}, want RGB divided by 255 as float32.")
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= -_SLACK and high <= 1 + _SLACK):
        raise DataError(f"image: got values from {low:.3g} to {high:.3g}, want RGB in 0-1 (not normalized).")


# Resampling filters overshoot by rounding alone; more is a wrong range.
_SLACK = 1e-3
