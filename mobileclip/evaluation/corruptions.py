"""Corruptions of pictures at five severities, after ImageNet-C (Hendrycks and Dietterich, arXiv 1903.12261).

The kinds and strengths are that benchmark's. Its pictures have 224 pixels a side; here a picture is corrupted at the
model's input size, and lengths (radius, blur) scale with it. Noise is drawn from the sample's id, so every model and
every run meets the same corrupted picture.
"""

import hashlib
import io
from collections.abc import Callable
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from mobileclip.config.release import Corruption

Pixels = NDArray[np.uint8]
"""RGB picture [height, width, 3], 0 to 255."""
Floats = NDArray[np.float64]
KINDS: tuple[str, ...] = get_args(Corruption)

_REFERENCE_SIZE = 224
_Change = Callable[[Floats, int, np.random.Generator], Floats]


def corrupt(pixels: Pixels, kind: str, *, severity: int, seed: str) -> Pixels:
    """Corrupt one picture.

    Args:
        pixels: uint8 [height, width, 3].
        kind: One of `KINDS`.
        severity: 1 (weak) to 5 (strong).
        seed: What the noise is drawn from; the same seed gives the same picture.
    """
    digest = hashlib.sha256(f"{kind}:{severity}:{seed}".encode()).digest()
    rng = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "big")))
    changed = _CHANGES[kind](pixels.astype(np.float64) / 255, severity - 1, rng)
    return np.round(np.clip(changed, 0, 1) * 255).astype(np.uint8)


def _gaussian_noise(x: Floats, level: int, rng: np.random.Generator) -> Floats:
    return x + rng.normal(scale=(0.08, 0.12, 0.18, 0.26, 0.38)[level], size=x.shape)


def _shot_noise(x: Floats, level: int, rng: np.random.Generator) -> Floats:
    photons = (60, 25, 12, 5, 3)[level]
    return rng.poisson(x * photons) / photons


def _impulse_noise(x: Floats, level: int, rng: np.random.Generator) -> Floats:
    """Salt and pepper in equal parts."""
    amount = (0.03, 0.06, 0.09, 0.17, 0.27)[level]
    drawn = rng.random(x.shape)
    return np.where(drawn < amount / 2, 0.0, np.where(drawn < amount, 1.0, x))


def _gaussian_blur(x: Floats, level: int, _: np.random.Generator) -> Floats:
    return _filtered(x, ImageFilter.GaussianBlur((1, 2, 3, 4, 6)[level] * _scale(x)))


def _defocus_blur(x: Floats, level: int, _: np.random.Generator) -> Floats:
    """The mean over a disk."""
    radius = (3, 4, 6, 8, 10)[level] * _scale(x)
    reach = int(np.ceil(radius))
    down, across = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return _convolved(x, (down**2 + across**2 <= radius**2).astype(np.float64))


def _motion_blur(x: Floats, level: int, rng: np.random.Generator) -> Floats:
    """A Gaussian along a line at an angle of up to 45 degrees."""
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[level]
    reach, width = max(1, round(radius * _scale(x))), sigma * _scale(x)
    angle = rng.uniform(-np.pi / 4, np.pi / 4)
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    for step in range(-reach, reach + 1):  # flatter than 45 degrees: one cell a column
        kernel[reach + round(step * np.tan(angle)), reach + step] = np.exp(-(step**2) / (2 * width**2))
    return _convolved(x, kernel)


def _brightness(x: Floats, level: int, _: np.random.Generator) -> Floats:
    """Add to the value of hue, saturation, value: hue and saturation stay, so all channels grow by one factor."""
    value = x.max(axis=2, keepdims=True)
    target = np.clip(value + (0.1, 0.2, 0.3, 0.4, 0.5)[level], 0, 1)
    return np.where(value > 0, x * target / np.maximum(value, 1e-12), target)


def _contrast(x: Floats, level: int, _: np.random.Generator) -> Floats:
    mean = x.mean(axis=(0, 1), keepdims=True)
    return (x - mean) * (0.4, 0.3, 0.2, 0.1, 0.05)[level] + mean


def _saturate(x: Floats, level: int, _: np.random.Generator) -> Floats:
    """Scale and shift the saturation of hue, saturation, value."""
    factor, shift = ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2))[level]
    value = x.max(axis=2, keepdims=True)
    spread = value - x.min(axis=2, keepdims=True)
    old = np.where(value > 0, spread / np.maximum(value, 1e-12), 0.0)
    new = np.clip(old * factor + shift, 0, 1)
    # A gray has no hue; it is red by convention (hue 0), which matters where saturation is added.
    red = np.concatenate([value, value * (1 - new), value * (1 - new)], axis=2)
    colored = value - (value - x) * new / np.maximum(old, 1e-12)
    return np.where(old > 0, colored, red)


def _pixelate(x: Floats, level: int, _: np.random.Generator) -> Floats:
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[level]
    image = _to_image(x)
    small = image.resize((max(1, int(image.width * share)), max(1, int(image.height * share))), Image.Resampling.BOX)
    return _from_image(small.resize(image.size, Image.Resampling.NEAREST))


def _jpeg(x: Floats, level: int, _: np.random.Generator) -> Floats:
    stream = io.BytesIO()
    _to_image(x).save(stream, "JPEG", quality=(25, 18, 15, 10, 7)[level])
    return _from_image(Image.open(stream, formats=("JPEG",)).convert("RGB"))


_CHANGES: dict[str, _Change] = {
    "gaussian_noise": _gaussian_noise, "shot_noise": _shot_noise, "impulse_noise": _impulse_noise,
    "gaussian_blur": _gaussian_blur, "defocus_blur": _defocus_blur, "motion_blur": _motion_blur,
    "brightness": _brightness, "contrast": _contrast, "saturate": _saturate, "pixelate": _pixelate, "jpeg": _jpeg,
}  # fmt: skip


def _scale(x: Floats) -> float:
    return min(x.shape[:2]) / _REFERENCE_SIZE


def _convolved(x: Floats, kernel: Floats) -> Floats:
    """Each channel with a normalized odd-sized kernel; the border is mirrored."""
    reach = kernel.shape[0] // 2
    padded = np.pad(x, ((reach, reach), (reach, reach), (0, 0)), mode="symmetric")
    total = np.zeros_like(x)
    for down, across in np.argwhere(kernel):
        weight = kernel[down, across]
        total += weight * padded[down : down + x.shape[0], across : across + x.shape[1]]
    return total / kernel.sum()


def _filtered(x: Floats, effect: ImageFilter.Filter) -> Floats:
    return _from_image(_to_image(x).filter(effect))


def _to_image(x: Floats) -> Image.Image:
    return Image.fromarray(np.round(np.clip(x, 0, 1) * 255).astype(np.uint8))


def _from_image(image: Image.Image) -> Floats:
    return np.asarray(image, dtype=np.float64) / 255
