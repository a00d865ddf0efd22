"""Import this, and open_clip itself loads every student of this project.

    import open_clip
    import mobileclip.models.open_clip_support

    model, preprocess = open_clip.create_model_from_pretrained("local-dir:runs/x/distill/student")
    tokenizer = open_clip.get_tokenizer("local-dir:runs/x/distill/student")

Most students need no such import: their towers are open_clip's and timm's own. It registers the project's image towers
with timm, builds MobileCLIP-S0's text tower, which open_clip does not know, and gives transformers of timm the input
size that their configuration names: open_clip builds them for the size in their name.

The file and the two that it imports use nothing else of this package: `mobileclip push` puts copies beside weights that
need them, as `mobileclip_open_clip_support.py`, `mobileclip_architectures.py` and `mobileclip_text_repmixer.py`.
"""

import functools
import importlib
from typing import Any

import open_clip

_PREFIX = f"{__package__}." if __package__ else "mobileclip_"
_TOWERS = ("resnet10_slim", "fastvit_mci_tiny")
_MARK = "_mobileclip"


def needs_support(config: dict[str, Any]) -> bool:
    """Whether open_clip alone cannot load a checkpoint.

    Args:
        config: Its `model_cfg`.
    """
    vision = config["vision_cfg"]
    own = vision.get("timm_model_name") in _TOWERS or "repmixer" in config["text_cfg"]
    return own or ("timm_model_name" in vision and _is_resized(vision))


def extend() -> None:
    """Teach open_clip the project's towers; calling it again changes nothing."""
    if hasattr(open_clip.model._build_text_tower, _MARK):  # noqa: SLF001 - open_clip has no other way in
        return
    module: Any = importlib.import_module(f"{_PREFIX}architectures")
    module.register()
    build_text, build_vision = open_clip.model._build_text_tower, open_clip.model._build_vision_tower  # noqa: SLF001

    @functools.wraps(build_text)
    def text_tower(embed_dim: int, text_cfg: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(text_cfg, dict) and "repmixer" in text_cfg:
            repmixer: Any = importlib.import_module(f"{_PREFIX}text_repmixer")
            return repmixer.text_repmixer_tower(embed_dim, text_cfg)
        if isinstance(text_cfg, dict) and text_cfg.get("hf_model_name") == "text":
            raise ValueError(
                "text tower: its files lie in the checkpoint's folder 'text', which open_clip cannot find; "
                "load it with mobileclip.models.zoo.load('local-dir:FOLDER')."
            )
        return build_text(embed_dim, text_cfg, *args, **kwargs)

    @functools.wraps(build_vision)
    def vision_tower(embed_dim: int, vision_cfg: Any, *args: Any, **kwargs: Any) -> Any:
        tower = build_vision(embed_dim, vision_cfg, *args, **kwargs)
        size = vision_cfg.get("image_size") if isinstance(vision_cfg, dict) else vision_cfg.image_size
        module.fit_size(tower, size)
        return tower

    setattr(text_tower, _MARK, True)
    open_clip.model._build_text_tower, open_clip.model._build_vision_tower = text_tower, vision_tower  # noqa: SLF001


def _is_resized(vision: dict[str, Any]) -> bool:
    """Whether timm builds the tower for another size than the configuration's."""
    import timm
    import torch

    with torch.device("meta"):
        tower: Any = timm.create_model(vision["timm_model_name"])
    built_for = getattr(getattr(tower, "patch_embed", None), "img_size", None)
    return built_for not in {None, (vision.get("image_size"), vision.get("image_size"))}


extend()
