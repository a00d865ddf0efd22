"""Model folders: saved and loaded to the same bits, open_clip reads them, damage gets a sentence."""

import json
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image

from mobileclip.data.images import resize
from mobileclip.data.preprocess import Preprocess, image_tensor
from mobileclip.errors import ConfigError, DataError
from mobileclip.models import zoo
from mobileclip.models.architectures import own_names
from mobileclip.models.embed import embed_pixels, embed_texts
from tests.models.perturbed import patterned_images, perturbed_clip

TEXTS = ["a red circle", "two words", ""]


@pytest.fixture(scope="module")
def clip() -> zoo.Clip:
    return perturbed_clip("tiny-mci", 1)


@pytest.fixture(scope="module")
def folder(clip, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("zoo") / "student"
    zoo.save(str(path), clip, license="MIT", card={"stage": "test"})
    return path


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return (patterned_images(3, 64) * 255).to(torch.uint8)


def _edit(folder, *path):
    file = folder / "open_clip_config.json"
    content = json.loads(file.read_text())
    place = content
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    file.write_text(json.dumps(content))


def _cut(folder, end):
    file = folder / "open_clip_model.safetensors"
    file.write_bytes(file.read_bytes()[:end])


def _other(folder):
    torch.manual_seed(0)
    zoo.save(str(folder / "other"), zoo.create("tiny-resnet"), license="MIT", card={})
    shutil.copy(folder / "other" / "open_clip_model.safetensors", folder)


class TestFolder:
    def test_comes_back_to_the_last_bit(self, clip, folder, pixels):
        for again in (
            zoo.load(f"local-dir:{folder}"),
            zoo.load("trained:student", trained=str(folder.parent)),
            zoo.load("trained", trained=str(folder)),
        ):
            assert torch.equal(embed_pixels(again, pixels, batch_size=3), embed_pixels(clip, pixels, batch_size=3))
            assert torch.equal(again.encode_text(TEXTS), clip.encode_text(TEXTS))
            assert (again.license, again.card["stage"]) == ("MIT", "test")
            assert again.preprocess == clip.preprocess
            assert again.logit_scale == clip.logit_scale
            assert not again.model.training

    def test_equal_weights_give_equal_bytes_and_their_digest(self, clip, folder, tmp_path):
        digest = zoo.save(str(tmp_path / "a"), clip, license="MIT", card={"stage": "test"})
        assert (
            digest
            == zoo.load(f"local-dir:{folder}").sha256
            == json.loads((folder / "model.json").read_text())["sha256"]
        )
        for path in folder.iterdir():
            assert (tmp_path / "a" / path.name).read_bytes() == path.read_bytes()

    def test_is_open_clips_own_layout_with_the_right_normalization(self, clip, folder, pixels):
        model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        with torch.no_grad():
            theirs = model.eval().encode_image(pixels.float() / 255, normalize=True)
            text = model.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS), normalize=True)
        torch.testing.assert_close(theirs, clip.encode_image(image_tensor(pixels, clip.preprocess)), atol=1e-6, rtol=0)
        torch.testing.assert_close(text, clip.encode_text(TEXTS), atol=1e-6, rtol=0)
        picture = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
        torch.testing.assert_close(
            transform(picture), image_tensor(resize(picture, clip.preprocess)[None], clip.preprocess)[0]
        )

    @pytest.mark.parametrize(
        ("damage", "match"),
        [
            (
                lambda f: (f / "open_clip_config.json").unlink(),
                r"^model: no checkpoint at '.*', want a folder with open_clip_config\.json and open_clip_model\.safet",
            ),
            (
                lambda f: (f / "open_clip_model.safetensors").unlink(),
                r"^model: no open_clip_model\.safetensors in '.*'\.$",
            ),
            (
                lambda f: (f / "open_clip_config.json").write_text("{"),
                r"^model: '.*/open_clip_config\.json' is not JSON\.$",
            ),
            (lambda f: _edit(f, "preprocess_cfg"), r"names no preprocess_cfg; its normalization would be a guess\.$"),
            (lambda f: _edit(f, "preprocess_cfg", "mean"), r"^model: '.*/open_clip_config\.json' lacks 'mean'\.$"),
            (lambda f: _edit(f, "model_cfg"), r"^model: '.*/open_clip_config\.json' lacks 'model_cfg'\.$"),
            (lambda f: _cut(f, 1000), r"^model: 'open_clip_model\.safetensors' (does not fit|is damaged)"),
            (lambda f: _cut(f, -1), r"^model: 'open_clip_model\.safetensors' (does not fit|is damaged)"),
            (lambda f: _cut(f, 0), r"^model: 'open_clip_model\.safetensors' (does not fit|is damaged)"),
            (_other, r"^model: 'open_clip_model\.safetensors' does not fit the architecture in '"),
        ],
    )  # fmt: skip
    def test_damage_gets_one_sentence(self, copy, damage, match):
        damage(copy)
        with pytest.raises(DataError, match=match) as caught:
            zoo.load(f"local-dir:{copy}")
        assert "\n" not in str(caught.value)


