"""What is published under which name: architecture, normalization, weights and their license.

open_clip gives a local file, or a model without a tag, OpenAI's mean and standard deviation whatever it is. Most
MobileCLIP models were trained on plain 0-1 pixels, so everything that is known of a published name stands here, and
what is not known is refused rather than guessed. Sources: open_clip's `pretrained.py`, Apple's model README
(arXiv 2311.17049, 2508.20691).
"""

from dataclasses import dataclass
from typing import Any

import open_clip

from mobileclip.errors import DataError

Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]

PLAIN: Statistics = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
OPENAI: Statistics = (tuple(open_clip.OPENAI_DATASET_MEAN), tuple(open_clip.OPENAI_DATASET_STD))
APPLE_LICENSE = "apple-amlr"
OPEN_CLIP_RESIZE = "shortest"
"""What open_clip does with weights whose configuration names no `resize_mode`."""


@dataclass(frozen=True)
class Variant:
    """One published MobileCLIP model.

    Attributes:
        architecture: Configuration name, of open_clip or of the project.
        tag: Tag of the published weights.
        hub: Hub repository with the weights in Apple's own layout, `mobileclip_s0.pt`.
        statistics: Mean and standard deviation of the pixels.
        interpolation: Of the resizing.
        resize: open_clip's `resize_mode`: all of them saw the shorter side scaled and the center cropped.
        stated: Whether the publisher says which normalization the weights want.
    """

    architecture: str
    tag: str
    hub: str
    statistics: Statistics = PLAIN
    interpolation: str = "bilinear"
    resize: str = "shortest"
    stated: bool = True


def _first(size: str, *, architecture: str = "", tag: str = "datacompdr", **known: Any) -> Variant:
    return Variant(architecture or f"MobileCLIP-{size}", tag, f"apple/MobileCLIP-{size}", **known)


def _second(size: str, **known: Any) -> Variant:
    return Variant(f"MobileCLIP2-{size}", "dfndr2b", f"apple/MobileCLIP2-{size}", **known)


VARIANTS: dict[str, Variant] = {
    "MobileCLIP-S0": _first("S0"),
    "MobileCLIP-S1": _first("S1"),
    "MobileCLIP-S2": _first("S2"),
    "MobileCLIP-B": _first("B"),
    "MobileCLIP-B-LT": _first("B-LT", architecture="MobileCLIP-B", tag="datacompdr_lt"),
    # MobileCLIP's recipe on MobileCLIP2's architectures; their normalization is stated nowhere.
    "MobileCLIP-S3": _first("S3", architecture="MobileCLIP2-S3", statistics=OPENAI, stated=False),
    "MobileCLIP-S4": _first("S4", architecture="MobileCLIP2-S4", statistics=OPENAI, stated=False),
    "MobileCLIP-L-14": _first(
        "L-14", architecture="MobileCLIP2-L-14", statistics=OPENAI, interpolation="bicubic", stated=False
    ),
    "MobileCLIP2-S0": _second("S0"),
    "MobileCLIP2-S2": _second("S2"),
    "MobileCLIP2-B": _second("B"),
    "MobileCLIP2-S3": _second("S3", statistics=OPENAI),
    "MobileCLIP2-S4": _second("S4", statistics=OPENAI),
    "MobileCLIP2-L-14": _second("L-14", statistics=OPENAI, interpolation="bicubic"),
}

# Owners of the hub repositories that open_clip's tags and Apple's README name.
_PUBLISHERS = ("apple", "timm")

# By the start of a weights tag or the owner of a hub name; a card on the hub that says otherwise comes first.
_LICENSES = (
    ("datacompdr", APPLE_LICENSE),
    ("dfn", APPLE_LICENSE),
    ("apple/", APPLE_LICENSE),
    ("timm/mobileclip", APPLE_LICENSE),
    ("openai", "MIT"),
    ("laion", "MIT"),
    ("mscoco_finetuned_laion", "MIT"),
    ("datacomp", "MIT"),
    ("commonpool", "MIT"),
    ("metaclip", "CC-BY-NC-4.0"),
    ("webli", "Apache-2.0"),
    ("timm/vit_pe", "Apache-2.0"),
)


