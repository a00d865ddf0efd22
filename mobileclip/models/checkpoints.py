"""Weights files into models: read without running code, converted from the published layouts, fitted strictly.

Layouts that are known: open_clip's names (`visual.trunk...`, `text...`), as in `mobileclip2_s0.pt` and in every folder
of ours; and Apple's package (`image_encoder.model...`, `text_encoder...`), as in `mobileclip_s0.pt`.
"""

from pathlib import Path
from pickle import UnpicklingError  # what torch.load raises; nothing here unpickles
from typing import Any

import torch
from open_clip.convert import convert_state_dict
from open_clip.factory import load_checkpoint
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models.fastvit import checkpoint_filter_fn

from mobileclip.errors import DataError
from mobileclip.models.text_repmixer import from_published

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
# What torch, safetensors and open_clip raise on files that are cut, foreign or of another shape.
DAMAGE = (
    RuntimeError, OSError, ValueError, KeyError, EOFError, AttributeError, TypeError, UnpicklingError,
    SafetensorError,
)  # fmt: skip
_PACKAGE_FASTVIT = "image_encoder.model.patch_embed.0.rbr_conv.0.conv.weight"
_PACKAGE_VIT = "image_encoder.model.patch_emb.0.block.conv.weight"
_PACKAGE_REPMIXER = "text_encoder.transformer.0.token_mixer.layer_scale"


def fit(model: torch.nn.Module, path: Path, *, name: str) -> None:
    """Load a weights file into a model; every tensor must find its place.

    Args:
        model: Changed in place.
        path: safetensors, or a PyTorch file with tensors alone (it is never unpickled).
        name: Architecture, as the sentence names it.

    Raises:
        DataError: The file is damaged, holds something else, or is of another architecture.
    """
    weights = read(path)
    try:
        if _PACKAGE_REPMIXER in weights:
            model.load_state_dict(_from_package(model, weights), strict=True)
        elif _PACKAGE_FASTVIT in weights:
            model.load_state_dict(convert_state_dict(model, weights), strict=True)
        else:
            load_checkpoint(model, str(path), strict=True)
    except DAMAGE as error:
        reason = first_line(error)
        raise DataError(f"model: '{path.name}' does not fit the architecture {name}: {reason}.") from None


def read(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a weights file by name, without `module.` of parallel training.

    Raises:
        DataError: It is damaged, holds something else than tensors, or a layout that nothing here reproduces.
    """
    loaded: Any
    try:
        if path.suffix == ".safetensors":
            loaded = load_file(str(path))
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
            loaded = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    except DAMAGE as error:
        raise DataError(f"model: '{path.name}' is damaged or holds no weights: {first_line(error)}.") from None
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(v, torch.Tensor) for v in loaded.values()):
        raise DataError(f"model: '{path.name}' holds no weights, want a dictionary of tensors.")
    if _PACKAGE_VIT in loaded:
        # open_clip's conversion fits, but the outputs differ: that stem pads its pictures, timm's does not.
        raise DataError(
            f"model: '{path.name}' has the layout of Apple's own ViT, which timm's does not reproduce; "
            "want MobileCLIP-B with the tag datacompdr or datacompdr_lt."
        )
    return {str(key).removeprefix("module."): value for key, value in loaded.items()}


def first_line(error: Exception) -> str:
    """The first telling line of a library's message, short enough for one sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[min(1, len(lines) - 1)].rstrip(".")[:160] if lines else type(error).__name__


def _from_package(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Apple's MobileCLIP-S0: image half by timm, text half by our names."""
    visual: Any = model.visual
    image = checkpoint_filter_fn(dict(weights), visual.trunk)
    text = from_published({name: value for name, value in weights.items() if name.startswith("text_encoder.")})
    found = {f"visual.trunk.{name}": value for name, value in image.items()}
    return {**found, **{f"text.{name}": value for name, value in text.items()}, "logit_scale": weights["logit_scale"]}
