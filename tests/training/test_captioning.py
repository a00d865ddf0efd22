"""The captioner's loss against open_clip's own CoCa forward pass and `CoCaLoss`."""

import json

import open_clip
import pytest
import torch

from mobileclip.models import zoo
from mobileclip.models.architectures import CONFIGS
from mobileclip.training.captioning import caption_loss, coca_objective
from mobileclip.training.world import World

CAPTIONS = ["a red circle", "a picture of a blue square on white", "cross", "a drawing that shows a green triangle"]


@pytest.fixture(scope="module")
def clip() -> zoo.Clip:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made = zoo.create("tiny-coca")
    made.model.double()
    return made


def _batch(clip: zoo.Clip) -> dict[str, torch.Tensor]:
    pixels = torch.randint(0, 256, (4, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return {"image": pixels, "text": clip.tokenizer(CAPTIONS)}


def _double(monkeypatch) -> None:
    """Pixels in double precision, so that both ways agree to the last digits."""
    plain = zoo.image_tensor
    monkeypatch.setattr("mobileclip.training.captioning.image_tensor", lambda *a: plain(*a).double())


@pytest.mark.parametrize(("caption_weight", "contrastive_weight"), [(2.0, 1.0), (1.0, 0.0), (0.0, 1.0)])
def test_loss_and_gradients_equal_open_clip(clip, monkeypatch, caption_weight, contrastive_weight):
    _double(monkeypatch)
    batch = _batch(clip)
    objective = coca_objective(
        clip, World(), total=4, caption_weight=caption_weight, contrastive_weight=contrastive_weight
    )
    ours = objective.criterion(objective.encode(batch), batch)
    output = clip.model(zoo.image_tensor(batch["image"], clip.preprocess).double(), batch["text"])
    contrastive, caption = open_clip.CoCaLoss(caption_weight, contrastive_weight, pad_id=0)(**output)
    theirs = caption + contrastive
    assert ours["loss"].item() == pytest.approx(theirs.item(), rel=1e-10)
    if caption_weight:
        assert caption_weight * ours["caption"].item() == pytest.approx(caption.item(), rel=1e-10)
    assert ("contrastive" in ours) == bool(contrastive_weight)
    parameters = [p for p in clip.model.parameters() if p.requires_grad]
    first = torch.autograd.grad(ours["loss"], parameters, allow_unused=True)
    second = torch.autograd.grad(theirs, parameters, allow_unused=True)
    for a, b in zip(first, second, strict=True):
        if b is None or not b.abs().max():
            assert a is None or not a.abs().max()
        else:
            assert torch.allclose(a, b, rtol=1e-8, atol=1e-14)


def test_loss_counts_every_word_and_the_end_but_no_padding(clip):
    batch = _batch(clip)
    with torch.no_grad():
        image_tokens = clip.model._encode_image(zoo.image_tensor(batch["image"], clip.preprocess).double())[1]
        text_tokens = clip.model._encode_text(batch["text"])[1]
        summed, count = caption_loss(clip.model, image_tokens, text_tokens, batch["text"])
        logits = clip.model.text_decoder(image_tokens, text_tokens).log_softmax(-1)
    expected = 0.0
    for row, caption in zip(range(4), CAPTIONS, strict=True):
        said = [*clip.tokenizer.encode(caption), clip.tokenizer.eot_token_id]
        expected -= sum(logits[row, place, token].item() for place, token in enumerate(said))
    assert count == sum(len(clip.tokenizer.encode(caption)) + 1 for caption in CAPTIONS)
    assert summed.item() == pytest.approx(expected, rel=1e-6)


def test_context_of_the_architecture_is_the_tokenizers():
    config = json.loads((CONFIGS / "tiny-coca.json").read_text())
    assert zoo.create("tiny-coca").tokenizer(["x"]).shape == (1, config["multimodal_cfg"]["context_length"])