def license_of(name: str) -> str:
    """License of published weights by tag (`dfndr2b`) or hub name (`apple/MobileCLIP2-S0`); else `unknown`.

    Apple's weights, CoCa captioners included, are for research only, and so is what is made from them.
    """
    lowered = name.lower()
    return next((license_ for start, license_ in _LICENSES if lowered.startswith(start)), "unknown")


def variant_of_hub(repository: str) -> str:
    """Published architecture that a hub repository of its publishers holds; empty for all others.

    That is a variant, or one of Apple's CoCa captioners with open_clip's own context. Whoever else takes such a name
    may have trained anything under it: what counts is what their repository states.
    """
    owner, _, name = repository.rpartition("/")
    if owner not in _PUBLISHERS:
        return ""
    name = name.removesuffix("-OpenCLIP")
    if owner == "apple" and name.startswith("mobileclip2_coca_") and name.endswith("context77"):
        return "coca_ViT-L-14"
    return name if name in VARIANTS else ""


def statistics_of_file(model: str) -> tuple[Statistics, str, str] | None:
    """Normalization, interpolation and resize mode of a local file with weights of `model`; None where unknown.

    A published variant has its own; of another architecture it is known only when all its published weights agree.
    """
    if model in VARIANTS:
        variant = VARIANTS[model]
        return (variant.statistics, variant.interpolation, variant.resize) if variant.stated else None
    found = set()
    for tag in open_clip.list_pretrained_tags_by_model(model):
        config = open_clip.get_pretrained_cfg(model, tag)
        mean, std = config.get("mean") or OPENAI[0], config.get("std") or OPENAI[1]
        resize = config.get("resize_mode") or OPEN_CLIP_RESIZE
        found.add((tuple(mean), tuple(std), config.get("interpolation") or "bicubic", resize))
    if len(found) != 1:
        return None
    mean, std, interpolation, resize = found.pop()
    return (mean, std), interpolation, resize


def quick_gelu_of_file(model: str) -> bool | None:
    """Whether a local file with weights of architecture `model` was trained with QuickGELU; None where unknown.

    A published variant was not; of another architecture it is known only when all its published weights agree, and do
    not contradict a configuration that asks for it.
    """
    if model in VARIANTS:
        return False
    tags = open_clip.list_pretrained_tags_by_model(model)
    found = {bool(open_clip.get_pretrained_cfg(model, tag).get("quick_gelu", False)) for tag in tags}
    if (open_clip.get_model_config(model) or {}).get("quick_gelu", False):
        found.add(True)
    return found.pop() if len(found) == 1 else None


def known_of_file(model: str, file: str) -> tuple[Statistics, str, str, bool]:
    """Normalization, interpolation, resize mode and QuickGELU of a local file with weights of architecture `model`.

    Args:
        model: Architecture.
        file: The file, as the sentence names it.

    Raises:
        DataError: One of them is not known.
    """
    found, quick_gelu = statistics_of_file(model), quick_gelu_of_file(model)
    if found is None:
        raise DataError(
            f"model: nothing says which normalization '{file}' of architecture '{model}' wants; want a local-dir: "
            "folder with open_clip_config.json whose preprocess_cfg names mean, std and interpolation."
        )
    if quick_gelu is None:
        explicit = f"{model}-quickgelu"
        choice = f"architecture '{explicit}' where it was, else " if explicit in open_clip.list_models() else ""
        raise DataError(
            f"model: nothing says whether '{file}' of architecture '{model}' was trained with QuickGELU; want {choice}"
            "a local-dir: folder with open_clip_config.json whose model_cfg names quick_gelu."
        )
    return *found, quick_gelu
