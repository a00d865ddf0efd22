"""Folding keeps every output, leaves the original alone and can be repeated."""

from copy import deepcopy

import pytest
import torch

from mobileclip.models.reparameterize import is_reparameterized, reparameterize
from tests.models.perturbed import patterned_images, perturbed_clip


@pytest.fixture(scope="module", params=["tiny-mci", "MobileCLIP2-S0"])
def clip(request):
    return perturbed_clip(request.param)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@torch.no_grad()
def test_outputs_equal(clip, dtype, limit):
    visual = deepcopy(clip.model.visual).to(dtype)
    images = patterned_images(3, clip.preprocess.size).to(dtype)
    expected = visual(images)
    got = reparameterize(visual)(images)
    assert got.dtype == dtype
    assert torch.linalg.norm(got - expected) / torch.linalg.norm(expected) < limit


@torch.no_grad()
def test_second_call_changes_nothing(clip):
    images = patterned_images(2, clip.preprocess.size)
    once = reparameterize(clip.model)
    twice = reparameterize(once)
    assert torch.equal(once.visual(images), twice.visual(images))
    assert once.state_dict().keys() == twice.state_dict().keys()
    assert twice is not once


def test_original_keeps_its_branches(clip):
    before = set(clip.model.state_dict())
    folded = reparameterize(clip.model)
    assert set(clip.model.state_dict()) == before
    assert not is_reparameterized(clip.model)
    assert is_reparameterized(folded)
    assert not any(module.training for module in folded.modules())


def test_parameters_of_the_published_architecture():
    # 11.407M before, 11.358M after folding (fastvit_mci0 with the 512-wide head).
    visual = perturbed_clip("MobileCLIP2-S0").model.visual
    counts = [sum(p.numel() for p in model.parameters()) for model in (visual, reparameterize(visual))]
    assert [round(count / 1e6, 3) for count in counts] == [11.407, 11.358]


@torch.no_grad()
def test_half_folded_model_is_completed(clip):
    images = patterned_images(2, clip.preprocess.size)
    partly = deepcopy(clip.model.visual)
    next(module for module in partly.modules() if hasattr(module, "reparameterize")).reparameterize()
    torch.testing.assert_close(reparameterize(partly)(images), clip.model.visual(images), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_model_without_branches_is_copied():
    visual = perturbed_clip("tiny-resnet").model.visual
    images = patterned_images(2, 64)
    assert torch.equal(reparameterize(visual)(images), visual(images))
