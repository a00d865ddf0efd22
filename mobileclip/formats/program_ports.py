"""What a program takes and gives: as its contract states it, and as its own file says.

Reading it needs neither torch nor a runtime.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

Kind = Literal["array", "picture"]
ANY_ROWS = "batch"


class Record(BaseModel):
    """Part of a contract."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class TensorSpec(Record):
    """One input or output of a program."""

    name: str
    """As the program calls it."""
    kind: Kind = "array"
    """`array`: numbers in the machine's order, the last axis fastest; `picture`: a pixel buffer of that height and
    width (Core ML's `CVPixelBuffer`), which the program divides by 255 itself."""
    dtype: Literal["float32", "int32", "uint8"]
    """Of the numbers that are handed over."""
    shape: list[int | Literal["batch"]]
    """`batch` is any number from 1; any other first number is the rows that every call takes. Pixels are [rows,
    channel, height, width], channels in the contract's `color_order` (a picture's buffer says its own)."""
    minimum: float
    """Smallest value."""
    maximum: float
    """Largest value; 1 for pixels divided by 255, 255 where the program does that."""
    unit_norm: bool = False
    """Whether every row has length 1."""


@dataclass(frozen=True)
class Port:
    """One input or output, as a program's file says.

    Attributes:
        name: What the program calls it; where a format has no names, the one that its contract gives.
        dtype: Type of its numbers.
        shape: With the batch: a number, or `batch` for any.
        kind: Array or picture.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    kind: Kind = "array"

    def __str__(self) -> str:
        """`image float32 [1, 3, 256, 256]`."""
        return describe(self)


def describe(port: Port | TensorSpec) -> str:
    """A port in words: `image float32 [1, 3, 256, 256]`, `image picture uint8 [1, 3, 256, 256]`."""
    kind = "picture " if port.kind == "picture" else ""
    return f"{port.name} {kind}{port.dtype} [{', '.join(map(str, port.shape))}]"


def disagreement(found: Sequence[Port], stated: Sequence[TensorSpec]) -> str:
    """Where a program's file is not what its contract states, in words; empty where it is.

    Args:
        found: Input and output by the file.
        stated: Input and output by the contract.
    """
    for verb, port, spec in zip(("takes", "gives"), found, stated, strict=True):
        if describe(port) != describe(spec):
            return f"{verb} {describe(port)}, its contract states {describe(spec)}"
    return ""
