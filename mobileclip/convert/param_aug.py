"""`param_aug` of DataCompDR: one list per view, `[[top, left, height, width], [[op, magnitude], [op, magnitude]]]`.

The box is in pixels of the original picture, an operation is an index into `mobileclip.data.augment.OPS`, a magnitude
is signed and, for translations, in pixels of the teacher's input. Ours are whole bins, so that a student of another
input size sees the shift the teacher saw; at the teacher's own size both give the same pixels.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from mobileclip.data.augment import FIELDS, NUM_BINS, OPS, apply_operation, magnitude
from mobileclip.data.images import resampling, to_tensor
from mobileclip.errors import DataError

_MAX_OPS = 2
_MAX_SIDE = 2**31 - 1
# The reference computes magnitudes in float32: 9 bins of brightness are 0.26999998.
_RELATIVE = 1e-5

Operations = list[tuple[int, float]]


def parse_member(data: bytes) -> list[Any]:
    """The rows of a `paug.json` member; the hub's viewer gives the list as a string, tars hold it nested.

    Raises:
        DataError: It is not `{"param_aug": [...]}`.
    """
    try:
        rows = json.loads(data)["param_aug"]
        rows = json.loads(rows) if isinstance(rows, str) else rows
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DataError('paug.json: want {"param_aug": [one list per view]}.') from None
    if not isinstance(rows, list) or not rows:
        raise DataError(f"paug.json: param_aug is {type(rows).__name__}, want a list with at least one view.")
    return rows


def parse_row(row: Any) -> tuple[tuple[int, int, int, int], Operations]:
    """Box and operations of one view; an operation that was skipped when the view was made is `(0, 0.0)`.

    Raises:
        DataError: It is of another form (mix-ups carry a pair id, which images and captions have no use for).
    """
    if not isinstance(row, list) or len(row) not in {1, 2} or not isinstance(row[0], list):
        raise DataError(f"param_aug: got {_shown(row)}, want [[top, left, height, width], [[op, magnitude], ...]].")
    box = tuple(row[0])
    if len(box) != 4 or any(type(v) is not int or not 0 <= v <= _MAX_SIDE for v in box) or 0 in box[2:]:
        raise DataError(f"param_aug: box is {_shown(row[0])}, want four integers, height and width above 0.")
    operations = row[1] if len(row) == 2 and row[1] is not None else []
    if not isinstance(operations, list) or len(operations) > _MAX_OPS:
        raise DataError(f"param_aug: operations are {_shown(operations)}, want at most {_MAX_OPS} pairs.")
    return box, [_operation(pair) for pair in operations]  # type: ignore[return-value]


def decode_row(row: Any, *, size: int, usual_bin: int) -> np.ndarray:
    """A view as stored in a view column.

    Args:
        row: One list of `param_aug`.
        size: Side of the teacher's input in pixels, which translations refer to (224 in the public sets).
        usual_bin: RandAugment strength of the set; decides where several bins give one magnitude (9 in public sets).

    Returns:
        int32 [8] for `mobileclip.data.augment.apply_view`.

    Raises:
        DataError: The form is wrong or a magnitude is that of no bin.
    """
    box, operations = parse_row(row)
    fields: list[int] = [*box]
    for op, strength in operations:
        fields += [op, _bin(op, strength, size, usual_bin)]
    return np.array(fields + [0] * (FIELDS - len(fields)), dtype=np.int32)


def encode_row(view: np.ndarray, *, size: int, num_ops: int) -> list[Any]:
    """A stored view as one list of `param_aug`.

    Args:
        view: int32 [8].
        size: Side of the teacher's input in pixels.
        num_ops: Operations of the augmentation; views that have fewer slots than two pad them.
    """
    fields = [int(v) for v in view]
    pairs = [[op, magnitude(OPS[op], bin_, size)] for op, bin_ in zip(fields[4::2], fields[5::2], strict=True)]
    return [fields[:4], pairs[:num_ops]] if num_ops else [fields[:4]]


def replay(image: Image.Image, row: Any, *, size: int, interpolation: str = "bicubic") -> torch.Tensor:
    """The definition: crop and resize, then the operations with exactly the stored magnitudes, whatever the size.

    Args:
        image: The decoded original.
        row: One list of `param_aug`.
        size: Side of the result in pixels.
        interpolation: Filter of the resize.

    Returns:
        uint8 [3, size, size].
    """
    (top, left, height, width), operations = parse_row(row)
    result = image.crop((left, top, left + width, top + height)).resize((size, size), resampling(interpolation))
    for op, strength in operations:
        result = apply_operation(result, OPS[op], strength)
    return to_tensor(result)


def extent(views: np.ndarray) -> tuple[int, int]:
    """Width and height of the smallest picture that holds all boxes of int32 [N, 8]."""
    return int((views[:, 1] + views[:, 3]).max()), int((views[:, 0] + views[:, 2]).max())


def _operation(pair: Any) -> tuple[int, float]:
    if pair is None:
        return 0, 0.0
    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
        raise DataError(f"param_aug: operation is {_shown(pair)}, want [index, magnitude].")
    op, strength = pair
    if type(op) is not int or not 0 <= op < len(OPS):
        raise DataError(f"param_aug: operation {_shown(op)} is unknown, want an index from 0 to {len(OPS) - 1}.")
    if type(strength) not in {int, float} or not math.isfinite(strength):
        raise DataError(f"param_aug: magnitude of {OPS[op]} is {_shown(strength)}, want a number.")
    return op, float(strength)


def _bin(op: int, strength: float, size: int, usual: int) -> int:
    sign = -1 if strength < 0 else 1
    # The usual bin first: identity, auto-contrast and equalize have no strength, several bins posterize alike.
    for candidate in (usual, *range(NUM_BINS)):
        exact = magnitude(OPS[op], sign * candidate, size)
        if math.isclose(exact, strength, rel_tol=_RELATIVE, abs_tol=1e-9):
            unsigned = magnitude(OPS[op], -candidate, size) == magnitude(OPS[op], candidate, size)
            return candidate if unsigned else sign * candidate
    raise DataError(f"param_aug: magnitude {strength} of {OPS[op]} is none of {NUM_BINS} bins at {size} pixels.")


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