class TestNames:
    def test_own_architectures_can_be_created_by_name(self):
        for name in own_names():
            if "hf_model_name" not in zoo.architecture(name)["text_cfg"]:
                clip = zoo.create(name)
                size, context = clip.preprocess.size, clip.tokenizer(["x"]).shape[1]
                assert clip.encode_image(torch.zeros(2, 3, size, size)).shape == (2, clip.embed_dim)
                assert context >= 16

    @pytest.mark.parametrize(
        ("call", "match"),
        [
            (
                lambda: zoo.create("ViT-B-99"),
                r"^model: unknown architecture 'ViT-B-99', want an open_clip name, timm:.* or one of .*tiny-mci",
            ),
            (
                lambda: zoo.load("ViT-B-32", pretrained="nobody"),
                r"^pretrained: got 'nobody' for model 'ViT-B-32', want one of \['openai'",
            ),
            (lambda: zoo.load("ViT-B-32"), r"^pretrained: got '' for model 'ViT-B-32', want one of \['openai'"),
            (lambda: zoo.load("tiny-mci"), r"^pretrained: got '' for model 'tiny-mci', want one of \[\] or"),
            (
                lambda: zoo.load("trained:x"),
                r"^model: got 'trained:x', but there is no input folder with trained models\.$",
            ),
        ],
    )  # fmt: skip
    def test_unknown_names_get_a_sentence(self, call, match):
        with pytest.raises(ConfigError, match=match):
            call()

    def test_normalization_of_published_and_own_architectures(self):
        """reference: MobileCLIP's own towers take 0-1 pixels, v2's S3, S4 and L-14 OpenAI's statistics."""
        expected = {
            "MobileCLIP-S1": 0.0,
            "MobileCLIP-B": 0.0,
            "MobileCLIP2-S4": 0.48145466,
            "tiny-mci": 0.0,
            "ViT-B-32": 0.48145466,
        }
        for name, mean in expected.items():
            assert zoo.default_preprocess(name, zoo.architecture(name)).mean[0] == pytest.approx(mean)


def test_image_tensor_is_the_formula():
    pre = Preprocess(2, (0.1, 0.2, 0.3), (0.5, 0.25, 2.0))
    pixels = torch.arange(24, dtype=torch.uint8).view(2, 3, 2, 2) * 10
    found = image_tensor(pixels, pre)
    for channel, (mean, std) in enumerate(zip(pre.mean, pre.std, strict=True)):
        torch.testing.assert_close(found[:, channel], (pixels[:, channel] / 255.0 - mean) / std)


class TestEmbed:
    def test_unit_norm_and_any_batch_size(self, clip, pixels):
        one, three = embed_pixels(clip, pixels, batch_size=1), embed_pixels(clip, pixels, batch_size=3)
        torch.testing.assert_close(one, three, atol=1e-5, rtol=0)
        torch.testing.assert_close(one.norm(dim=1), torch.ones(3))
        assert one.dtype == torch.float32

    def test_texts_come_back_in_order_and_do_not_depend_on_it(self, clip):
        texts = ["b", "a", "b", "c" * 500, "a"]
        features = embed_texts(clip, texts, batch_size=2)
        assert torch.equal(features[0], features[2])
        assert torch.equal(features[1], features[4])
        assert torch.equal(embed_texts(clip, texts[::-1], batch_size=2), features.flip(0))
        torch.testing.assert_close(features[:1], clip.encode_text(["b"]), atol=1e-5, rtol=0)

    def test_no_texts(self, clip):
        assert embed_texts(clip, [], batch_size=2).shape == (0, clip.embed_dim)


def test_normalization_gives_the_same_bits_in_every_layout():
    pixels = torch.randint(0, 256, (3, 3, 20, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    preprocess = Preprocess(24, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic")
    planes = image_tensor(pixels, preprocess)
    pixel_by_pixel = image_tensor(pixels.contiguous(memory_format=torch.channels_last), preprocess)
    torch.testing.assert_close(planes, pixel_by_pixel, atol=0, rtol=0)
    assert pixel_by_pixel.is_contiguous(memory_format=torch.channels_last)
    wanted = (pixels.double() / 255 - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.4, 0.5, 0.6]).view(
        3, 1, 1
    )
    torch.testing.assert_close(planes.double(), wanted, atol=1e-6, rtol=1e-6)
