"""Fold FastViT's training-time branches into single convolutions (MobileCLIP section 4.1; MobileOne, RepVGG)."""

from copy import deepcopy
from typing import Any

import torch


def reparameterize(model: torch.nn.Module) -> torch.nn.Module:
    """A copy of a model in eval mode whose foldable branches are one convolution each.

    The algebra is timm's own: every block that offers `fuse` or `reparameterize` does it itself. timm's walker fails
    on a model that was folded before; this one passes over folded blocks, so calling it again changes nothing.

    Args:
        model: Any CLIP or image tower, on any device, in any floating-point type; left as it is.

    Returns:
        The copy. Its outputs equal those of `model.eval()` up to rounding; a model without branches is only copied.
    """
    folded = deepcopy(model).eval()
    _fold(folded)
    return folded.eval()  # blocks made while folding come in training mode


def is_reparameterized(model: torch.nn.Module) -> bool:
    """Whether no foldable branch is left."""
    return not any(_is_foldable(module) for module in model.modules())


def _fold(parent: torch.nn.Module) -> None:
    children: list[tuple[str, Any]] = list(parent.named_children())
    for name, child in children:
        if hasattr(child, "fuse"):
            setattr(parent, name, child.fuse())
        elif _is_foldable(child):
            child.reparameterize()
        _fold(getattr(parent, name))


def _is_foldable(module: torch.nn.Module) -> bool:
    if hasattr(module, "fuse"):
        return True
    return hasattr(module, "reparameterize") and getattr(module, "reparam_conv", None) is None
