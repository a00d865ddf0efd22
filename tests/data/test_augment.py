"""Views against torchvision's own operations, pixel for pixel, and the law of the draws."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.autoaugment import RandAugment, _apply_op
from torchvision.transforms.v2 import RandomResizedCrop
from torchvision.transforms.v2 import functional as F

from mobileclip.config import Views
from mobileclip.data.augment import NUM_BINS, OPS, apply_operation, apply_view, apply_views, draw_views, magnitude
from mobileclip.data.images import to_tensor

SIZES = (63, 64, 331)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """Smooth colors with hard edges and some noise: no operation is blind to it."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:90, 0:120]
    pixels = np.stack([x * 2, y * 2 + 20, (x + y) % 200 + 30], axis=2) + rng.integers(0, 25, (90, 120, 3))
    pixels[30:50, 40:80] = (250, 10, 60)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _space(size: int) -> dict[str, tuple[torch.Tensor, bool]]:
    return RandAugment()._augmentation_space(NUM_BINS, (size, size))


def _theirs(image: Image.Image, op: str, signed_bin: int) -> Image.Image:
    strength = magnitude(op, signed_bin, image.width)
    return _apply_op(image, op, strength, InterpolationMode.NEAREST, None)


def test_operations_are_torchvisions_in_order():
    assert list(_space(64)) == list(OPS)
    assert RandAugment().num_magnitude_bins == NUM_BINS


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("size", [*SIZES, 224, 256])
def test_magnitudes_are_torchvisions(op, size):
    magnitudes, signed = _space(size)[op]
    for bin_ in range(NUM_BINS) if magnitudes.ndim else ():
        ours, theirs = magnitude(op, bin_, size), float(magnitudes[bin_])
        assert ours == pytest.approx(theirs, rel=3e-7, abs=1e-6)  # theirs are float32
        assert magnitude(op, -bin_, size) == (-ours if signed else ours)
        if op.startswith("Translate"):
            assert int(ours) == 150 * size * bin_ // (331 * 30)
        if op in {"Posterize", "Solarize"}:
            assert ours == theirs


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("size", SIZES)
def test_every_operation_and_bin_is_torchvisions_pixel_for_pixel(picture, op, size):
    image = picture.resize((size, size))
    magnitudes, signed = _space(size)[op]
    changed = 0
    for bin_ in range(NUM_BINS) if magnitudes.ndim else [9]:
        for signed_bin in (bin_, -bin_) if signed else (bin_,):
            ours = apply_operation(image, op, magnitude(op, signed_bin, size))
            theirs = _theirs(image, op, signed_bin)
            assert ours.tobytes() == theirs.tobytes(), f"bin {signed_bin}"
            changed += ours.tobytes() != image.tobytes()
    assert changed or op == "Identity"


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("box", [(0, 0, 90, 120), (3, 7, 50, 41), (89, 119, 1, 1), (10, 0, 80, 5)])
def test_crop_is_torchvisions_resized_crop(picture, box, interpolation):
    view = np.array([*box, 0, 9, 0, 9])
    theirs = F.resized_crop(picture, *box, [48, 48], InterpolationMode(interpolation), antialias=True)
    assert torch.equal(apply_view(picture, view, size=48, interpolation=interpolation), to_tensor(theirs))


@pytest.mark.parametrize("size", [64, 224])
def test_a_view_is_crop_then_two_operations(picture, size):
    views = draw_views(Views(num_views=20), uid="a", seed=1, width=120, height=90)
    for view in views.tolist():
        theirs = F.resized_crop(picture, *view[:4], [size, size], InterpolationMode.BICUBIC)
        for op, signed_bin in ((view[4], view[5]), (view[6], view[7])):
            theirs = _theirs(theirs, OPS[op], signed_bin)
        assert torch.equal(apply_view(picture, np.array(view), size=size), to_tensor(theirs))


def test_replay_is_the_same_each_time_and_keeps_the_picture(picture):
    before = picture.tobytes()
    view = draw_views(Views(num_views=1), uid="a", seed=1, width=120, height=90)[0]
    assert torch.equal(apply_view(picture, view, size=32), apply_view(picture, view, size=32))
    assert picture.tobytes() == before


def test_all_views_at_once_are_each_view_alone(picture):
    views = draw_views(Views(num_views=12), uid="a", seed=0, width=picture.width, height=picture.height)
    found = apply_views(picture, views, size=48, interpolation="bilinear")
    assert found.shape == (12, 3, 48, 48)
    assert found.is_contiguous(memory_format=torch.channels_last)
    for pixels, view in zip(found, views, strict=True):
        assert torch.equal(pixels, apply_view(picture, view, size=48, interpolation="bilinear"))


