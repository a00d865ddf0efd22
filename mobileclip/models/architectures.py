"""The architectures that are ours, registered with timm and open_clip so that both create them by name."""

from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from timm.models import register_model
from timm.models.fastvit import FastVit, RepConditionalPosEnc
from timm.models.resnet import BasicBlock, ResNet

CONFIGS = Path(__file__).parent / "configs"


@register_model
def resnet10_slim(pretrained: bool = False, **kwargs: Any) -> torch.nn.Module:
    """A ten-layer residual network of half width: what a small teacher trained from scratch looks at pictures with.

    Args:
        pretrained: Must be false: there are no published weights.
        kwargs: timm's usual ones.
    """
    _check(pretrained, kwargs)
    model = ResNet(
        BasicBlock, layers=(1, 1, 1, 1), channels=(32, 64, 128, 256), stem_width=16, stem_type="deep", **kwargs
    )
    model.default_cfg = model.pretrained_cfg = {"architecture": "resnet10_slim", "pool_size": (2, 2)}
    return model


@register_model
def fastvit_mci_tiny(pretrained: bool = False, **kwargs: Any) -> torch.nn.Module:
    """MCi0's design (MobileCLIP section 4.1) with narrow, shallow stages: 64 px pictures on one CPU core.

    Args:
        pretrained: Must be false: there are no published weights.
        kwargs: timm's usual ones (`num_classes`, `drop_path_rate`, ...).
    """
    _check(pretrained, kwargs)
    model = FastVit(
        layers=(1, 1, 1, 1),
        embed_dims=(24, 48, 96, 192),
        mlp_ratios=(3, 3, 3, 3),
        pos_embs=(None, None, None, partial(RepConditionalPosEnc, spatial_shape=(3, 3))),
        token_mixers=("repmixer", "repmixer", "repmixer", "attention"),
        lkc_use_act=True,
        # timm starts residual branches at 1e-5, for deep towers and long runs: four blocks trained for a few hundred
        # steps would stay shut.
        layer_scale_init_value=1.0,
        **kwargs,
    )
    model.default_cfg = model.pretrained_cfg = {"architecture": "fastvit_mci_tiny", "pool_size": (2, 2)}
    return model


def fit_size(visual: Any, size: Any) -> None:
    """Give timm's vision transformers the configured input size [pixels]; other towers take any."""
    trunk: Any = getattr(visual, "trunk", None)
    built_for = getattr(getattr(trunk, "patch_embed", None), "img_size", None)
    if isinstance(size, int) and built_for not in {None, (size, size)} and hasattr(trunk, "set_input_size"):
        trunk.set_input_size(img_size=(size, size))


def _check(pretrained: bool, kwargs: dict[str, Any]) -> None:
    if pretrained:
        raise ValueError("pretrained: got True, the project's own architectures have no published weights.")
    for name in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):  # of use to timm's own builder only
        kwargs.pop(name, None)


def register() -> None:
    """Make the project's own names known to open_clip; calling it again changes nothing."""
    if not set(own_names()) <= set(open_clip.list_models()):
        open_clip.add_model_config(CONFIGS)


def own_names() -> list[str]:
    """Names of the project's own architectures."""
    return sorted(path.stem for path in CONFIGS.glob("*.json"))
