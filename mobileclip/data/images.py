"""Pixels: one way to decode, used by every stage, so that stored crop boxes always mean the same picture.

Importing it, decoding and `fit` need no torch: programs are run on images without it.
"""

import contextlib
import io
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from mobileclip.errors import DataError

if TYPE_CHECKING:
    import torch

# What image collections hold; Pillow's other readers (EPS starts Ghostscript) are not for bytes from the web.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_ADDRESS = re.compile(r"<[^<>]* at 0x[0-9a-f]+>")
_INTERPOLATION = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}


def extensions() -> frozenset[str]:
    """Endings of the files that `decode` takes, in lower case and with the dot."""
    return frozenset(ending for ending, format_ in Image.registered_extensions().items() if format_ in _FORMATS)


def decode(data: bytes | Path, *, max_pixels: int = 0) -> Image.Image:
    """Decode one picture to upright RGB.

    EXIF rotation is applied, transparency is laid on white, 16-bit grays are scaled, of an animation the first frame
    is taken. The size of the result is the size that view parameters refer to.

    Args:
        data: Encoded bytes (JPEG, PNG, WebP, GIF or BMP), or the file that holds them.
        max_pixels: Larger pictures are refused before their pixels are decoded; 0 = Pillow's own limit.

    Raises:
        DataError: Not a picture, truncated, or too large; one sentence with the reason.
    """
    try:
        # Python's warning filters are shared by threads, so those that decode beside each other name a bound.
        with contextlib.nullcontext() if max_pixels else warnings.catch_warnings():
            if not max_pixels:
                warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(data if isinstance(data, Path) else io.BytesIO(data), formats=_FORMATS)
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
    if name not in _INTERPOLATION:
        raise DataError(f"interpolation: got '{name}', want one of {', '.join(_INTERPOLATION)}.")
    return _INTERPOLATION[name]


def fit(image: Image.Image, size: int, interpolation: str = "bicubic") -> Image.Image:
    """Squash a picture to size x size, antialiased."""
    return image.resize((size, size), resampling(interpolation))


def resize(image: Image.Image, size: int, interpolation: str = "bicubic") -> "torch.Tensor":
    """What `fit` gives, as uint8 [3, size, size]."""
    return to_tensor(fit(image, size, interpolation))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255 instead of scaling.
        return Image.fromarray((np.asarray(image, dtype=np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
