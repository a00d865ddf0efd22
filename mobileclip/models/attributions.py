"""Whom a model owes: itself as it is published, and what its card says that it was made from."""

from typing import Literal

import open_clip

from mobileclip.lineage import attribution
from mobileclip.manifest import Attribution
from mobileclip.models.published import VARIANTS
from mobileclip.models.zoo import Clip

_HUB = "https://huggingface.co/"


def attributions(
    clip: Clip, kind: Literal["captioner", "teacher", "weights"], name: str = "", *, license: str = ""
) -> list[Attribution]:
    """The model first, then what its card records.

    Args:
        clip: The model.
        kind: What it was to what is made with it.
        name: For one that is published nowhere; empty = by the digest of its weights, for paths differ.
        license: Empty = the one recorded with it.

    Raises:
        IntegrityError: Its card is damaged.
    """
    is_local = clip.name.partition(":")[0] in {"local-dir", "trained"}
    called = (name or f"weights {clip.sha256[:12]}") if is_local else clip.name
    own = Attribution(kind=kind, name=called, license=license or clip.license, url="" if is_local else page(clip.name))
    return attribution.merged([own], attribution.of_card(clip.card))


def page(name: str) -> str:
    """Web page of published weights: of `hf-hub:OWNER/NAME`, `MODEL/TAG`, or the file of a variant; else empty."""
    if name.startswith("hf-hub:"):
        return _HUB + name.removeprefix("hf-hub:")
    model, _, tag = name.rpartition("/")
    if name in VARIANTS:
        return _HUB + VARIANTS[name].hub
    architecture = VARIANTS[model].architecture if model in VARIANTS else model
    repository = str((open_clip.get_pretrained_cfg(architecture, tag) or {}).get("hf_hub", "")).strip("/")
    return _HUB + "/".join(repository.split("/")[:2]) if repository else ""
