"""A captioner with another context length: longer captions than its weights were trained on, or shorter ones."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mobileclip.models.building import build, build_tokenizer
from mobileclip.models.clip import Clip

_POSITIONS = "text.positional_embedding"


def context_length(clip: Clip) -> int:
    """Tokens of the longest caption, start and end included."""
    return min(int(clip.config["text_cfg"].get("context_length", 77)), int(clip.model.context_length))  # type: ignore[arg-type]


def with_context(clip: Clip, length: int) -> Clip:
    """The same captioner for captions of `length` tokens.

    Positions that are there keep their embeddings, further ones start fresh: what the captioner says and sees of
    captions that fit into the old context is what it was. (Stretching the old ones over the new length, as open_clip
    does with text towers, would move every word to a place where it was not trained, and the summary token, which has
    the last row, among the words.)

    Args:
        clip: A CoCa; left as it is.
        length: Tokens, start and end included.
    """
    config: dict[str, Any] = deepcopy(clip.config)
    for part in ("text_cfg", "multimodal_cfg"):
        config[part]["context_length"] = length
    model = build(config)
    weights = dict(clip.model.state_dict())
    # `[-1]` of a tower with `embed_cls` is the place of its summary token, behind all words.
    last = int(bool(config["text_cfg"].get("embed_cls")))
    weights[_POSITIONS] = _resized(weights[_POSITIONS], model.state_dict()[_POSITIONS], last)
    model.load_state_dict(weights)
    return replace(clip, model=model, config=config, tokenizer=build_tokenizer(config))


def _resized(trained: Tensor, fresh: Tensor, last: int) -> Tensor:
    """`fresh` [new, width] with the rows of `trained` [old, width]: the first ones, and the `last` ones at the end."""
    kept = min(len(trained), len(fresh)) - last
    return torch.cat([trained[:kept], fresh[kept : len(fresh) - last], trained[len(trained) - last :]])
