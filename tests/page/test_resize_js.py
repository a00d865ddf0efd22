"""The page's resize is Pillow's, bit for bit; a canvas would scale with another filter in every browser."""

import base64

import numpy as np
import pytest
from PIL import Image

from tests.page import node

SCRIPT = """
import { squash } from "./resize.js";
import { goldenPicture, toInput } from "./pixels.js";
output = input.map(({ golden, data, width, height, size, interpolation }) => {
  if (golden) return [[...goldenPicture(size)], [...toInput(goldenPicture(size))]];
  const rgba = new Uint8ClampedArray(Buffer.from(data, "base64"));
  const rows = (first, count) => rgba.slice(first * width * 4, (first + count) * width * 4);
  return [...squash({ width, height, rows }, size, interpolation)];
});
"""
# Tall ones, of which Pillow 13 shortens the columns first; (100, 136) is the last width-first one, (100, 137) is not.
TALL = [(61, 177, 64), (100, 136, 64), (100, 137, 64), (63, 65, 64), (90, 1000, 96), (7, 400, 32)]
SHAPES = [(64, 64, 64), (64, 200, 64), (300, 64, 64), (517, 389, 96), (30, 41, 64), (1, 7, 32), (2600, 1900, 64), *TALL]
FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}


def _picture(width, height, seed):
    """Noise where wrong weights show, hard edges where cubic filters overshoot."""
    draw = np.random.default_rng(seed)
    pixels = draw.integers(0, 256, (height, width, 4), dtype=np.uint8)
    pixels[: height // 2, : width // 3] = 255
    pixels[height // 3 :, width // 2 :, :2] = 0
    return pixels


@pytest.fixture(scope="module")
def resized(tmp_path_factory):
    asked = [
        {"data": base64.b64encode(_picture(w, h, w).tobytes()).decode(), "width": w, "height": h, "size": size,
         "interpolation": name}
        for w, h, size in SHAPES for name in FILTERS
    ]  # fmt: skip
    answers = node.run(SCRIPT, [*asked, {"golden": True, "size": 48}], tmp_path_factory.mktemp("node"))
    keys = [(shape, name) for shape in SHAPES for name in FILTERS]
    return dict(zip([*keys, "golden"], answers, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FILTERS)
def test_equal_to_pillow(resized, shape, name):
    width, height, size = shape
    picture = Image.fromarray(_picture(width, height, width)[:, :, :3])
    wanted = np.asarray(picture.resize((size, size), FILTERS[name]))
    np.testing.assert_array_equal(np.array(resized[shape, name]).reshape(size, size, 3), wanted)


def test_golden_picture(resized):
    from mobileclip.formats.bundle import golden_values as golden

    wanted = golden.picture(48)[0]
    rgb, planes = resized["golden"]
    np.testing.assert_array_equal(np.array(rgb).reshape(48, 48, 3), wanted.transpose(1, 2, 0))
    np.testing.assert_array_equal(np.array(planes, np.float32).reshape(3, 48, 48), wanted.astype(np.float32) / 255)
