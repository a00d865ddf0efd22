"""The page's resize is Pillow's, bit for bit; a canvas would scale with another filter in every browser."""

import base64

import numpy as np
import pytest
from PIL import Image

from mobileclip.data import images
from mobileclip.data.preprocess import Preprocess
from tests.page import node

SCRIPT = """
import { fit } from "./resize.js";
import { goldenPicture, toInput } from "./pixels.js";
output = input.map(({ golden, data, width, height, ways }) => {
  if (golden) return [[...goldenPicture(golden)], [...toInput(goldenPicture(golden))]];
  const rgba = new Uint8ClampedArray(Buffer.from(data, "base64"));
  const rows = (first, count) => rgba.slice(first * width * 4, (first + count) * width * 4);
  return ways.map((how) => [...fit({ width, height, rows }, how)]);
});
"""
# Tall ones, of which Pillow 13 shortens the columns first; (100, 136) is the last width-first one, (100, 137) is not.
TALL = [(61, 177, 64), (100, 136, 64), (100, 137, 64), (63, 65, 64), (90, 1000, 96), (7, 400, 32), (1400, 3100, 32)]
SHAPES = [
    (64, 64, 64), (64, 200, 64), (300, 64, 64), (517, 389, 96), (30, 41, 64), (1, 7, 32), (2600, 1900, 64),
    (131, 64, 64), (64, 133, 64), (65, 66, 64), (500, 1000, 64), *TALL,
]  # fmt: skip
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
    ways = [(name, mode) for name in FILTERS for mode in images.RESIZE_MODES]
    asked = [
        {"data": base64.b64encode(_picture(w, h, w).tobytes()).decode(), "width": w, "height": h,
         "ways": [{"size": size, "interpolation": name, "resize": mode, "fill": 90} for name, mode in ways]}
        for w, h, size in SHAPES
    ]  # fmt: skip
    *answers, golden = node.run(SCRIPT, [*asked, {"golden": 48}], tmp_path_factory.mktemp("node"))
    rows = zip(SHAPES, answers, strict=True)
    return {(shape, *way): got for shape, row in rows for way, got in zip(ways, row, strict=True)} | {"golden": golden}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FILTERS)
def test_equal_to_pillow(resized, shape, name):
    width, height, size = shape
    picture = Image.fromarray(_picture(width, height, width)[:, :, :3])
    wanted = np.asarray(picture.resize((size, size), FILTERS[name]))
    np.testing.assert_array_equal(np.array(resized[shape, name, "squash"]).reshape(size, size, 3), wanted)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("mode", ["shortest", "longest"])
def test_modes_that_keep_the_ratio_are_pythons(resized, shape, name, mode):
    """Python's own are held to open_clip's transforms in `tests/data/test_images.py`."""
    width, height, size = shape
    image = Image.fromarray(_picture(width, height, width)[:, :, :3])
    wanted = images.fit(image, Preprocess(size, (0, 0, 0), (1, 1, 1), name, mode, 90))
    np.testing.assert_array_equal(np.array(resized[shape, name, mode]).reshape(size, size, 3), np.asarray(wanted))


def test_golden_picture(resized):
    from mobileclip.formats.bundle import golden_values as golden

    wanted = golden.picture(48)[0]
    rgb, planes = resized["golden"]
    np.testing.assert_array_equal(np.array(rgb).reshape(48, 48, 3), wanted.transpose(1, 2, 0))
    np.testing.assert_array_equal(np.array(planes, np.float32).reshape(3, 48, 48), wanted.astype(np.float32) / 255)
