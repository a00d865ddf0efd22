"""Images of any origin: a program is fed what the student is fed, also where they are not square or plain."""

import io
import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from mobileclip.data import images
from mobileclip.data.preprocess import image_tensor
from mobileclip.errors import DataError
from mobileclip.formats import image_input, load
from mobileclip.formats.bundle import prompt_bank
from tests.exports import LABELS, exported

NEEDS_NO_TORCH = """
import json, sys
import numpy as np
from mobileclip.formats import load
programs = load(sys.argv[1])
images, texts = json.loads(sys.argv[2]), json.loads(sys.argv[3])
np.savez(sys.argv[4], images=programs.encode_image(images), texts=programs.encode_text(texts),
         shares=programs.zero_shot(images, texts, template="{}"))
heavy = {"torch", "open_clip", "timm", "transformers", "onnx", "webdataset"} & set(sys.modules)
assert not heavy, heavy
"""
TEXTS = ["a photo of a dog.", "Zürich – “im Schnee”", "東京タワー", "cafÃ© &amp; cake", "word " * 100]


def stripes(height, width, channels=3, seed=0):
    """Pixels that no resize of another geometry gives the same embedding."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 7, channels), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Not square, turned by EXIF, transparent, with a palette, gray of 16 bits, animated."""
    folder = tmp_path_factory.mktemp("images")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(stripes(90, 200)).save(folder / "wide.jpg", quality=95)
    Image.fromarray(stripes(200, 61, seed=1)).save(folder / "tall.webp", lossless=True)
    Image.fromarray(stripes(80, 160, seed=2)).save(folder / "turned.jpg", exif=turned, quality=95)
    Image.fromarray(stripes(70, 110, 4, seed=3)).save(folder / "transparent.png")
    Image.fromarray(stripes(50, 64, seed=4)).quantize(9).save(folder / "palette.png", transparency=3)
    deep = stripes(40, 90, seed=5)[..., 0].astype(np.uint16) * 257
    Image.fromarray(deep).save(folder / "deep.png")
    frames = [Image.fromarray(stripes(60, 44, seed=seed)) for seed in (6, 7)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def programs():
    return load(exported().bundle, threads=1)


def wanted(files):
    """The student in PyTorch, fed as every stage feeds it."""
    clip = exported().clip
    how = clip.preprocess
    pixels = torch.stack([images.resize(images.decode(f.read_bytes()), how) for f in files])
    with torch.no_grad():
        return clip.encode_image(image_tensor(pixels, how)).numpy(), clip.encode_text(TEXTS).numpy()


def test_a_bundle_without_torch_gives_the_students_embeddings(files, tmp_path):
    names = json.dumps([str(file) for file in files])
    command = [sys.executable, "-c", NEEDS_NO_TORCH, exported().bundle, names, json.dumps(TEXTS), tmp_path / "got.npz"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    got, (image, text) = np.load(tmp_path / "got.npz"), wanted(files)
    assert (got["images"] * image).sum(1).min() >= 0.9999
    assert (got["texts"] * text).sum(1).min() >= 0.9999
    logits = exported().clip.logit_scale * image @ text.T
    np.testing.assert_allclose(got["shares"], torch.tensor(logits).softmax(1).numpy(), atol=1e-3)
    assert len(np.unique(np.round(image, 4), axis=0)) == len(files)


def test_paths_bytes_pillow_and_arrays_are_the_same_image(programs, files):
    data = [file.read_bytes() for file in files]
    opened = [Image.open(io.BytesIO(part)) for part in data]
    arrays = [np.asarray(images.decode(part)) for part in data]
    by_path = programs.encode_image(files, batch_size=3)
    for other in (data, opened, arrays, map(str, files), [files[0], data[1], opened[2], *arrays[3:]]):
        np.testing.assert_allclose(programs.encode_image(other), by_path, atol=1e-5)
    gray = np.arange(48 * 30, dtype=np.uint16).reshape(48, 30).astype(np.uint8)
    colored = np.repeat(gray[..., None], 3, axis=2)
    np.testing.assert_array_equal(programs.encode_image([gray]), programs.encode_image([colored]))


def test_only_a_batch_is_open_at_a_time(programs):
    """An endless stream is read no further than the batch that is asked for."""
    taken = []

    def stream():
        while True:
            taken.append(1)
            yield np.zeros((8, 8, 3), np.uint8)

    rows = image_input.batches(stream(), programs.contract.image, batch_size=5)
    assert next(rows).shape == (5, 3, 64, 64)
    assert len(taken) == 5
    next(rows)
    assert len(taken) == 10


def test_no_images_and_no_texts(programs):
    assert programs.encode_image([]).shape == (0, 128)
    assert programs.encode_text([]).shape == (0, 128)
    assert programs.zero_shot([], ["a", "b"]).shape == (0, 2)


def test_zero_shot_takes_templates_and_banks(programs, files):
    bank = prompt_bank.load(programs.folder, programs.contract, "patterns")
    by_bank = programs.zero_shot(files, bank)
    np.testing.assert_allclose(by_bank, programs.zero_shot(files, LABELS, template="a {} pattern"), atol=1e-3)
    np.testing.assert_allclose(by_bank.sum(1), 1, atol=1e-5)
    two = programs.class_embeddings(["red", "blue"], template=["a {}", "one {}"]).features
    each = programs.encode_text(["a red", "one red", "a blue", "one blue"]).reshape(2, 2, -1).mean(1)
    np.testing.assert_allclose(two, each / np.linalg.norm(each, axis=1, keepdims=True), atol=1e-5)


def test_decoding_in_threads_leaves_pythons_warnings_alone(programs, files):
    before = list(warnings.filters)
    programs.encode_image(files * 4, batch_size=8)
    assert warnings.filters == before


class TestRefusals:
    def test_files(self, programs, tmp_path):
        (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
        (tmp_path / "page.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
        with pytest.raises(DataError, match=r"^'.*broken\.jpg': image: cannot be decoded: .+\.$"):
            programs.encode_image([tmp_path / "broken.jpg"])
        with pytest.raises(DataError, match=r"page\.eps': image: cannot be decoded"):
            programs.encode_image([tmp_path / "page.eps"])
        with pytest.raises(DataError, match=r"^image: no file '.*nothing\.png'\.$"):
            programs.encode_image([tmp_path / "nothing.png"])

    def test_sizes(self, programs, tmp_path):
        Image.new("RGB", (300, 200)).save(tmp_path / "a.png")
        with pytest.raises(DataError, match="300x200 pixels, want at most 59999"):
            programs.encode_image([tmp_path / "a.png"], max_pixels=59_999)
        with pytest.raises(DataError, match="got 300x200 pixels, want 1 to 59999"):
            programs.encode_image([Image.new("RGB", (300, 200))], max_pixels=59_999)
        assert programs.encode_image([tmp_path / "a.png"], max_pixels=60_000).shape == (1, 128)

    @pytest.mark.parametrize(
        ("given", "sentence"),
        [
            (["x.png"][0], "got a single image, want a list"),
            (Image.new("RGB", (9, 9)), "got a single image, want a list"),
            ([np.zeros((9, 9, 3), np.float32)], r"got an array float32 \[9, 9, 3\], want a path"),
            ([np.zeros((3, 9, 9), np.uint8)], r"got an array uint8 \[3, 9, 9\]"),
            ([np.zeros((0, 9, 3), np.uint8)], r"got an array uint8 \[0, 9, 3\]"),
            ([None], "got NoneType, want a path"),
        ],
    )
    def test_what_is_no_image(self, programs, given, sentence):
        with pytest.raises(DataError, match=sentence):
            programs.encode_image(given)

    @pytest.mark.parametrize("given", ["a cat", [b"a cat"], ["a cat", 3], [None]])
    def test_what_is_no_text(self, programs, given):
        with pytest.raises(DataError, match=r"^text: got .+, want a list of texts\.$"):
            programs.encode_text(given)

    @pytest.mark.parametrize(
        ("labels", "template", "sentence"),
        [
            (["a", "a"], "{}", "got 'a' twice"),
            ([], "{}", "got none"),
            ("cat", "{}", "got the text 'cat', want a list of labels"),
            (["a"], "a photo", r"template: got 'a photo', want a text with \{\} for the label"),
            (["a"], [], "template: got none"),
        ],
    )
    def test_labels(self, programs, labels, template, sentence):
        with pytest.raises(DataError, match=sentence):
            programs.zero_shot([], labels, template=template)

    def test_a_single_program_has_no_contract(self):
        alone = load(exported().export / "image.float32.onnx")
        with pytest.raises(DataError, match=r"is a single program without contract\.json, want a bundle"):
            alone.encode_image([np.zeros((9, 9, 3), np.uint8)])


def test_the_most_exact_program_is_taken():
    assert load(exported().export, image="", text="").image.path.name == "image.float32.onnx"
