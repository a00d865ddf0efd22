"""Does a picture belong to the views stored for it? Public sets name pictures by uid alone, and links rot."""

import hashlib
import io

import numpy as np
from PIL import Image

from mobileclip.convert.param_aug import extent
from mobileclip.data.images import FORMATS, decode
from mobileclip.errors import DataError

_ORIENTATION = 0x0112


def fit(data: bytes, views: np.ndarray, *, upright: bool, max_pixels: int) -> tuple[int, int]:
    """Size of a picture that the views fit.

    Args:
        data: Encoded picture.
        views: int32 [N, 8].
        upright: The teachers saw it as `decode` reads it; else as Pillow does, not turned by its EXIF data and without
            its transparency.
        max_pixels: Larger pictures are refused.

    Returns:
        Width and height in pixels.

    Raises:
        DataError: It is damaged, too large, read differently here, or smaller than the views' boxes.
    """
    image = decode(data, max_pixels=max_pixels)
    if not upright and not _reads_plainly(data, image):
        raise DataError("image: the teachers saw it otherwise (EXIF rotation, transparency or 16 bits).")
    width, height = extent(views)
    if width > image.width or height > image.height:
        raise DataError(
            f"image: has {image.width}x{image.height} pixels, its views reach to {width}x{height}; it was resized "
            "or is another picture."
        )
    return image.size


def same_bytes(data: bytes, sha256: object) -> str:
    """`same`, `other` or `unknown`: whether the bytes are those of the recorded digest."""
    if not isinstance(sha256, str) or len(sha256) != 64:
        return "unknown"
    return "same" if hashlib.sha256(data).hexdigest() == sha256.lower() else "other"


def _reads_plainly(data: bytes, image: Image.Image) -> bool:
    with Image.open(io.BytesIO(data), formats=FORMATS) as plain:
        if plain.mode in {"RGB", "L", "CMYK"} and plain.getexif().get(_ORIENTATION, 1) == 1:
            return "transparency" not in plain.info
        return plain.size == image.size and np.array_equal(np.asarray(plain.convert("RGB")), np.asarray(image))
