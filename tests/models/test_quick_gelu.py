"""Lone weights files get the activation that they were trained with, or are refused: a wrong one raises nothing."""

from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file

from mobileclip.errors import DataError
from mobileclip.models import zoo
from mobileclip.models.published import quick_gelu_of_file


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[torch.nn.Module, Path]:
    """A model with QuickGELU and random weights, and its file."""
    torch.manual_seed(0)
    model = open_clip.create_model("RN50-quickgelu").eval()
    path = tmp_path_factory.mktemp("quick") / "rn50.safetensors"
    save_file(model.state_dict(), path)
    return model, path


@pytest.mark.parametrize("name", ["RN50", "RN50-quickgelu"])
def test_an_architecture_whose_published_weights_all_have_it_gets_it(trained, name):
    model, path = trained
    clip = zoo.load(name, pretrained=str(path))
    assert clip.config["quick_gelu"] is True
    with torch.no_grad():
        expected = model.encode_text(clip.tokenizer(["a cat"]), normalize=True)
    torch.testing.assert_close(clip.encode_text(["a cat"]), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16", "ViT-bigG-14"])
def test_where_the_published_weights_differ_the_file_is_refused(trained, name):
    sentence = (
        rf"^model: nothing says whether 'rn50\.safetensors' of architecture '{name}' was trained with QuickGELU; want "
        rf"architecture '{name}-quickgelu' where it was, else a local-dir: folder with .* names quick_gelu\.$"
    )
    with pytest.raises(DataError, match=sentence):
        zoo.load(name, pretrained=str(trained[1]))
    assert quick_gelu_of_file(f"{name}-quickgelu") is True


def test_where_the_published_weights_differ_in_their_pixels_the_file_is_refused(trained):
    """One tag of ViT-H-14 squashes images, the others crop them."""
    with pytest.raises(
        DataError, match=r"^model: nothing says which normalization 'rn50\.safetensors' of architecture"
    ):
        zoo.load("ViT-H-14", pretrained=str(trained[1]))


def test_the_explicit_name_is_taken(tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match=r"^model: 'cut\.safetensors' is damaged"):  # so it was read
        zoo.load("ViT-B-32-quickgelu", pretrained=str(tmp_path / "cut.safetensors"))


def test_what_is_known_of_architectures():
    known = {
        "ViT-L-14-336": True, "ViT-H-14-378": True, "coca_ViT-L-14": False, "MobileCLIP-S0": False,
        "MobileCLIP-S3": False, "MobileCLIP2-S4": False, "ViT-B-32-256": False,
        "roberta-ViT-B-32": None,  # its configuration asks for it, its tag denies it
        "tiny-mci": None, "ViT-B-99": None,
    }  # fmt: skip
    assert {name: quick_gelu_of_file(name) for name in known} == known


def test_a_folder_whose_configuration_states_it_has_it(tmp_path):
    torch.manual_seed(0)
    clip = zoo.create("tiny-mci")
    clip.config["quick_gelu"] = True
    zoo.save(str(tmp_path), clip, license="MIT", card={})
    found = zoo.load(f"local-dir:{tmp_path}")
    assert any(isinstance(module, QuickGELU) for module in found.model.modules())
