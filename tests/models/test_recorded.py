"""What the name of a loaded model leads back to."""

import pytest

from mobileclip import manifest
from mobileclip.errors import ConfigError
from mobileclip.models.recorded import load_recorded, reference


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("trained:small", ("trained:small", "")),
        ("local-dir:runs/a/b", ("local-dir:runs/a/b", "")),
        ("hf-hub:apple/DFN2B-CLIP-ViT-L-14", ("hf-hub:apple/DFN2B-CLIP-ViT-L-14", "")),
        ("ViT-L-14/openai", ("ViT-L-14", "openai")),
        ("MobileCLIP-S0", ("MobileCLIP-S0", "")),
    ],
)
def test_reference(name, expected):
    assert reference(name) == expected


def test_trained_models_are_found_in_their_folder(tiny_teachers, tiny_reinforced):
    spec = manifest.read(tiny_reinforced).column("first.views").spec
    assert load_recorded(spec, trained=tiny_teachers).sha256 == spec["sha256"]


def test_a_lone_file_cannot_be_found_again():
    with pytest.raises(ConfigError, match=r"^pretrained: got '' for model 'MobileCLIP-S0', want one of "):
        load_recorded({"model": "MobileCLIP-S0"})
