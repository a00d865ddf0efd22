"""Captioners with another context: what fits into both is read and written as before."""

import pytest
import torch

from mobileclip.data.preprocess import image_tensor
from mobileclip.models import zoo
from mobileclip.models.context import context_length, with_context
from mobileclip.models.generation import Sampling, check, generate, specials_of

CAPTIONS = ["a red circle", "a picture of a blue square on white", "cross"]
LONG = "a red circle beside a blue square above a green triangle " * 5


@pytest.fixture(scope="module")
def clip() -> zoo.Clip:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made = zoo.create("tiny-coca")
    with torch.no_grad():  # else positions are too much alike for a wrong one to be seen
        made.model.text.positional_embedding.normal_()
    return made


@torch.no_grad()
def _read(clip: zoo.Clip, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embedding, tokens of the words, and logits of the next words: [3, d], [3, 12, w], [3, 12, v]."""
    embedding, tokens = clip.model._encode_text(clip.tokenizer(texts))
    pixels = torch.randint(256, (len(texts), 3, 64, 64), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    image_tokens = clip.model._encode_image(image_tensor(pixels, clip.preprocess))[1]
    return embedding, tokens[:, :12], clip.model.text_decoder(image_tokens, tokens)[:, :12]


@pytest.mark.parametrize("length", [20, 33, 100])
def test_captions_that_fit_are_read_as_before(clip, length):
    other = with_context(clip, length)
    assert (context_length(clip), context_length(other)) == (32, length)
    assert other.tokenizer(["x"]).shape == (1, length)
    for now, before in zip(_read(other, CAPTIONS), _read(clip, CAPTIONS), strict=True):
        torch.testing.assert_close(now, before, rtol=1e-4, atol=1e-5)


def test_words_beyond_the_old_context_are_seen(clip):
    long = with_context(clip, 100)
    texts = [LONG, LONG.replace("green", "black").replace("black", "green", 3)]  # differ behind the 32nd token
    assert torch.equal(*clip.tokenizer(texts).split(1))
    first, second = long.model._encode_text(long.tokenizer(texts))[0]
    assert float((first - second).abs().max()) > 1e-3


def test_it_writes_more_and_comes_back_from_disk(clip, tmp_path):
    long = with_context(clip, 100)
    zoo.save(str(tmp_path), long, license="CC0-1.0", card={})
    loaded = zoo.load(f"local-dir:{tmp_path}")
    assert context_length(loaded) == 100
    sampling = Sampling("greedy", min_tokens=90, max_tokens=100)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    written = []
    for one in (long, loaded):
        check(one, sampling)
        draws = torch.zeros(1, 1, 100, dtype=torch.float64)
        written.append(generate(one.model, images, draws, sampling=sampling, specials=specials_of(one)))
    assert torch.equal(*written)
    assert int((written[0] != 0).sum()) >= 90
