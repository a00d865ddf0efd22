"""Views: augmentations drawn once from (seed, uid, view index), stored as eight integers, replayed bit for bit.

A view is RandomResizedCrop followed by RandAugment (MobileCLIP section 4), stored as int32
`[top, left, height, width, op, bin, op, bin]`. The box is in pixels of the decoded picture. An operation is an index
into `OPS` with a signed strength bin; magnitudes are computed at replay from the bin and the *current* size, so that a
student at another resolution sees the same relative shift as the teacher did. Everything runs on Pillow: its result
does not depend on the instruction set, unlike tensor resizing.
"""

import functools
import hashlib
import math

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from mobileclip.config import Views
from mobileclip.data.images import resampling, to_tensor

# Order of the public DataCompDR encoding (and of torchvision's RandAugment).
OPS: tuple[str, ...] = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast",
    "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize",
)  # fmt: skip
_SIGNED = frozenset(OPS[1:10])
NUM_BINS = 31
FIELDS = 8


def draw_views(spec: Views, *, uid: str, seed: int, width: int, height: int) -> np.ndarray:
    """Draw the views of one picture.

    Args:
        spec: Number and distribution of the views.
        uid: Sample id; with `seed` and the view's index it decides the draw, so neither order nor worker matters.
        seed: The stage's seed.
        width: Width of the decoded picture in pixels.
        height: Height in pixels.

    Returns:
        int32 [num_views, 8].
    """
    rows = [_draw(spec, _generator(seed, uid, index), width, height) for index in range(spec.num_views)]
    return np.array(rows, dtype=np.int32)


def apply_view(image: Image.Image, view: np.ndarray, *, size: int, interpolation: str = "bicubic") -> torch.Tensor:
    """Replay one stored view.

    Args:
        image: The decoded picture (`mobileclip.data.images.decode`).
        view: int32 [8].
        size: Side of the result in pixels: the reading model's input size.
        interpolation: Filter of the crop's resize.

    Returns:
        uint8 [3, size, size].
    """
    return to_tensor(_replay(image, view, size, interpolation))


def apply_views(image: Image.Image, views: np.ndarray, *, size: int, interpolation: str = "bicubic") -> torch.Tensor:
    """Replay all stored views of a picture; equal to `apply_view` of each.

    Args:
        image: The decoded picture.
        views: int32 [n, 8].
        size: Side of the results in pixels.
        interpolation: Filter of the crop's resize.

    Returns:
        uint8 [n, 3, size, size]; in memory the channels come last, as Pillow writes them and models read them.
    """
    pixels = np.empty((len(views), size, size, 3), dtype=np.uint8)
    for place, view in zip(pixels, views, strict=True):
        place[:] = np.asarray(_replay(image, view, size, interpolation))
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def _replay(image: Image.Image, view: np.ndarray, size: int, interpolation: str) -> Image.Image:
    top, left, height, width = (int(v) for v in view[:4])
    box = (left, top, left + width, top + height)
    # Pillow's resize(box=) would read pixels outside the crop; cropping first is what torchvision does.
    result = image.crop(box).resize((size, size), resampling(interpolation))
    for op, signed_bin in ((view[4], view[5]), (view[6], view[7])):
        result = apply_operation(result, OPS[int(op)], magnitude(OPS[int(op)], int(signed_bin), size))
    return result


