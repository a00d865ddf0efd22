"""Pixels: one way to decode, used by every stage, so that stored crop boxes always mean the same picture.

Importing it, decoding and `fit` need no torch: programs are run on images without it.
"""

import contextlib
import io
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

# Pillow loads these readers with all of its others, once an image meets none of the usual ones.
from PIL import AvifImagePlugin, Image, ImageOps, TiffImagePlugin, WebPImagePlugin  # noqa: F401

from mobileclip.errors import DataError

if TYPE_CHECKING:
    import torch

# What image collections hold; Pillow's other readers (EPS starts Ghostscript) are not for bytes from the web.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_ADDRESS = re.compile(r"<[^<>]* at 0x[0-9a-f]+>")
INTERPOLATIONS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}
RESIZE_MODES = ("squash", "shortest", "longest")
# Beyond this ratio of the sides the shorter one is scaled alone: a line of 1 x 65,000 would need gigabytes.
_LONGEST_STRIP = 64


class Geometry(Protocol):
    """What says how an image is brought to size: a contract's `image`, or a checkpoint's preprocessing."""

    @property
    def size(self) -> int:
        """Width and height [pixels]."""

    @property
    def interpolation(self) -> str:
        """Pillow's filter."""

    @property
    def resize(self) -> str:
        """One of `RESIZE_MODES`, as open_clip's `resize_mode`."""

    @property
    def fill(self) -> int:
        """Gray level 0 to 255 of what `longest` adds at the edges."""


def extensions() -> frozenset[str]:
    """Endings of the files that `decode` takes, in lower case and with the dot."""
    return frozenset(ending for ending, format_ in Image.registered_extensions().items() if format_ in FORMATS)


def decode(data: bytes | Path, *, max_pixels: int = 0) -> Image.Image:
    """Decode one picture to upright RGB.

    EXIF rotation is applied, transparency is laid on white, 16-bit grays are scaled, of an animation the first frame
    is taken. The size of the result is the size that view parameters refer to.

    Args:
        data: Encoded bytes (JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF), or the file that holds them.
        max_pixels: Larger pictures are refused before their pixels are decoded; 0 = Pillow's own limit.

    Raises:
        DataError: Not a picture, truncated, or too large; one sentence with the reason.
    """
    try:
        # Python's warning filters are shared by threads, so those that decode beside each other name a bound.
        with contextlib.nullcontext() if max_pixels else warnings.catch_warnings():
            if not max_pixels:
                warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(data if isinstance(data, Path) else io.BytesIO(data), formats=FORMATS)
            width, height = image.size
            if max_pixels and width * height > max_pixels:
                raise DataError(f"image: {width}x{height} pixels, want at most {max_pixels} in all.")
            image.load()
            return upright(image)
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - on damaged bytes Pillow raises far more than it documents
        # Pillow names the buffer by its address, and equal inputs must give equal reports.
        reason = " ".join(_ADDRESS.sub("", str(error)).split()).rstrip(".") or type(error).__name__
        raise DataError(f"image: cannot be decoded: {reason}.") from None


def upright(image: Image.Image) -> Image.Image:
    """A decoded picture as upright RGB: turned as its EXIF tag says, transparency laid on white."""
    return _to_rgb(ImageOps.exif_transpose(image))


def to_tensor(image: Image.Image) -> "torch.Tensor":
    """RGB picture to uint8 [3, height, width]."""
    import torch  # here alone: whoever decodes without it need not have it

    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()


def to_image(pixels: "torch.Tensor") -> Image.Image:
    """uint8 [3, height, width] to an RGB picture."""
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def resampling(name: str) -> Image.Resampling:
    """Pillow's filter of that name.

    Raises:
        DataError: Unknown name.
    """
    if name not in INTERPOLATIONS:
        raise DataError(f"interpolation: got '{name}', want one of {', '.join(INTERPOLATIONS)}.")
    return INTERPOLATIONS[name]


def fit(image: Image.Image, how: Geometry) -> Image.Image:
    """Bring an image to how.size x how.size, antialiased; the pixels of open_clip's `image_transform_v2`.

    `squash` scales both sides each on its own, `shortest` scales the shorter side and crops the center, `longest`
    scales the longer side and fills up around it.

    Args:
        image: Upright RGB.
        how: Size, filter, mode and fill.

    Raises:
        DataError: Unknown filter or mode.
    """
    size, filter_ = how.size, resampling(how.interpolation)
    if how.resize == "squash":
        return image.resize((size, size), filter_)
    if how.resize == "shortest":
        return _center(image, size, filter_)
    if how.resize == "longest":
        ratio = max(image.width / size, image.height / size)
        width, height = (max(1, round(side / ratio)) for side in image.size)
        canvas = Image.new("RGB", (size, size), (how.fill,) * 3)
        canvas.paste(image.resize((width, height), filter_), ((size - width) // 2, (size - height) // 2))
        return canvas
    raise DataError(f"resize_mode: got '{how.resize}', want one of {', '.join(RESIZE_MODES)}.")


def resize(image: Image.Image, how: Geometry) -> "torch.Tensor":
    """What `fit` gives, as uint8 [3, size, size]."""
    return to_tensor(fit(image, how))


def _center(image: Image.Image, size: int, filter_: Image.Resampling) -> Image.Image:
    """The shorter side scaled to `size`, the longer one by the same factor and cut to its center."""
    short, long = sorted(image.size)
    scaled = int(size * long / short)
    start = round((scaled - size) / 2)
    tall = image.height > image.width
    if scaled > _LONGEST_STRIP * size:  # the same pixels but for rounding, without those that are cut off
        first, last = (place * long / scaled for place in (start, start + size))
        box = (0, first, short, last) if tall else (first, 0, last, short)
        return image.resize((size, size), filter_, box=box)
    whole = image.resize((size, scaled) if tall else (scaled, size), filter_)
    return whole.crop((0, start, size, start + size) if tall else (start, 0, start + size, size))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255 instead of scaling.
        return Image.fromarray((np.asarray(image, dtype=np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in {"F", "I"}:
        raise DataError(f"image: pixels of mode {image.mode} have no range, want 8 or 16 bits.")
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
