"""Corruptions against other definitions of them: scipy's filters, Pillow's JPEG, colorsys, and statistics of noise."""

import colorsys
import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from mobileclip.evaluation.corruptions import KINDS, corrupt

NOISE = ("gaussian_noise", "shot_noise", "impulse_noise")


@pytest.fixture(scope="module")
def picture():
    """Smooth colors with a few edges, 112 pixels: lengths are half of ImageNet-C's."""
    y, x = np.mgrid[0:112, 0:112] / 111
    rgb = np.stack([0.2 + 0.6 * x, 0.3 + 0.4 * y, 0.5 + 0.3 * np.sin(6 * x * y)], axis=2)
    rgb[30:60, 40:80] = (0.9, 0.1, 0.2)
    return np.round(rgb * 255).astype(np.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_corruption_is_a_function_of_picture_severity_and_seed(picture, kind):
    first = corrupt(picture, kind, severity=3, seed="a")
    assert first.dtype == np.uint8
    assert first.shape == picture.shape
    assert (first != picture).any()
    assert (corrupt(picture, kind, severity=3, seed="a") == first).all()
    drawn = kind in {*NOISE, "motion_blur"}
    assert (corrupt(picture, kind, severity=3, seed="b") == first).all() == (not drawn)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "saturate"])
def test_more_severe_is_farther_from_the_picture(picture, kind):
    changed = [corrupt(picture, kind, severity=s, seed="x").astype(float) for s in range(1, 6)]
    errors = [np.abs(found - picture).mean() for found in changed]
    assert errors[0] < errors[4]
    if kind != "pixelate":  # uneven blocks may meet this picture's edges better than smaller ones
        assert errors[0] < errors[2] < errors[4]


def test_noise_has_the_strength_of_imagenet_c():
    gray = np.full((200, 200, 3), 128, dtype=np.uint8)
    noise = corrupt(gray, "gaussian_noise", severity=2, seed="n") / 255 - 128 / 255
    assert noise.std() == pytest.approx(0.12, rel=0.02)
    assert abs(noise.mean()) < 0.002
    shot = corrupt(gray, "shot_noise", severity=1, seed="n") / 255
    assert shot.var() == pytest.approx(128 / 255 / 60, rel=0.05)  # a Poisson's variance is its mean
    impulse = corrupt(gray, "impulse_noise", severity=4, seed="n")
    assert (impulse == 0).mean() == pytest.approx(0.085, abs=0.005)
    assert (impulse == 255).mean() == pytest.approx(0.085, abs=0.005)
    assert set(np.unique(impulse)) == {0, 128, 255}


def test_defocus_is_the_mean_over_a_disk(picture):
    radius = 6 * 112 / 224
    y, x = np.mgrid[-3:4, -3:4]
    disk = (np.hypot(y, x) <= radius).astype(float)
    wanted = [ndimage.convolve(picture[..., c] / 255, disk / disk.sum(), mode="reflect") for c in range(3)]
    found = corrupt(picture, "defocus_blur", severity=3, seed="")
    assert np.abs(found / 255 - np.stack(wanted, axis=2)).max() <= 0.5 / 255 + 1e-9


def test_gaussian_blur_is_scipys(picture):
    wanted = ndimage.gaussian_filter(picture.astype(float), sigma=(2, 2, 0), mode="nearest")
    found = corrupt(picture, "gaussian_blur", severity=4, seed="").astype(float)
    assert np.abs(found - wanted).mean() < 1.5  # Pillow's is made of three box filters


def test_motion_blur_keeps_what_does_not_move_and_spreads_the_rest():
    """A point becomes a line of weight one; a constant stays."""
    point = np.zeros((224, 224, 3), dtype=np.uint8)
    point[112, 112] = 255
    found = corrupt(point, "motion_blur", severity=1, seed="m")[..., 0] / 255
    rows, columns = np.nonzero(found)
    assert columns.max() - columns.min() > rows.max() - rows.min() - 1
    assert found.max() == pytest.approx(1 / (3 * np.sqrt(2 * np.pi)), rel=0.05)  # a Gaussian of 3 pixels
    flat = np.full((64, 64, 3), 77, dtype=np.uint8)
    assert (corrupt(flat, "motion_blur", severity=5, seed="m") == 77).all()


def test_contrast_and_brightness_by_their_formulas(picture):
    x = picture / 255
    mean = x.mean(axis=(0, 1))
    found = corrupt(picture, "contrast", severity=3, seed="")
    assert np.abs(found / 255 - np.clip((x - mean) * 0.2 + mean, 0, 1)).max() <= 0.5 / 255 + 1e-9
    bright = corrupt(picture, "brightness", severity=2, seed="")
    for y, c in ((0, 0), (45, 60), (100, 90)):
        h, s, v = colorsys.rgb_to_hsv(*x[y, c])
        assert bright[y, c] / 255 == pytest.approx(colorsys.hsv_to_rgb(h, s, min(1, v + 0.2)), abs=0.5 / 255 + 1e-9)


@pytest.mark.parametrize(("severity", "factor", "shift"), [(2, 0.1, 0.0), (3, 2.0, 0.0), (5, 20.0, 0.2)])
def test_saturation_by_colorsys(picture, severity, factor, shift):
    with_gray = picture.copy()
    with_gray[0, 0] = 90
    found = corrupt(with_gray, "saturate", severity=severity, seed="")
    for y, c in ((0, 0), (45, 60), (100, 90), (20, 10)):
        h, s, v = colorsys.rgb_to_hsv(*(with_gray[y, c] / 255))
        wanted = colorsys.hsv_to_rgb(h, min(1, s * factor + shift), v)
        assert found[y, c] / 255 == pytest.approx(wanted, abs=0.5 / 255 + 1e-9)


def test_jpeg_and_pixelate_are_pillows(picture):
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=15)
    assert (corrupt(picture, "jpeg", severity=3, seed="") == np.array(Image.open(stream))).all()
    blocks = corrupt(picture[:100, :100], "pixelate", severity=2, seed="")  # to half: blocks of 2 x 2
    mean = picture[:100, :100].reshape(50, 2, 50, 2, 3).mean(axis=(1, 3))
    assert (blocks[::2, ::2] == blocks[1::2, 1::2]).all()
    assert np.abs(blocks[::2, ::2] - mean).max() <= 1  # Pillow rounds after each axis
