"""What is pushed loads in the tools it is meant for, with the student's own embeddings."""

import html
import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from ftfy import fix_text
from onnx import helper, numpy_helper
from PIL import Image
from tokenizers import Tokenizer

from mobileclip.data import images
from mobileclip.data.preprocess import image_tensor
from mobileclip.formats.bundle import tokenizer
from mobileclip.formats.contract import ImageContract
from mobileclip.sharing import onnx_ports
from mobileclip.sharing.push import push
from tests.exports import exported
from tests.models.perturbed import patterned_images
from tests.sharing import node_tools

TEXTS = [
    "a photo of a dog.",
    "Zürich & “Bern”",
    "東京タワー 👩‍🚀",
    "",
    "word " * 90,
    "one two three four five six seven",
]
SIZES = [(64, 64), (200, 90), (61, 177), (640, 480), (40, 30)]


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "student"
    push(str(exported().export.parent), str(folder))
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Opaque RGB, which every tool decodes alike."""
    folder = tmp_path_factory.mktemp("photos")
    for number, (width, height) in enumerate(SIZES):
        pixels = patterned_images(1, 640, seed=number)[0].permute(1, 2, 0).numpy()
        noise = np.random.default_rng(number).normal(0, 0.05, pixels.shape)
        image = Image.fromarray((np.clip(pixels + noise, 0, 1) * 255).round().astype(np.uint8))
        image.crop((0, 0, width, height)).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


def wanted(photos):
    """Image and text embeddings of the student in PyTorch."""
    clip = exported().clip
    how = clip.preprocess
    pixels = torch.stack([images.resize(images.decode(f.read_bytes()), how) for f in photos])
    with torch.no_grad():
        return clip.encode_image(image_tensor(pixels, how)).numpy(), clip.encode_text(TEXTS).numpy()


def cosine(got, want):
    return float((np.array(got) * want).sum(1).min())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_transformers_js(pushed, photos, tmp_path, dtype):
    script = """
    const options = input.dtype === "fp32" ? {} : { dtype: input.dtype };
    const tokenizer = await AutoTokenizer.from_pretrained("student");
    const processor = await AutoProcessor.from_pretrained("student");
    const text = await CLIPTextModelWithProjection.from_pretrained("student", options);
    const vision = await CLIPVisionModelWithProjection.from_pretrained("student", options);
    const tokens = tokenizer(input.texts, { padding: true, truncation: true });
    const pipe = await pipeline("image-feature-extraction", "student", options);
    output = { texts: (await text(tokens)).text_embeds.tolist(), images: [], pipe: [] };
    for (const name of input.images) {
      output.images.push((await vision(await processor(await RawImage.read(name)))).image_embeds.tolist()[0]);
      output.pipe.push((await pipe(name)).tolist()[0]);
    }
    """
    data = {"root": str(pushed.parent) + "/", "texts": TEXTS, "images": [str(f) for f in photos], "dtype": dtype}
    found = node_tools.run(script, data, tmp_path)
    image, text = wanted(photos)
    assert cosine(found["images"], image) >= 0.9999
    assert cosine(found["texts"], text) >= 0.9999
    np.testing.assert_allclose(found["pipe"], found["images"], atol=1e-6)


@pytest.mark.slow
def test_the_tokenizer_in_transformers_js(pushed, tmp_path):
    script = """
    const tokenizer = await AutoTokenizer.from_pretrained("student");
    output = input.texts.map((text) => tokenizer(text, { return_tensor: false }).input_ids);
    """
    vectors = json.loads((exported().export / "tokenizer" / "vectors.json").read_text())
    # What ftfy or the entities change is changed before any tokenizer file, and transformers.js does neither.
    clean = [v for v in vectors if html.unescape(fix_text(v["text"])) == v["text"] and len(v["ids"]) < 16]
    assert len(clean) > 15
    found = node_tools.run(script, {"root": str(pushed.parent) + "/", "texts": [v["text"] for v in clean]}, tmp_path)
    assert {v["text"]: ids for v, ids in zip(clean, found, strict=True)} == {v["text"]: v["ids"] for v in clean}


def test_immich(pushed, photos):
    """The steps of Immich's machine learning (immich_ml/models/clip), which is on no registry."""
    config = json.loads((pushed / "config.json").read_text())
    how = json.loads((pushed / "visual" / "preprocess_cfg.json").read_text())
    assert how["resize_mode"] == "squash"
    visual = onnxruntime.InferenceSession(pushed / "visual" / "model.onnx")
    textual = onnxruntime.InferenceSession(pushed / "textual" / "model.onnx")
    length = config["text_cfg"]["context_length"]
    pad = json.loads((pushed / "textual" / "tokenizer_config.json").read_text())["pad_token"]
    tokens = Tokenizer.from_file(str(pushed / "textual" / "tokenizer.json"))
    tokens.enable_padding(length=length, pad_token=pad, pad_id=tokens.token_to_id(pad))
    tokens.enable_truncation(max_length=length)
    resampling = Image.Resampling[how["interpolation"].upper()]
    got_images, got_texts = [], []
    for path in photos:
        fitted = Image.open(path).convert("RGB").resize((how["size"][0], how["size"][0]), resampling)
        pixels = (np.asarray(fitted, np.float32) / 255 - np.float32(how["mean"])) / np.float32(how["std"])
        got_images.append(visual.run(None, {"image": pixels.transpose(2, 0, 1)[None]})[0][0])
    for text in TEXTS:
        ids = np.array([tokens.encode(" ".join(text.split())).ids], np.int32)
        got_texts.append(textual.run(None, {"text": ids})[0][0])
    image, text = wanted(photos)
    assert cosine(got_images, image) >= 0.9999
    assert cosine(got_texts, text) >= 0.9999


