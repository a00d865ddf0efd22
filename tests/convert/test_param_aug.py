"""`param_aug` against torchvision's own operations, bit for bit, and every way to write it wrong."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F
from torchvision.transforms.autoaugment import RandAugment, _apply_op

from mobileclip.config import Views
from mobileclip.convert.param_aug import decode_row, encode_row, extent, parse_member, parse_row, replay
from mobileclip.data.augment import OPS, apply_view, draw_views
from mobileclip.data.images import to_tensor
from mobileclip.errors import DataError

BOX = (7, 12, 81, 95)
# The reference draws from torchvision's own table: float32, as Python writes them to JSON.
SPACE = RandAugment()._augmentation_space(31, (224, 224))


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """Smooth colors with hard edges and some noise: no operation is blind to it."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:110, 0:140]
    pixels = np.stack([x, y * 2, (x + y) % 200 + 30], axis=2) + rng.integers(0, 25, (110, 140, 3))
    pixels[30:50, 40:80] = (250, 10, 60)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _public(op: str, signed_bin: int) -> list:
    magnitudes, _ = SPACE[op]
    strength = float(magnitudes[abs(signed_bin)]) if magnitudes.ndim else 0.0
    return [OPS.index(op), -strength if signed_bin < 0 else strength]


def _definition(image: Image.Image, row: list, size: int) -> torch.Tensor:
    """torchvision's functions alone: resized_crop, then RandAugment's own dispatcher with the stored magnitudes."""
    (top, left, height, width), operations = row
    result = F.resized_crop(image, top, left, height, width, [size, size], InterpolationMode.BICUBIC)
    for op, strength in operations:
        result = _apply_op(result, OPS[op], strength, InterpolationMode.NEAREST, None)
    return to_tensor(result)


@pytest.mark.parametrize("op", OPS)
def test_the_public_sets_strength_gives_torchvisions_pixels_and_so_does_our_view(picture, op):
    changed = 0
    for sign in (9, -9) if SPACE[op][1] else (9,):
        row = json.loads(json.dumps([list(BOX), [_public(op, sign), [6, 0.27]]]))
        expected = _definition(picture, row, 224)
        assert torch.equal(replay(picture, row, size=224), expected)
        view = decode_row(row, size=224, usual_bin=9)
        assert view.tolist() == [*BOX, OPS.index(op), sign, 6, 9]
        assert torch.equal(apply_view(picture, view, size=224), expected)
        plain = _definition(picture, [list(BOX), [[6, 0.27]]], 224)
        changed += not torch.equal(plain, expected)
    assert changed or op == "Identity"


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_two_operations_of_any_strength(picture, data):
    pairs = []
    for _ in range(2):
        op = data.draw(st.sampled_from(OPS))
        bin_ = data.draw(st.integers(0, 30))
        pairs.append(_public(op, bin_ if not SPACE[op][1] else data.draw(st.sampled_from([bin_, -bin_]))))
    row = [list(BOX), pairs]
    expected = _definition(picture, row, 224)
    assert torch.equal(replay(picture, row, size=224), expected)
    assert torch.equal(apply_view(picture, decode_row(row, size=224, usual_bin=9), size=224), expected)


def test_at_another_size_the_definition_shifts_by_pixels_and_a_view_by_the_share_the_teacher_saw(picture):
    row = [list(BOX), [_public("TranslateX", 9)]]
    assert torch.equal(replay(picture, row, size=448), _definition(picture, row, 448))
    view = decode_row(row, size=224, usual_bin=9)
    black = [int((apply_view(picture, view, size=size).sum((0, 1)) == 0).sum()) for size in (224, 448)]
    assert black == [30, 60]
    assert int((replay(picture, row, size=448).sum((0, 1)) == 0).sum()) == 30


@pytest.mark.parametrize("size", [64, 224, 256])
@pytest.mark.parametrize("ops", [0, 1, 2])
def test_drawn_views_come_back_whole_at_every_strength(size, ops):
    for strength in range(31):
        spec = Views(num_views=12, rand_augment_ops=ops, rand_augment_magnitude=strength)
        views = draw_views(spec, uid=f"u{strength}", seed=1, width=300, height=200)
        rows = json.loads(json.dumps([encode_row(view, size=size, num_ops=ops) for view in views]))
        assert all(len(row) == (2 if ops else 1) for row in rows)
        again = np.stack([decode_row(row, size=size, usual_bin=strength) for row in rows])
        # A strength of zero has no sign, neither in a file nor in a picture.
        assert np.array_equal(again, views) or strength == 0


def test_the_documented_example():
    row = [[14, 347, 370, 427], [[0, 0.0], [6, 0.27]]]
    assert decode_row(row, size=224, usual_bin=9).tolist() == [14, 347, 370, 427, 0, 9, 6, 9]
    assert extent(np.array([decode_row(row, size=224, usual_bin=9)])) == (774, 384)


def test_a_skipped_operation_is_none():
    for row in ([list(BOX), None], [list(BOX), [None, None]], [list(BOX)], [list(BOX), []]):
        assert decode_row(row, size=224, usual_bin=9)[:4].tolist() == [*BOX]
        assert not decode_row(row, size=224, usual_bin=9)[[4, 6]].any()


def test_the_member_may_hold_a_string():
    rows = [[[0, 0, 5, 5], [[0, 0.0]]]]
    assert parse_member(json.dumps({"param_aug": rows}).encode()) == rows
    assert parse_member(json.dumps({"param_aug": json.dumps(rows)}).encode()) == rows


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"param_aug": []}', b'{"param_aug": "["}', b'{"param_aug": 5}', b"\xff", b"[" * 99999]
)
def test_a_wrong_member_gets_a_sentence(data):
    with pytest.raises(DataError, match=r"^paug\.json: [^\n]+\.$"):
        parse_member(data)


@pytest.mark.parametrize(
    "row",
    [
        5, [], [[0, 0, 5, 5], [], []], ["box"], [[0, 0, 5]], [[0, 0, 0, 5]], [[-1, 0, 5, 5]], [[0, 0, 5.5, 5]],
        [[0, 0, 2**40, 5]], [[True, 0, 5, 5]], [[0, 0, 5, 5], "x"], [[0, 0, 5, 5], [[14, 0.0]]],
        [[0, 0, 5, 5], [["0", 0.0]]], [[0, 0, 5, 5], [[6, "x"]]], [[0, 0, 5, 5], [[6, float("nan")]]],
        [[0, 0, 5, 5], [[6, float("inf")]]], [[0, 0, 5, 5], [[6]]], [[0, 0, 5, 5], ["06"]],
        [[0, 0, 5, 5], [[0, 0.0]] * 3], [3, [0, 0, 5, 5], [[0, 0.0]]], [[0, 0, 5, 5], [[6, 0.28]]],
    ],
)  # fmt: skip
def test_a_wrong_row_gets_a_sentence(row):
    """The last ones: the pair id of a mix-up, and a strength between two bins."""
    with pytest.raises(DataError, match=r"^param_aug: [^\n]+\.$"):
        decode_row(row, size=224, usual_bin=9)


def test_replay_takes_a_strength_between_two_bins(picture):
    row = [list(BOX), [[6, 0.283]]]
    assert torch.equal(replay(picture, row, size=64), _definition(picture, row, 64))
    assert parse_row(row) == (BOX, [(6, 0.283)])
