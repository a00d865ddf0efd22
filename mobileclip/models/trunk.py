"""An image tower for CoCa from any timm trunk, and pretrained weights for a trunk.

A small captioner cannot learn to see from a few thousand pictures. With a pretrained trunk it looks through eyes that
are there, and where the trunk is frozen its features are computed once for a whole training.
"""

import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mobileclip import storage
from mobileclip.errors import DataError
from mobileclip.models.checkpoints import read


class TrunkTower(nn.Module):
    """Feature map of a convolutional trunk as the tokens that CoCa's decoder attends to.

    Takes the place of open_clip's image tower: the same two outputs, but no attentional pooling, as a trunk's map has
    few places already.
    """

    def __init__(self, trunk: Any, *, image_size: int, width: int, embed_dim: int) -> None:
        """Put tokens and projection behind a trunk.

        Args:
            trunk: timm model with `forward_features` to [batch, channels, height, width].
            image_size: Side of its input in pixels, which fixes the number of tokens.
            width: Of the tokens, that of the decoder.
            embed_dim: Size of the image embedding.
        """
        super().__init__()
        self.trunk = trunk
        with torch.no_grad():
            shape = trunk.eval().forward_features(torch.zeros(1, 3, image_size, image_size)).shape
        self.neck = nn.Linear(shape[1], width)
        self.positional_embedding = nn.Parameter(torch.randn(shape[2] * shape[3], width) * 0.02)
        self.norm = nn.LayerNorm(width)
        self.proj = nn.Linear(width, embed_dim, bias=False)

    def features(self, images: Tensor) -> Tensor:
        """The trunk's map of normalized images [batch, 3, size, size] as [batch, places, channels]."""
        return self.trunk.forward_features(images).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]

    def from_features(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` gives, from the trunk's map [batch, places, channels]."""
        tokens = self.norm(self.neck(features) + self.positional_embedding)
        return self.proj(tokens.mean(dim=1)), tokens

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Image embedding [batch, embed_dim], not normalized, and tokens [batch, places, width]."""
        return self.from_features(self.features(images))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the trunk's activations in the backward pass.

        Args:
            enable: Or stop doing so.
        """
        self.trunk.set_grad_checkpointing(enable)


def load_trunk(module: nn.Module, uri: str | Path, *, whose: str, heads: Sequence[str]) -> None:
    """Load pretrained weights strictly, but for the heads that CLIP replaces.

    Args:
        module: The trunk.
        uri: Its weights (.safetensors); of an object store this one object is fetched.
        whose: Stage and model, for the sentence.
        heads: Prefixes of the heads' tensors.

    Raises:
        DataError: No such file, or it is of another architecture.
    """
    path = storage.local_copy(uri) if storage.exists(uri) else Path()
    if not path.is_file():
        raise DataError(f"{whose}: no weights at '{uri}'.")
    weights = {k: v for k, v in read(path).items() if not k.startswith(tuple(heads))}
    missing, unexpected = module.load_state_dict(weights, strict=False)
    missing = [k for k in missing if not k.startswith(tuple(heads)) and "position_ids" not in k]
    unexpected = [k for k in unexpected if "position_ids" not in k]
    if missing or unexpected:
        raise DataError(
            f"{whose}: '{posixpath.basename(str(uri))}' does not fit: {len(missing)} tensors missing {missing[:2]}, "
            f"{len(unexpected)} unexpected {unexpected[:2]}."
        )