def test_open_clip_without_this_package(pushed, photos, tmp_path):
    """The folder alone, with the files that lie beside the weights; this package is not on the path."""
    script = """
import sys
sys.path[:] = [p for p in sys.path if p] ; sys.path.insert(0, sys.argv[1])
import json, numpy as np, open_clip, torch
from PIL import Image
import mobileclip_open_clip_support
model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{sys.argv[1]}")
tokenizer = open_clip.get_tokenizer(f"local-dir:{sys.argv[1]}")
with torch.no_grad():
    pixels = torch.stack([preprocess(Image.open(name)) for name in json.loads(sys.argv[2])])
    image = model.eval().encode_image(pixels, normalize=True)
    text = model.encode_text(tokenizer(json.loads(sys.argv[3])), normalize=True)
assert "mobileclip" not in sys.modules
np.savez(sys.argv[4], image=image, text=text)
"""
    arguments = [str(pushed), json.dumps([str(f) for f in photos]), json.dumps(TEXTS), str(tmp_path / "got.npz")]
    command = [sys.executable, "-P", "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    got, (image, text) = np.load(tmp_path / "got.npz"), wanted(photos)
    assert cosine(got["image"], image) >= 0.9999
    assert cosine(got["text"], text) >= 0.9999


class TestPorts:
    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
    @pytest.mark.parametrize("size", [64, 224])
    def test_the_resize_is_pillows(self, photos, interpolation, size):
        image = ImageContract(size=size, interpolation=interpolation, mean=[0, 0, 0], std=[1, 1, 1])
        nodes, constants = onnx_ports._resize(image)
        port = helper.make_tensor_value_info
        graph = helper.make_graph(
            nodes, "resize", [port("pixel_values", 1, ["b", 3, "h", "w"])],
            [port(f"{onnx_ports._PREFIX}image", 1, ["b", 3, size, size])],
            [numpy_helper.from_array(value, onnx_ports._PREFIX + name) for name, value in constants.items()],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        session = onnxruntime.InferenceSession(model.SerializeToString())
        for path in photos:
            opened = Image.open(path)
            pixels = np.asarray(opened, np.float32).transpose(2, 0, 1)[None] / 255
            got = np.rint(session.run(None, {"pixel_values": pixels})[0][0] * 255)
            resampling = Image.Resampling[interpolation.upper()]
            want = np.asarray(opened.resize((size, size), resampling), np.float32).transpose(2, 0, 1)
            # Sums of float32 and of fixed point fall on different sides of a half, where weights are simple fractions.
            assert (got != want).mean() < (0.1 if interpolation == "bilinear" else 0.001)
            assert np.abs(got - want).max() <= 2

    def test_short_and_endless_rows(self, pushed):
        """Rows of the longest text alone, and rows whose end was cut off, are what the student's tokenizer gives."""
        session = onnxruntime.InferenceSession(pushed / "onnx" / "text_model.onnx")
        own = tokenizer.load(exported().export / tokenizer.FOLDER)(TEXTS)
        want = exported().clip
        with torch.no_grad():
            features = want.encode_text(TEXTS).numpy()
        for row, feature in zip(own, features, strict=True):
            used = int((row != 0).sum())
            short = session.run(None, {"input_ids": row[None, :used].astype(np.int64)})[0]
            np.testing.assert_allclose(short[0], feature, atol=1e-4)
        cut = own[4:5].astype(np.int64).copy()
        cut[0, -1] = cut[0, -2]  # transformers.js drops what is too long, the end included
        np.testing.assert_allclose(session.run(None, {"input_ids": cut})[0], features[4:5], atol=1e-4)

    def test_names(self, pushed):
        given = {}
        for name in ("vision_model", "vision_model_fp16", "text_model", "text_model_fp16"):
            graph = onnx.load(pushed / "onnx" / f"{name}.onnx").graph
            given[name] = ([port.name for port in graph.input], [port.name for port in graph.output])
        assert given["vision_model"] == given["vision_model_fp16"] == (["pixel_values"], ["image_embeds"])
        assert given["text_model"] == given["text_model_fp16"] == (["input_ids"], ["text_embeds"])
