"""Decoding: every odd picture becomes upright RGB or one sentence."""

import ast
import io
import resource
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageOps

import mobileclip
from mobileclip.data.images import decode, fit, resize, to_image, to_tensor
from mobileclip.data.preprocess import Preprocess
from mobileclip.errors import DataError
from tests.photographs import photographs


def _encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _gradient(width: int = 20, height: int = 14) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 12, y * 17, (x * y) % 256], axis=2).astype(np.uint8))


def _png(width: int, height: int) -> bytes:
    """A PNG of one gray that says it has this size; its pixel data are a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(b"\0" * 64)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def _how(size: int, interpolation: str, mode: str = "squash", fill: int = 0) -> Preprocess:
    return Preprocess(size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), interpolation, mode, fill)


def test_png_keeps_every_pixel():
    assert np.array_equal(np.asarray(decode(_encode(_gradient()))), np.asarray(_gradient()))


@pytest.mark.parametrize("data", [b"", b"\0", b"hello", b"\x89PNG\r\n\x1a\n", b"<svg/>", b"%!PS-Adobe-3.0 EPSF-3.0"])
def test_what_is_no_picture_gets_one_sentence(data):
    with pytest.raises(DataError, match=r"^image: cannot be decoded: [^\n]+\.$"):
        decode(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_a_truncated_picture_is_refused_wherever_it_ends(kind):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    whole = _encode(Image.fromarray(noise), kind)
    for end in (1, 8, 30, len(whole) // 4, len(whole) // 2, len(whole) - 60):
        with pytest.raises(DataError, match=r"^image: cannot be decoded"):
            decode(whole[:end])


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP"]),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_damaged_bytes_give_a_picture_or_a_sentence_and_nothing_else(kind, edits):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = bytearray(_encode(_gradient(), kind, exif=exif))
    for place, value in edits:
        data[int(place * len(data))] = value
    try:
        image = decode(bytes(data), max_pixels=1_000_000)
    except DataError as caught:
        sentence = str(caught)
        assert "\n" not in sentence
    else:
        assert image.mode == "RGB"


def test_one_pixel():
    assert decode(_encode(Image.new("RGB", (1, 1), (1, 2, 3)))).getpixel((0, 0)) == (1, 2, 3)
    assert resize(decode(_encode(Image.new("RGB", (1, 1), (1, 2, 3)))), _how(4, "bicubic")).unique().tolist() == [
        1,
        2,
        3,
    ]


def test_cmyk_jpeg():
    image = decode(_encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100))
    assert image.mode == "RGB"
    red, green, blue = image.getpixel((4, 4))
    assert red > 240
    assert max(green, blue) < 16


def test_sixteen_bit_gray_is_scaled_not_clipped():
    values = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
    image = decode(_encode(Image.fromarray(values)))
    assert np.asarray(image)[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]


def test_gray_bilevel_and_palette():
    assert decode(_encode(Image.new("L", (3, 3), 77))).getpixel((1, 1)) == (77, 77, 77)
    assert decode(_encode(Image.new("1", (3, 3), 1))).getpixel((1, 1)) == (255, 255, 255)
    palette = Image.new("RGB", (4, 4), (10, 200, 30)).convert("P", palette=Image.Palette.ADAPTIVE)
    assert decode(_encode(palette)).getpixel((2, 2)) == (10, 200, 30)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(mode):
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 255))
    data = _encode(image.convert(mode), transparency=0) if mode == "P" else _encode(image.convert(mode))
    if mode == "P":
        plain = Image.new("P", (2, 1), 0)
        plain.putpalette([9, 9, 9, 0, 0, 0])
        plain.putpixel((1, 0), 1)
        data = _encode(plain, transparency=0)
    shown = decode(data)
    assert [shown.getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), (0, 0, 0)]


def test_half_transparency_mixes_with_white():
    assert decode(_encode(Image.new("RGBA", (1, 1), (0, 0, 0, 128)))).getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken(kind):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = _encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert decode(data).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_exif_rotation_is_applied(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = _encode(_gradient(), kind, exif=exif)
    shown = decode(data)
    assert shown.size == ((20, 14) if orientation < 5 else (14, 20))
    assert np.array_equal(np.asarray(shown), np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))))
    assert np.array_equal(np.asarray(decode(data)), np.asarray(shown))


def test_a_huge_picture_is_refused_before_its_pixels_are_decoded():
    start = time.process_time()
    with pytest.raises(DataError, match=r"^image: 8000x8000 pixels, want at most 50000000 in all\.$"):
        decode(_png(8000, 8000), max_pixels=50_000_000)
    with pytest.raises(DataError, match=r"^image: cannot be decoded: .*decompression bomb"):
        decode(_png(60_000, 60_000))
    assert time.process_time() - start < 1.0
    with pytest.raises(DataError, match="100x2 pixels, want at most 199"):
        decode(_encode(Image.new("L", (100, 2))), max_pixels=199)


def test_tensors_and_pictures_are_the_same_pixels():
    tensor = to_tensor(_gradient())
    assert tensor.shape == (3, 14, 20)
    assert tensor.dtype == torch.uint8
    assert to_image(tensor).tobytes() == _gradient().tobytes()
    squashed = resize(_gradient(), _how(8, "bilinear"))
    assert squashed.shape == (3, 8, 8)
    assert to_image(squashed).tobytes() == _gradient().resize((8, 8), Image.Resampling.BILINEAR).tobytes()
    with pytest.raises(DataError, match=r"^interpolation: got 'lanczos', want one of bicubic, bilinear, nearest"):
        resize(_gradient(), _how(8, "lanczos"))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("mode", ["squash", "shortest", "longest"])
@pytest.mark.parametrize(("size", "fill"), [(224, 0), (63, 117)])
def test_photographs_are_brought_to_size_as_open_clip_does(mode, interpolation, size, fill):
    theirs = image_transform_v2(
        PreprocessCfg(
            size=size, mean=(0.0,) * 3, std=(1.0,) * 3, interpolation=interpolation, resize_mode=mode, fill_color=fill
        ),
        is_train=False,
    )
    for image in photographs():
        mine = resize(image, _how(size, interpolation, mode, fill))
        assert torch.equal((theirs(image) * 255).round().to(torch.uint8), mine), image.size


def test_unknown_resize_modes_are_refused():
    with pytest.raises(DataError, match=r"^resize_mode: got 'stretch', want one of squash, shortest, longest\.$"):
        fit(_gradient(), _how(8, "bilinear", "stretch"))


@pytest.mark.parametrize("turned", [False, True])
def test_the_center_of_a_line_needs_no_more_memory_than_the_center(turned):
    line = np.zeros((3, 200_000, 3), np.uint8)
    line[:, 99_000:101_000] = np.random.default_rng(0).integers(0, 256, (3, 2000, 3))
    wanted = Image.fromarray(line[:, 99_900:100_100]).resize((200 * 64 // 3, 64), Image.Resampling.BILINEAR)
    start = (wanted.width - 64) // 2
    wanted = np.asarray(wanted.crop((start, 0, start + 64, 64)), np.int16)
    image = Image.fromarray(line.transpose(1, 0, 2) if turned else line)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    got = np.asarray(fit(image, _how(64, "bilinear", "shortest")), np.int16)
    got = got.transpose(1, 0, 2) if turned else got
    assert np.abs(got - wanted).mean() < 2.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


@pytest.mark.parametrize("shape", [(1, 500), (500, 1)])
def test_a_line_of_mode_longest_keeps_one_pixel(shape):
    got = np.asarray(fit(Image.new("RGB", shape, (255, 0, 0)), _how(64, "bilinear", "longest", 7)))
    assert (got == (255, 0, 0)).all(axis=2).sum() == 64
    assert (got == 7).all(axis=2).sum() == 64 * 63


def test_every_image_is_opened_with_a_list_of_formats():
    """Pillow tries all its readers where none are named, and that of EPS starts Ghostscript."""
    trees = [ast.parse(path.read_text()) for path in sorted(Path(mobileclip.__file__).parent.rglob("*.py"))]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    found = [call for call in calls if ast.unparse(call.func) == "Image.open"]
    assert len(found) >= 4
    bare = [ast.unparse(call) for call in found if "formats" not in {keyword.arg for keyword in call.keywords}]
    assert bare == []
