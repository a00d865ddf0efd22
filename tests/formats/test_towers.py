"""The towers equal open_clip's own model, from raw pixels and tokens to unit-norm embeddings."""

import pytest
import torch
from transformers import BertConfig, MT5Config, RobertaConfig

from mobileclip.config import Export
from mobileclip.errors import ConfigError
from mobileclip.formats import registry
from mobileclip.formats.export_job import Job
from mobileclip.formats.onnx.writer import half
from mobileclip.formats.program_ports import TensorSpec
from mobileclip.formats.runtime import load_program
from mobileclip.formats.towers import WrappedText, is_plain, split
from mobileclip.models import zoo
from tests.models.perturbed import patterned_images, perturbed_clip

TEXTS = ["a photo of a dog", "", "zebra " * 90, "an <end_of_text> inside <end_of_text>", "ÅÄÖ 🦓"]
# ViT-S-32-alt takes OpenAI's mean and standard deviation and keeps its text weights in the model itself; it is causal.
NAMES = ["tiny-mci", "tiny-resnet", "ViT-S-32-alt"]


@pytest.fixture(scope="module", params=NAMES)
def clip(request):
    return perturbed_clip(request.param)


@pytest.fixture(scope="module")
def towers(clip):
    before = {key: value.clone() for key, value in clip.model.state_dict().items()}
    towers = split(clip)
    after = clip.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before), "splitting changed the model"
    return towers


@torch.no_grad()
def test_image_tower_takes_plain_pixels(clip, towers):
    pixels = patterned_images(3, clip.preprocess.size)
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (clip.preprocess.mean, clip.preprocess.std))
    expected = torch.nn.functional.normalize(clip.model.encode_image((pixels - mean) / std), dim=-1)
    torch.testing.assert_close(towers.image(pixels), expected, rtol=0, atol=2e-6)


@torch.no_grad()
def test_plain_text_equals_open_clip(clip, towers):
    tokens = clip.tokenizer(TEXTS)
    assert towers.plain_text
    torch.testing.assert_close(towers.text(tokens.int()), clip.encode_text(TEXTS), rtol=0, atol=2e-6)


@torch.no_grad()
def test_unit_norm(clip, towers):
    for features in (towers.image(patterned_images(2, clip.preprocess.size)), towers.text(clip.tokenizer(TEXTS).int())):
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(len(features)))


@torch.no_grad()
def test_text_tower_in_double_precision_is_exact():
    clip = perturbed_clip("tiny-mci")
    expected = clip.model.double().encode_text(clip.tokenizer(TEXTS), normalize=True)
    # float() at the end of the tower rounds to single precision.
    torch.testing.assert_close(
        split(clip).text.double()(clip.tokenizer(TEXTS).int()), expected.float(), atol=1e-7, rtol=0
    )


@torch.no_grad()
def test_other_text_towers_are_wrapped():
    clip = perturbed_clip("tiny-mci")
    clip.model.text.pool_type = "last"
    towers = split(clip)
    assert not is_plain(clip)
    assert not towers.plain_text
    torch.testing.assert_close(towers.text(clip.tokenizer(TEXTS).int()), clip.encode_text(TEXTS))


_NARROW = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "hidden_size": 32}
HUGGING_FACE = {
    "locked-lite": BertConfig(vocab_size=128, max_position_embeddings=40, **_NARROW),
    "roberta-ViT-B-32": RobertaConfig(vocab_size=128, max_position_embeddings=40, **_NARROW),
    "mt5-base-ViT-B-32": MT5Config(vocab_size=128, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2),
}
LENGTH = 8


@pytest.fixture(params=HUGGING_FACE)
def hugging_face(request, tmp_path):
    """The text tower of a Hugging Face model, and token ids of texts of all lengths."""
    family = HUGGING_FACE[request.param]
    family.save_pretrained(tmp_path)
    config = zoo.architecture(f"timm:test_vit@64+{request.param}")
    config["text_cfg"].update({"context_length": LENGTH, "vocab_size": 128})
    torch.manual_seed(0)
    model = zoo.build(config, tmp_path).eval().requires_grad_(requires_grad=False)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.2)
    tokens = torch.randint(3, 128, (6, LENGTH), dtype=torch.int32)
    for row, text in enumerate(tokens):
        text[row + 2 :] = model.text.config.pad_token_id
    return WrappedText(model), tokens


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("onnx", 0), ("onnx", 4), ("coreml", 1), ("coreml", 4),
        *(pytest.param(name, 1, marks=pytest.mark.slow) for name in ("executorch", "executorch_coreml", "litert")),
    ],
)  # fmt: skip
def test_hugging_face_towers_in_every_format(hugging_face, name, rows, tmp_path):
    tower, tokens = hugging_face
    wanted = tower(tokens)
    given, result = (
        TensorSpec(name=port, dtype=dtype, shape=[rows or "batch", width], minimum=-1, maximum=127)
        for port, dtype, width in (("text", "int32", LENGTH), ("text_features", "float32", wanted.shape[1]))
    )
    path = tmp_path / f"text.float32{registry.FORMATS[name].suffix}"
    job = Job("text", "float32", tower, tokens[: max(2, rows)], given, result, path, Export(), 1.0, lambda: None)
    registry.writer(name).write(job)
    got = torch.from_numpy(load_program(path)(tokens.numpy()))
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
    assert torch.linalg.norm(wanted - wanted.mean(0)) > 0.1


def test_captioner_is_refused():
    with pytest.raises(ConfigError, match="captioner"):
        split(zoo.create("tiny-coca"))


@torch.no_grad()
def test_half_precision_keeps_pixels_and_norm_in_float32(clip, towers):
    pixels = patterned_images(2, clip.preprocess.size)
    halved = half(towers.image)
    got = halved(pixels)
    assert got.dtype == halved.mean.dtype == torch.float32
    assert 0 < (got - towers.image(pixels)).abs().max() < 5e-3


@torch.no_grad()
def test_text_repmixer_tower_is_folded_into_plain_operations():
    """MobileCLIP-S0's kind of text tower, small."""
    clip = perturbed_clip("tiny-mci")
    clip.config["text_cfg"] |= {"repmixer": {"kernel_size": 11}, "width": 64, "heads": 2, "layers": 1}
    torch.manual_seed(0)
    clip.model = zoo.build(clip.config)
    for name, value in [*clip.model.text.named_parameters(), *clip.model.text.named_buffers()]:
        if name.endswith(("layer_scale", "running_var", "running_mean")):
            value.uniform_(0.1, 0.9)
    towers, tokens = split(clip), clip.tokenizer(TEXTS)
    assert towers.plain_text
    assert not any(isinstance(module, torch.nn.MultiheadAttention) for module in towers.text.modules())
    assert sum(isinstance(m, torch.nn.BatchNorm1d) for m in towers.text.modules()) == 2  # of the feed-forward layers
    torch.testing.assert_close(towers.text(tokens.int()), clip.encode_text(TEXTS), rtol=0, atol=2e-6)
