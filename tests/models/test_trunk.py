"""A CoCa that looks through a timm trunk: its tower, its checkpoint, its captions, weights that do not fit."""

import pytest
import torch
from safetensors.torch import save_file

from mobileclip.data.preprocess import Preprocess, image_tensor
from mobileclip.errors import DataError
from mobileclip.models import generation, zoo
from mobileclip.models.trunk import TrunkTower, load_trunk
from tests.models import open_clip_captions


@pytest.fixture(scope="module")
def clip() -> zoo.Clip:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return zoo.create("lite-coca")


@pytest.fixture(scope="module")
def images(clip) -> torch.Tensor:
    pixels = torch.randint(256, (3, 3, 96, 96), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return image_tensor(pixels, clip.preprocess)


@torch.no_grad()
def test_tokens_are_the_places_of_the_trunks_map(clip, images):
    visual = clip.model.visual
    assert isinstance(visual, TrunkTower)
    embedding, tokens = visual(images)
    assert embedding.shape == (3, clip.embed_dim)
    assert tokens.shape == (3, 9, 128)
    kept = visual.features(images)
    assert all(map(torch.equal, visual.from_features(kept), (embedding, tokens)))
    corner = visual.trunk.forward_features(images)[:, :, 2, 0]  # last row, first column: place 6
    assert torch.equal(kept[:, 6], corner)


@torch.no_grad()
def test_checkpoint_gives_the_same_tower_back(clip, images, tmp_path):
    zoo.save(str(tmp_path), clip, license="MIT", card={})
    again = zoo.load(f"local-dir:{tmp_path}")
    assert again.preprocess == clip.preprocess == Preprocess(96, (0.5,) * 3, (0.5,) * 3, "bicubic")
    assert torch.equal(again.encode_image(images), clip.encode_image(images))


def test_greedy_captions_equal_open_clip(clip, images):
    specials = generation.specials_of(clip)
    theirs = open_clip_captions.greedy(clip.model, images, **vars(specials), low=5, high=12)
    draws = torch.zeros(3, 1, 12, dtype=torch.float64)
    sampling = generation.Sampling("greedy", min_tokens=5, max_tokens=12)
    assert torch.equal(
        generation.generate(clip.model, images, draws, sampling=sampling, specials=specials)[:, 0], theirs
    )


def test_weights_fit_or_are_named(clip, tmp_path):
    trunk = clip.model.visual.trunk
    weights = {name: tensor + 1 for name, tensor in trunk.state_dict().items()}
    save_file({**weights, "classifier.bias": torch.zeros(2)}, tmp_path / "whole.safetensors")
    other = zoo.create("lite-coca").model.visual.trunk
    load_trunk(other, tmp_path / "whole.safetensors", whose="stage", heads=("classifier.",))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in other.state_dict().items())
    save_file({"conv_stem.weight": weights["conv_stem.weight"], "x": torch.zeros(1)}, tmp_path / "part.safetensors")
    with pytest.raises(
        DataError, match=r"^stage: 'part\.safetensors' does not fit: \d+ tensors missing .*, 1 unexpected"
    ):
        load_trunk(other, tmp_path / "part.safetensors", whose="stage", heads=())
    with pytest.raises(DataError, match=r"^stage: no weights at '.*gone\.safetensors'\.$"):
        load_trunk(other, tmp_path / "gone.safetensors", whose="stage", heads=())
