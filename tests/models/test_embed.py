"""Embedding under a shortage of memory and in bfloat16: what comes out must not depend on how it was cut."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from mobileclip.errors import MobileClipError
from mobileclip.models.embed import embed_pixels, embed_texts
from tests.models.perturbed import patterned_images, perturbed_clip

TEXTS = [f"text number {index}" for index in range(11)] + ["text number 3"] * 2


class Narrow(nn.Module):
    """A model on a device with too little memory: batches above `most` end as CUDA's allocator ends them."""

    def __init__(self, model: nn.Module, most: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        super().__init__()
        self.inner, self.most, self.error = model, most, error
        self.sizes: list[int] = []
        self.logit_scale = model.logit_scale

    def _take(self, batch: torch.Tensor) -> None:
        self.sizes.append(len(batch))
        if len(batch) > self.most:
            raise self.error("CUDA out of memory. [enforce fail] DefaultCPUAllocator: can't allocate memory")

    def encode_image(self, images, *, normalize):
        self._take(images)
        return self.inner.encode_image(images, normalize=normalize)

    def encode_text(self, tokens, *, normalize):
        self._take(tokens)
        return self.inner.encode_text(tokens, normalize=normalize)


@pytest.fixture(scope="module")
def clip():
    return perturbed_clip("tiny-mci")


@pytest.fixture(scope="module")
def pixels():
    return (patterned_images(11, 64) * 255).to(torch.uint8)


def _narrow(clip, most, error=torch.OutOfMemoryError):
    return replace(clip, model=Narrow(clip.model, most, error))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_a_batch_that_does_not_fit_is_halved_and_nothing_is_lost(clip, pixels, error):
    narrow = _narrow(clip, 3, error)
    found = embed_pixels(narrow, pixels, batch_size=8)
    torch.testing.assert_close(found, embed_pixels(clip, pixels, batch_size=8), atol=1e-5, rtol=0)
    assert narrow.model.sizes == [8, 4, 2, 2, 2, 2, 2, 1]
    narrow.model.sizes.clear()
    embed_pixels(narrow, pixels[:5], batch_size=8)
    assert narrow.model.sizes == [2, 2, 1]  # remembered
    narrow.model.sizes.clear()
    texts = embed_texts(narrow, TEXTS, batch_size=8)
    assert narrow.model.sizes == [8, 4, 2, 2, 2, 2, 2, 1]  # texts have a limit of their own; 11 distinct ones
    torch.testing.assert_close(texts, embed_texts(clip, TEXTS, batch_size=8), atol=1e-5, rtol=0)
    assert torch.equal(texts[3], texts[-1])


def test_a_single_picture_that_does_not_fit_is_one_sentence(clip, pixels):
    with pytest.raises(
        MobileClipError, match=r"^memory: 'tiny-mci' cannot embed even one of the pictures: CUDA out of memory\. "
    ):
        embed_pixels(_narrow(clip, 0), pixels, batch_size=4)


def test_other_errors_are_not_taken_for_a_lack_of_memory(clip):
    with pytest.raises(RuntimeError, match="size"):
        embed_pixels(clip, torch.zeros(2, 5, 64, 64, dtype=torch.uint8), batch_size=2)


def test_bfloat16_runs_the_towers_in_it_and_stays_close(clip, pixels):
    seen: set[torch.dtype] = set()
    watched = [m for m in clip.model.modules() if isinstance(m, nn.Linear)]
    hooks = [m.register_forward_hook(lambda _m, _i, output: seen.add(output.dtype)) for m in watched]
    half = embed_pixels(clip, pixels, batch_size=4, precision="bfloat16")
    half_texts = embed_texts(clip, TEXTS, batch_size=4, precision="bfloat16")
    for hook in hooks:
        hook.remove()
    assert torch.bfloat16 in seen
    for found, whole in (
        (half, embed_pixels(clip, pixels, batch_size=4)),
        (half_texts, embed_texts(clip, TEXTS, batch_size=4)),
    ):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.norm(dim=1), torch.ones(len(found)), atol=1e-6, rtol=0)
        assert not torch.equal(found, whole)
        assert float((found * whole).sum(dim=1).min()) > 0.99


def test_the_memory_layout_of_pixels_changes_nothing(clip, pixels):
    last = pixels.contiguous(memory_format=torch.channels_last)
    assert torch.equal(embed_pixels(clip, last, batch_size=4), embed_pixels(clip, pixels, batch_size=4))
