"""Custom students with every kind of text tower that open_clip has, and what is said where its files are missing."""

import dataclasses
import json

import huggingface_hub.constants
import open_clip
import pytest
import torch
from huggingface_hub.utils import close_session
from transformers import M2M100Config, MT5Config, PretrainedConfig, RobertaConfig, XLMRobertaConfig

from mobileclip.errors import DataError
from mobileclip.models import zoo
from mobileclip.models.architectures import own_names

VOCABULARY, TOKENS = 128, 8
NARROW = {"width": 64, "heads": 2, "layers": 1, "vocab_size": VOCABULARY, "context_length": TOKENS}


def _kinds() -> list[str]:
    """One architecture per kind: all whose text configurations differ in more than their size and words."""
    found: dict[str, str] = {}
    for name in sorted({*open_clip.list_models(), *own_names()}):
        text = zoo.architecture(name)["text_cfg"]
        kind = {key: value for key, value in text.items() if key not in {*NARROW, "hf_tokenizer_name"}}
        found.setdefault(json.dumps(kind, sort_keys=True), name)
    return sorted(found.values())


def _small_hub_model(name: str) -> PretrainedConfig:
    """A narrow model of the family that a hub name belongs to."""
    attention = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "hidden_size": 32}
    encoder = {"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
    decoder = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 64}
    if "mt5" in name:
        return MT5Config(vocab_size=VOCABULARY, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
    if "nllb" in name:
        return M2M100Config(vocab_size=VOCABULARY, d_model=32, **encoder, **decoder)
    family = XLMRobertaConfig if "xlm" in name else RobertaConfig
    return family(vocab_size=VOCABULARY, max_position_embeddings=40, **attention)


@pytest.mark.parametrize("name", _kinds())
def test_every_kind_of_text_tower_gives_embeddings(name, tmp_path):
    config = zoo.architecture(f"timm:test_vit@64+{name}")
    text = config["text_cfg"]
    if "hf_model_name" in text:
        _small_hub_model(text["hf_model_name"]).save_pretrained(tmp_path)
    text.update(NARROW)
    if text.get("proj_type") == "none":
        config["embed_dim"] = text["width"]
    torch.manual_seed(0)
    model = zoo.build(config, tmp_path)
    tokens = torch.randint(3, VOCABULARY, (2, TOKENS))
    with torch.no_grad():
        found = model.encode_text(tokens, normalize=True)
        assert found.shape == model.encode_image(torch.rand(2, 3, 64, 64)).shape == (2, config["embed_dim"])
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
    assert torch.linalg.norm(found[0] - found[1]) > 1e-3


def test_a_captioners_text_tower_from_name_to_folder(tmp_path):
    torch.manual_seed(0)
    clip = zoo.create("timm:test_vit@64+tiny-coca")
    zoo.save(str(tmp_path), clip, license="MIT", card={})
    again = zoo.load(f"local-dir:{tmp_path}")
    assert torch.equal(again.encode_text(["a cat", "a dog"]), clip.encode_text(["a cat", "a dog"]))


def test_a_tower_from_the_hubs_cache_leaves_the_working_folder_alone(tmp_path, monkeypatch):
    (tmp_path / "notes.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    config = zoo.architecture("locked-lite")
    clip = dataclasses.replace(zoo.create("tiny-mci"), config=config, folder="")
    zoo.save(str(tmp_path / "saved"), clip, license="MIT", card={})
    assert not (tmp_path / "saved" / "text").exists()


class TestHub:
    @pytest.fixture
    def cache(self, tmp_path, monkeypatch):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        close_session()
        yield tmp_path
        close_session()

    @pytest.mark.parametrize(
        ("name", "files"),
        [
            ("roberta-ViT-B-32", "roberta-base"),  # the tower itself
            ("timm:test_vit+roberta-ViT-B-32", "roberta-base"),
            ("timm:test_vit+ViT-B-16-SigLIP", "timm/ViT-B-16-SigLIP"),  # its vocabulary alone
            ("locked-lite", "text"),
        ],
    )
    @pytest.mark.usefixtures("cache")
    def test_files_that_are_not_there_get_one_sentence(self, name, files):
        sentence = rf"^model: the text tower needs the Hugging Face files '{files}', which cannot be loaded: .*\.$"
        with pytest.raises(DataError, match=sentence) as caught:
            zoo.create(name)
        assert "\n" not in str(caught.value)
