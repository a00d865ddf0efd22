"""The table of `mobileclip models`: size, input and normalization of MobileCLIP and of the project's own models."""

from typing import Any

import open_clip
import torch

from mobileclip.models import zoo
from mobileclip.models.architectures import own_names, register
from mobileclip.models.reparameterize import reparameterize


def describe_models() -> list[tuple[Any, ...]]:
    """Rows of (name, image M, text M, total M, size, context, mean/std) for models that can be created here.

    Parameters are counted after reparameterization, on models without storage, so that no weights are allocated.
    """
    register()
    names = [name for name in open_clip.list_models() if name.startswith("MobileCLIP")] + own_names()
    return [_describe(name) for name in names]


def _describe(name: str) -> tuple[Any, ...]:
    config = zoo.architecture(name)
    preprocess = zoo.default_preprocess(name, config)
    if "hf_model_name" in config["text_cfg"]:
        return (name, "-", "-", "-", preprocess.size, config["text_cfg"]["context_length"], "needs text weights")
    model: Any = zoo.create(name).model
    image = _millions(reparameterize(model.visual))
    total = image + _millions(model) - _millions(model.visual)
    plain = preprocess.mean == (0.0, 0.0, 0.0)
    context = config["text_cfg"].get("context_length", 77)
    return (
        name, f"{image:.1f}", f"{total - image:.1f}", f"{total:.1f}", preprocess.size, context,
        "0 / 1" if plain else "own" if preprocess.mean == (0.5, 0.5, 0.5) else "OpenAI",
    )  # fmt: skip


def _millions(module: torch.nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6