def magnitude(op: str, signed_bin: int, size: int) -> float:
    """Strength of an operation at a bin of torchvision's RandAugment table (31 bins).

    Its float32 rounding is kept where it decides a pixel as torchvision would, and left out where a value is cut to a
    whole number or compared with pixels.

    Args:
        op: A name of `OPS`.
        signed_bin: 0..30 with the sign of the draw.
        size: Side of the picture in pixels (translations are shares of it).
    """
    bin_, sign = abs(signed_bin), -1.0 if signed_bin < 0 else 1.0
    if op in {"ShearX", "ShearY"}:
        return sign * _table(0.3)[bin_]
    if op in {"TranslateX", "TranslateY"}:
        # One division, so that a whole number of pixels comes out whole: it is cut to an integer later.
        return sign * (150 * size * bin_) / (331 * (NUM_BINS - 1))
    if op == "Rotate":
        return sign * _table(30.0)[bin_]
    if op in {"Brightness", "Color", "Contrast", "Sharpness"}:
        return sign * _table(0.9)[bin_]
    if op == "Posterize":
        return float(8 - round(bin_ / ((NUM_BINS - 1) / 4)))
    if op == "Solarize":
        return 255.0 / (NUM_BINS - 1) * (NUM_BINS - 1 - bin_)  # 8.5 a bin, exact: pixels are compared with it
    return 0.0


@functools.cache
def _table(most: float) -> list[float]:
    return torch.linspace(0.0, most, NUM_BINS).tolist()  # type: ignore[no-any-return]


def apply_operation(image: Image.Image, op: str, strength: float) -> Image.Image:
    """One RandAugment operation on a Pillow picture, nearest interpolation, black fill (torchvision's defaults)."""
    if op in _GEOMETRIC:
        return _geometric(image, op, strength)
    if op == "Brightness":
        return F.adjust_brightness(image, 1.0 + strength)
    if op == "Color":
        return F.adjust_saturation(image, 1.0 + strength)
    if op == "Contrast":
        return F.adjust_contrast(image, 1.0 + strength)
    if op == "Sharpness":
        return F.adjust_sharpness(image, 1.0 + strength)
    if op == "Posterize":
        return F.posterize(image, bits=int(strength))
    if op == "Solarize":
        return F.solarize(image, threshold=strength)
    if op == "AutoContrast":
        return F.autocontrast(image)
    if op == "Equalize":
        return F.equalize(image)
    return image


_GEOMETRIC = frozenset(OPS[1:6])


def _geometric(image: Image.Image, op: str, strength: float) -> Image.Image:
    if op == "Rotate":
        return F.rotate(image, angle=strength, interpolation=InterpolationMode.NEAREST, fill=None)
    translate, shear, center = [0, 0], [0.0, 0.0], None
    if op == "ShearX":
        shear, center = [math.degrees(math.atan(strength)), 0.0], [0, 0]
    elif op == "ShearY":
        shear, center = [0.0, math.degrees(math.atan(strength))], [0, 0]
    elif op == "TranslateX":
        translate = [int(strength), 0]
    else:
        translate = [0, int(strength)]
    return F.affine(
        image, angle=0.0, translate=translate, scale=1.0, shear=shear,
        interpolation=InterpolationMode.NEAREST, fill=None, center=center,
    )  # fmt: skip


def _generator(seed: int, uid: str, index: int) -> np.random.Generator:
    key = hashlib.sha256(f"view|{seed}|{uid}|{index}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "little")))


def _draw(spec: Views, rng: np.random.Generator, width: int, height: int) -> list[int]:
    row = [*_draw_box(spec, rng, width, height)]
    for index in range(2):
        if index >= spec.rand_augment_ops:
            row += [0, 0]
            continue
        op = int(rng.integers(len(OPS)))
        sign = -1 if OPS[op] in _SIGNED and rng.integers(2) else 1
        row += [op, sign * spec.rand_augment_magnitude]
    return row


def _draw_box(spec: Views, rng: np.random.Generator, width: int, height: int) -> tuple[int, int, int, int]:
    """RandomResizedCrop's box: ten tries, then the largest centered crop of an allowed ratio."""
    area = width * height
    low, high = math.log(spec.ratio_min), math.log(spec.ratio_max)
    for _ in range(10):
        target = area * rng.uniform(spec.scale_min, spec.scale_max)
        ratio = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    ratio = width / height
    w, h = width, height
    if ratio < spec.ratio_min:
        h = max(1, round(w / spec.ratio_min))
    elif ratio > spec.ratio_max:
        w = max(1, round(h * spec.ratio_max))
    return (height - h) // 2, (width - w) // 2, h, w
