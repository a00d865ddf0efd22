"""Folding keeps every output, leaves the original alone and can be repeated."""

from copy import deepcopy
from dataclasses import replace

import pytest
import timm
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from mobileclip.models.reparameterize import is_reparameterized, reparameterize
from tests.models.perturbed import patterned_images, perturbed_clip


# Every variant of the first four stages' design; at 128 px, which changes no weight and costs a quarter.
@pytest.fixture(scope="module", params=["tiny-mci", "MobileCLIP-S0", "MobileCLIP-S2"])
def clip(request):
    clip = perturbed_clip(request.param, size=_size(request.param))
    clip.preprocess = replace(clip.preprocess, size=_size(request.param))
    return clip


def _size(name: str) -> int:
    return 64 if name.startswith("tiny") else 128


def _relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float(torch.linalg.norm(got - expected) / torch.linalg.norm(expected))


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@torch.no_grad()
def test_outputs_equal(clip, dtype, limit):
    visual = deepcopy(clip.model.visual).to(dtype)
    images = patterned_images(3, clip.preprocess.size).to(dtype)
    expected = visual(images)
    got = reparameterize(visual)(images)
    assert got.dtype == dtype
    assert _relative(got, expected) < limit


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@torch.no_grad()
def test_text_tower_of_mobileclip_s0_folds_as_well(dtype, limit):
    tower = perturbed_clip("MobileCLIP-S0", size=64).model.text.to(dtype)
    tokens = torch.randint(1, 49_407, (3, 77), generator=torch.Generator().manual_seed(0))
    folded = reparameterize(tower)
    assert not is_reparameterized(tower)
    assert is_reparameterized(folded)
    assert _relative(folded(tokens), tower(tokens)) < limit
    assert torch.equal(reparameterize(folded)(tokens), folded(tokens))
    # Per mixer: a kernel of 11, three batch norms and a layer scale become a kernel and a bias.
    saved = sum(p.numel() for p in tower.parameters()) - sum(p.numel() for p in folded.parameters())
    assert saved == 2 * 512 * (11 + 3 * 2 + 1 - 11 - 1)


@pytest.mark.parametrize("name", ["fastvit_mci1", "fastvit_mci3", "fastvit_mci4"])
@torch.no_grad()
def test_larger_variants_with_one_block_per_stage(name):
    """S1, S3 and S4 at full width: their blocks repeat, so one of each kind shows what all do."""
    torch.manual_seed(0)
    stages = 4 if name == "fastvit_mci1" else 5
    trunk = timm.create_model(name, num_classes=512, layers=(1,) * stages).double().eval()
    for key, value in trunk.named_parameters():
        if key.endswith("gamma"):
            value.uniform_(0.1, 0.5)
    for norm in (m for m in trunk.modules() if isinstance(m, _BatchNorm)):
        norm.running_mean.normal_(std=0.1)
        norm.running_var.uniform_(0.5, 1.5)
    images = patterned_images(2, 128).double()
    folded = reparameterize(trunk)
    assert _relative(folded(images), trunk(images)) < 1e-12
    assert torch.equal(reparameterize(folded)(images), folded(images))


@torch.no_grad()
def test_second_call_changes_nothing(clip):
    images = patterned_images(2, clip.preprocess.size)
    once = reparameterize(clip.model)
    twice = reparameterize(once)
    assert is_reparameterized(once)
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
