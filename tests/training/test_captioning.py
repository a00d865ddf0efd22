"""The captioner's loss against open_clip's own CoCa forward pass and `CoCaLoss`."""

import json

import open_clip
import pytest
import torch

from mobileclip.data.preprocess import image_tensor
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
    plain = image_tensor
    monkeypatch.setattr("mobileclip.training.captioning.image_tensor", lambda *a: plain(*a).double())


@pytest.mark.parametrize(("caption_weight", "contrastive_weight"), [(2.0, 1.0), (1.0, 0.0), (0.0, 1.0)])
def test_loss_and_gradients_equal_open_clip(clip, monkeypatch, caption_weight, contrastive_weight):
    _double(monkeypatch)
    batch = _batch(clip)
    objective = coca_objective(
        clip, World(), total=4, caption_weight=caption_weight, contrastive_weight=contrastive_weight
    )
    ours = objective.criterion(objective.encode(batch), batch)
    output = clip.model(image_tensor(batch["image"], clip.preprocess).double(), batch["text"])
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
        image_tokens = clip.model._encode_image(image_tensor(batch["image"], clip.preprocess).double())[1]
        text_tokens = clip.model._encode_text(batch["text"])[1]
        summed, count = caption_loss(clip.model, image_tokens, text_tokens, batch["text"])
        logits = clip.model.text_decoder(image_tokens, text_tokens).log_softmax(-1)
    expected = 0.0
    for row, caption in zip(range(4), CAPTIONS, strict=True):
        said = [*clip.tokenizer.encode(caption), clip.tokenizer.eot_token_id]
        expected -= sum(logits[row, place, token].item() for place, token in enumerate(said))
    assert count == sum(len(clip.tokenizer.encode(caption)) + 1 for caption in CAPTIONS)
    assert summed.item() == pytest.approx(expected, rel=1e-6)


def test_checkpointing_reaches_the_multimodal_decoder_and_changes_no_gradient(clip):
    """Fewer activations wait for the backward pass than in a plain one; its gradients are equal to the last bit."""
    batch = _batch(clip)
    with torch.no_grad():
        image_tokens = clip.model._encode_image(image_tensor(batch["image"], clip.preprocess).double())[1]
        text_tokens = clip.model._encode_text(batch["text"])[1]
    decoder = clip.model.text_decoder
    kept, gradients = [], []
    for on in (False, True):
        decoder.set_grad_checkpointing(on)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, s=sizes: s.append(x.numel()) or x, lambda x: x):
            summed, _ = caption_loss(clip.model, image_tokens, text_tokens, batch["text"])
        parameters = [p for block in (*decoder.resblocks, *decoder.cross_attn) for p in block.parameters()]
        gradients.append(torch.autograd.grad(summed, parameters))
        kept.append(sum(sizes))
    decoder.set_grad_checkpointing(False)
    assert kept[1] < 0.5 * kept[0]
    assert all(map(torch.equal, *gradients))


@pytest.mark.slow
def test_compiled_towers_compute_the_same():
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        made = zoo.create("tiny-coca")
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        objective = coca_objective(
            made, World(), total=4, caption_weight=2.0, contrastive_weight=1.0, compiled=compiled
        )  # fmt: skip
        batch = _batch(made)
        losses = objective.criterion(objective.encode(batch), batch)
        losses["loss"].backward()
        assert bool(torch._dynamo.utils.counters["stats"]["unique_graphs"]) == compiled
        found.append((float(losses["loss"].detach()), made.model.text.token_embedding.weight.grad))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-4, atol=1e-6)


def test_context_of_the_architecture_is_the_tokenizers():
    config = json.loads((CONFIGS / "tiny-coca.json").read_text())
    assert zoo.create("tiny-coca").tokenizer(["x"]).shape == (1, config["multimodal_cfg"]["context_length"])