class TestDraw:
    def test_depends_on_seed_uid_and_index_alone(self):
        ten = draw_views(Views(num_views=10), uid="a", seed=1, width=200, height=100)
        draw_views(Views(num_views=3), uid="z", seed=9, width=10, height=10)
        np.random.seed(0)
        torch.manual_seed(0)
        four = draw_views(Views(num_views=4), uid="a", seed=1, width=200, height=100)
        assert np.array_equal(four, ten[:4])
        assert len(np.unique(ten, axis=0)) == 10
        for other in ({"uid": "b", "seed": 1}, {"uid": "a", "seed": 2}):
            assert not np.array_equal(draw_views(Views(num_views=10), **other, width=200, height=100), ten)

    def test_known_draw_stays_as_it_is(self):
        # Stored datasets replay for ever; fresh draws of train_teacher and of resumed runs must not drift either.
        spec = Views(
            num_views=2, scale_min=0.08, scale_max=1.0, ratio_min=0.75, ratio_max=4 / 3, rand_augment_ops=2,
            rand_augment_magnitude=9,
        )  # fmt: skip
        views = draw_views(spec, uid="0123456789abcdef", seed=0, width=320, height=240)
        assert views.dtype == np.int32
        assert views.tolist() == KNOWN

    @settings(max_examples=200, deadline=None)
    @given(
        width=st.integers(1, 5000), height=st.integers(1, 5000), seed=st.integers(0, 2**32), uid=st.text(max_size=30),
        low=st.floats(0.001, 1), high=st.floats(0.001, 1), ratio=st.floats(0.05, 1), ops=st.integers(0, 2),
    )  # fmt: skip
    def test_box_lies_inside_and_operations_are_known(self, width, height, seed, uid, low, high, ratio, ops):
        spec = Views(
            num_views=2, scale_min=min(low, high), scale_max=max(low, high), ratio_min=ratio, ratio_max=1 / ratio,
            rand_augment_ops=ops, rand_augment_magnitude=30,
        )  # fmt: skip
        for top, left, h, w, *operations in draw_views(spec, uid=uid, seed=seed, width=width, height=height).tolist():
            assert 0 <= top < top + h <= height
            assert 0 <= left < left + w <= width
            for op, signed_bin in zip(operations[::2], operations[1::2], strict=True):
                assert 0 <= op < len(OPS)
                assert abs(signed_bin) in {0, 30}
            assert operations[2 * ops :] == [0] * (4 - 2 * ops)

    def test_operations_and_signs_are_uniform(self):
        views = draw_views(Views(num_views=6000), uid="a", seed=0, width=100, height=100)
        drawn = views[:, 4:].reshape(-1, 2)
        counts = Counter(drawn[:, 0].tolist())
        expected = len(drawn) / len(OPS)
        chi2 = sum((counts[op] - expected) ** 2 / expected for op in range(len(OPS)))
        assert chi2 < 34.5  # 13 degrees of freedom, p = 0.001; the draw is fixed
        for op, (_, signed) in enumerate(_space(64).values()):
            negative = (drawn[drawn[:, 0] == op, 1] < 0).mean()
            assert abs(negative - 0.5) < 0.06 if signed else negative == 0

    @pytest.mark.parametrize(("width", "height"), [(320, 240), (100, 400)])
    def test_boxes_are_distributed_like_torchvisions(self, width, height):
        spec = Views(num_views=3000)
        ours = draw_views(spec, uid="a", seed=0, width=width, height=height)[:, :4].astype(float)
        torch.manual_seed(0)
        crop = RandomResizedCrop(8, scale=(spec.scale_min, spec.scale_max), ratio=(spec.ratio_min, spec.ratio_max))
        blank = torch.zeros(1, height, width)
        rows = [crop.make_params([blank]) for _ in range(3000)]
        theirs = np.array([[r["top"], r["left"], r["height"], r["width"]] for r in rows], dtype=float)
        for name, mine, other in _statistics(ours, theirs, width, height):
            assert _ks(mine, other) < 0.05, name  # two samples of 3000: 0.05 is p = 0.001

    def test_a_picture_too_long_for_any_ratio_gives_the_centered_crop(self):
        spec = Views(num_views=3, scale_min=1.0)
        assert draw_views(spec, uid="a", seed=0, width=400, height=30)[:, :4].tolist() == [[0, 180, 30, 40]] * 3
        assert draw_views(spec, uid="a", seed=0, width=30, height=400)[:, :4].tolist() == [[180, 0, 40, 30]] * 3


def _statistics(ours, theirs, width, height):
    def area(rows):
        return rows[:, 2] * rows[:, 3] / (width * height)

    def center(rows, axis):
        return rows[:, axis] + rows[:, axis + 2] / 2

    yield "area", area(ours), area(theirs)
    yield "ratio", ours[:, 3] / ours[:, 2], theirs[:, 3] / theirs[:, 2]
    yield "y", center(ours, 0), center(theirs, 0)
    yield "x", center(ours, 1), center(theirs, 1)


def _ks(a: np.ndarray, b: np.ndarray) -> float:
    """Largest distance of two empirical distribution functions."""
    grid = np.concatenate([a, b])
    a_share = np.searchsorted(np.sort(a), grid, side="right") / len(a)
    b_share = np.searchsorted(np.sort(b), grid, side="right") / len(b)
    return float(np.abs(a_share - b_share).max())


KNOWN = [[38, 17, 187, 211, 6, -9, 5, 9], [27, 63, 163, 211, 1, 9, 0, 9]]
