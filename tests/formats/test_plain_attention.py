"""Attention rewritten for phones: equal to the published form, and no tensor of more than four axes."""

import open_clip
import pytest
import timm
import torch
from open_clip.modified_resnet import AttentionPool2d, ModifiedResNet
from timm.layers import Attention, AttentionPoolLatent
from timm.models import fastvit
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mobileclip.formats.export_job import trace
from mobileclip.formats.plain_attention import spell_attention
from mobileclip.formats.towers import split
from mobileclip.models import zoo
from mobileclip.models.published import VARIANTS

PUBLISHED = sorted({variant.architecture for variant in VARIANTS.values()})


class _Ranks(TorchDispatchMode):
    """The largest rank among all results."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.largest = max([self.largest, *(tensor.ndim for tensor in tensors)])
        return result


def _largest_rank(module, *inputs):
    with torch.no_grad(), _Ranks() as ranks:
        module(*inputs)
    return ranks.largest


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_students_have_no_tensor_above_rank_4(name):
    """By shapes alone: the largest of them would not fit beside the other tests."""
    with torch.device("meta"):
        clip = zoo.create(name)
        towers = split(clip)
        size = clip.preprocess.size
        assert _largest_rank(towers.image, torch.rand(2, 3, size, size)) == 4
        tokens = torch.zeros(2, clip.model.context_length, dtype=torch.int32)
        assert _largest_rank(towers.text, tokens) <= 4
        before = _largest_rank(clip.model.visual.eval(), torch.rand(2, 3, size, size))
        assert before > 4, "timm packs the heads no longer: the rewrite may go"


_SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 8}
_FEW = {"layers": (1, 1, 1, 1, 1), "num_classes": 8}
TOWERS = {
    "S0": (64, lambda: timm.create_model("fastvit_mci0", num_classes=8)),
    "S2": (64, lambda: timm.create_model("fastvit_mci2", num_classes=8)),
    "S3": (64, lambda: timm.create_model("fastvit_mci3", **_FEW)),
    "B": (224, lambda: timm.create_model("vit_base_mci_224", depth=1, num_classes=8)),
    "L-14": (28, lambda: timm.create_model("vit_large_patch14_clip_224", img_size=28, **_SMALL)),
    "SigLIP": (32, lambda: timm.create_model("vit_base_patch16_siglip_224", img_size=32, **_SMALL)),
    "ResNet": (32, lambda: ModifiedResNet([1, 1, 1, 1], output_dim=8, heads=2, image_size=32, width=8)),
    "open_clip ViT": (32, lambda: open_clip.transformer.VisionTransformer(32, 16, 32, 2, 2, 2.0, output_dim=8)),
}
_PACKED = (Attention, fastvit.Attention, AttentionPoolLatent, AttentionPool2d, nn.MultiheadAttention)


@pytest.mark.parametrize("name", TOWERS)
@torch.no_grad()
def test_the_rewrite_equals_the_tower(name):
    size, build = TOWERS[name]
    torch.manual_seed(0)
    tower = build().eval()
    for key, parameter in tower.named_parameters():
        if key.endswith(("gamma", "latent", "bias", "positional_embedding")):
            parameter.uniform_(-0.5, 0.5)
    calls: dict[str, tuple[tuple, object]] = {}
    for key, module in tower.named_modules():
        if isinstance(module, _PACKED):
            module.register_forward_hook(lambda _, given, got, key=key: calls.update({key: (given, got)}))
    images = torch.rand(3, 3, size, size)
    wanted = tower(images)
    for key, (given, _) in calls.items():  # a fresh tower tells images apart by too little: each attention gets noise
        drawn = [torch.randn_like(given[0])] * len(given)
        calls[key] = (drawn, _call(tower.get_submodule(key), drawn))
    plain = spell_attention(tower)
    assert calls
    assert not any(isinstance(module, _PACKED) for module in plain.modules())
    for key, (given, got) in calls.items():
        assert got.std(0).max() > 1e-2
        torch.testing.assert_close(_call(plain.get_submodule(key), given), got, atol=1e-5, rtol=0)
    torch.testing.assert_close(plain(images), wanted, atol=1e-5, rtol=1e-5)
    assert _largest_rank(plain, images) <= 4
    trace(plain, images, batch=0)  # any number of rows


def _call(module, given):
    """Attention as its tower calls it; torch's own gives its weights, too, unless told."""
    if len(given) == 3:
        return module(*given, need_weights=False)[0]
    return module(*given)


@torch.no_grad()
def test_gates_norms_and_foreign_subclasses():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 16)
    block = nn.Sequential(Attention(16, 2, gated=True, scale_norm=True, qk_norm=True, norm_layer=nn.LayerNorm)).eval()
    wanted = block(x)
    torch.testing.assert_close(spell_attention(block)(x), wanted, atol=1e-6, rtol=0)

    class Changed(Attention):
        def forward(self, x):
            return super().forward(x) + 1

    other = nn.Sequential(Changed(16, 2)).eval()
    wanted = other(x)
    assert torch.equal(spell_attention(other)(x), wanted)
