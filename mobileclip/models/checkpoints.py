"""Weights files into models: read without running code, converted from the published layouts, fitted strictly.

Layouts that are known: open_clip's names (`visual.trunk...`, `text...`), as in `mobileclip2_s0.pt` and in every folder
of ours; and Apple's package (`image_encoder.model...`, `text_encoder...`), as in `mobileclip_s0.pt`. What training
tools put around them is taken off: `state_dict`, `model_state_dict` or `model` around the tensors; `module.`,
`_orig_mod.` and `model.` before their names.
"""

import re
import zipfile
from pathlib import Path
from pickle import UnpicklingError  # what torch.load raises; nothing here unpickles
from typing import Any

import torch
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models.fastvit import checkpoint_filter_fn

from mobileclip.errors import DataError, MobileClipError
from mobileclip.models.text_repmixer import from_published

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
# What torch, safetensors and open_clip raise on files that are cut, foreign or of another shape.
DAMAGE = (
    RuntimeError, OSError, ValueError, KeyError, EOFError, AttributeError, TypeError, UnpicklingError,
    SafetensorError, MemoryError,
)  # fmt: skip
_PACKAGE_FASTVIT = "image_encoder.model.patch_embed.0.rbr_conv.0.conv.weight"
_PACKAGE_VIT = "image_encoder.model.patch_emb.0.block.conv.weight"
_PACKAGE_REPMIXER = "text_encoder.transformer.0.token_mixer.layer_scale"
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "model.")
_OBJECT = re.compile(r"Unsupported (?:global: GLOBAL|class) (\S+)")
_SHORTAGE = ("can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory")

Weights = dict[str, torch.Tensor]


def fit(model: torch.nn.Module, path: Path, *, name: str) -> None:
    """Load a weights file into a model; every tensor must find its place.

    Args:
        model: Changed in place.
        path: safetensors, or a PyTorch file with tensors alone (it is never unpickled).
        name: Architecture, as the sentence names it.

    Raises:
        DataError: The file is damaged, holds something else, or is of another architecture.
        MobileClipError: It does not fit into memory.
    """
    weights = read(path)
    try:
        if _PACKAGE_REPMIXER in weights:
            weights = _from_package(model, weights)
        elif _PACKAGE_FASTVIT in weights:
            weights = convert_state_dict(model, weights)
        else:
            weights = _adapted(model, weights)
        model.load_state_dict(weights, strict=True)
    except DAMAGE as error:
        refuse_shortage(error, path.name)
        reason = _folded(model, weights) or first_line(error)
        raise DataError(f"model: '{path.name}' does not fit the architecture {name}: {reason}.") from None


def read(path: Path) -> Weights:
    """Tensors of a weights file by name, without the prefixes of training tools.

    Raises:
        DataError: It is damaged, holds something else than tensors, or a layout that nothing here reproduces.
        MobileClipError: It does not fit into memory.
    """
    loaded: Any
    try:
        loaded = load_file(str(path)) if path.suffix == ".safetensors" else _read_torch(path)
    except DAMAGE as error:
        refuse_shortage(error, path.name)
        raise DataError(f"model: '{path.name}' is damaged or holds no weights: {first_line(error)}.") from None
    loaded = _unwrapped(loaded, path)
    if _PACKAGE_VIT in loaded:
        # open_clip's conversion fits, but the outputs differ: that stem pads its pictures, timm's does not.
        raise DataError(
            f"model: '{path.name}' has the layout of Apple's own ViT, which timm's does not reproduce; "
            "want MobileCLIP-B with the tag datacompdr or datacompdr_lt."
        )
    return loaded


def first_line(error: Exception) -> str:
    """The first telling line of a library's message, short enough for one sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[min(1, len(lines) - 1)].rstrip(".")[:160] if lines else type(error).__name__


def is_shortage(error: BaseException) -> bool:
    """Whether an error says that memory is short; the CPU's allocator raises a plain RuntimeError."""
    said = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(part in said for part in _SHORTAGE)


def refuse_shortage(error: BaseException, name: str) -> None:
    """Nothing where an error is about something else than memory.

    Raises:
        MobileClipError: Memory is short for what `name` says.
    """
    if is_shortage(error):
        reason = " ".join(str(error).split()).rstrip(".")[:200] or type(error).__name__
        raise MobileClipError(f"memory: '{name}' cannot be loaded, there is too little of it: {reason}.") from None


def _read_torch(path: Path) -> Any:
    """What a PyTorch file holds, by torch's restricted loader.

    Raises:
        DataError: It holds compressed parts, or objects that would have to be unpickled.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        # torch stores tensors as they are; what is packed, or overlaps, expands to any size.
        packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise DataError(f"model: '{path.name}' holds compressed parts, want a file as torch.save writes it.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        found = _OBJECT.search(str(error))
        if found is None:
            raise
        raise DataError(
            f"model: '{path.name}' holds a {found[1].rstrip('.')} beside its tensors, which is not loaded as it could "
            "run code; want the tensors alone, as torch.save(model.state_dict(), file) writes them."
        ) from None


def _unwrapped(loaded: Any, path: Path) -> Weights:
    """The tensors by their own names.

    Raises:
        DataError: There is something else among them, or nothing.
    """
    while isinstance(loaded, dict) and (key := next((k for k in _WRAPPERS if isinstance(loaded.get(k), dict)), "")):
        loaded = loaded[key]
    if not isinstance(loaded, dict) or not loaded:
        raise DataError(f"model: '{path.name}' holds no weights, want a dictionary of tensors.")
    other = next((key for key, value in loaded.items() if not isinstance(value, torch.Tensor)), None)
    if other is not None:
        kind = type(loaded[other]).__name__
        raise DataError(f"model: '{path.name}' holds no weights: '{other}' is a {kind}, want a dictionary of tensors.")
    weights = {str(key).replace("_orig_mod.", ""): value for key, value in loaded.items()}
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in weights)), ""):
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights


def _adapted(model: Any, weights: Weights) -> Weights:
    """As open_clip's `load_checkpoint` does: older names and shapes to those of this model."""
    weights = convert_state_dict(model, weights)
    if "positional_embedding" in weights and not hasattr(model, "positional_embedding"):
        weights = convert_to_custom_text_state_dict(weights)
    for key in ("logit_scale", "logit_bias"):
        own = getattr(model, key, None)
        if key in weights and own is not None and weights[key].ndim != own.ndim:
            weights[key] = weights[key].reshape(own.shape)
    if "logit_bias" not in weights and getattr(model, "logit_bias", None) is not None:
        weights["logit_bias"] = torch.zeros_like(weights["logit_scale"])
    weights.pop("text.transformer.embeddings.position_ids", None)  # a buffer of older transformers
    resize_pos_embed(weights, model)
    resize_text_pos_embed(weights, model)
    return weights


def _folded(model: torch.nn.Module, weights: Weights) -> str:
    """The reason, where weights are those of an inference model whose branches were folded into one."""
    folded = any("reparam" in key for key in weights) and not any("reparam" in key for key in model.state_dict())
    return "its branches are folded for inference, want the weights as they were trained" if folded else ""


def _from_package(model: torch.nn.Module, weights: Weights) -> Weights:
    """Apple's MobileCLIP-S0: image half by timm, text half by our names."""
    visual: Any = model.visual
    image = checkpoint_filter_fn(dict(weights), visual.trunk)
    text = from_published({name: value for name, value in weights.items() if name.startswith("text_encoder.")})
    found = {f"visual.trunk.{name}": value for name, value in image.items()}
    return {**found, **{f"text.{name}": value for name, value in text.items()}, "logit_scale": weights["logit_scale"]}
