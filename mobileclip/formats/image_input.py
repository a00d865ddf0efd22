"""Images from files, Pillow or arrays to the pixels that a program takes; needs no torch.

What is done to an image is what its contract says, by the code that the stages decode and resize with.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mobileclip.data import images
from mobileclip.data.images import Geometry
from mobileclip.errors import DataError

ImageLike = str | Path | bytes | Image.Image | NDArray[np.uint8]
"""A path, encoded bytes, a Pillow image, or an array uint8 [height, width] or [height, width, 3 or 4]."""

MAX_PIXELS = 89_478_485
"""Pillow's own bound; larger images are refused before their pixels are decoded."""
_THREADS = 4
_WANTED = "want a path, encoded bytes, a Pillow image or an array uint8 [height, width, 3]"


def open_image(image: ImageLike, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An image as upright RGB: decoded, turned by its EXIF tag, transparency laid on white.

    Args:
        image: One image.
        max_pixels: Larger ones are refused.

    Raises:
        DataError: It is none of these, too large, not there, or cannot be decoded; the sentence names it.
    """
    if isinstance(image, str | Path):
        return _open_file(Path(image), max_pixels)
    if isinstance(image, bytes):
        return images.decode(image, max_pixels=max_pixels)
    if isinstance(image, np.ndarray):
        image = _of_array(image)
    if not isinstance(image, Image.Image):
        raise DataError(f"image: got {type(image).__name__}, {_WANTED}.")
    if min(image.size) < 1 or image.width * image.height > max_pixels:
        raise DataError(f"image: got {image.width}x{image.height} pixels, want 1 to {max_pixels} in all.")
    try:
        return images.upright(image)
    except (OSError, ValueError, SyntaxError) as error:  # Pillow decodes a file it has opened when it is asked to
        raise DataError(f"image: cannot be decoded: {' '.join(str(error).split()).rstrip('.')}.") from None


def to_pixels(image: ImageLike, geometry: Geometry, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """An image at a model's input size, uint8 RGB [3, size, size].

    Args:
        image: One image.
        geometry: How it is brought to size.
        max_pixels: Larger ones are refused.

    Raises:
        DataError: See `open_image`.
    """
    fitted = images.fit(open_image(image, max_pixels=max_pixels), geometry)
    return np.ascontiguousarray(np.asarray(fitted, dtype=np.uint8).transpose(2, 0, 1))


def batches(
    several: Iterable[ImageLike], geometry: Geometry, *, batch_size: int, max_pixels: int = MAX_PIXELS
) -> Iterator[NDArray[np.uint8]]:
    """Images as batches uint8 [up to batch_size, 3, size, size]; only one batch of them is in memory at a time.

    Args:
        several: Any iterable of images.
        geometry: How they are brought to size.
        batch_size: Images per batch.
        max_pixels: Larger images are refused.

    Raises:
        DataError: See `open_image`, or a single image was given where several are asked for.
    """
    if isinstance(several, str | bytes | Path | Image.Image):
        raise DataError("image: got a single image, want a list of images.")
    if batch_size < 1:
        raise DataError(f"batch_size: got {batch_size}, want 1 or more.")
    stream = iter(several)
    with ThreadPoolExecutor(_THREADS) as pool:  # Pillow decodes and resizes outside of Python's lock
        while part := list(islice(stream, batch_size)):
            yield np.stack(list(pool.map(lambda image: to_pixels(image, geometry, max_pixels=max_pixels), part)))


def _open_file(path: Path, max_pixels: int) -> Image.Image:
    if not path.is_file():
        raise DataError(f"image: no file '{path}'.")
    try:
        return images.decode(path, max_pixels=max_pixels)
    except DataError as error:
        raise DataError(f"'{path}': {error}") from None


def _of_array(array: NDArray[np.uint8]) -> Image.Image:
    gray, color = array.ndim == 2, array.ndim == 3 and array.shape[2] in {3, 4}
    if array.dtype != np.uint8 or not (gray or color) or 0 in array.shape:
        raise DataError(f"image: got an array {array.dtype} {list(array.shape)}, {_WANTED}.")
    return Image.fromarray(array)
