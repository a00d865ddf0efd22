"""A CLIP or CoCa model together with all that is needed to feed it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mobileclip.data.preprocess import Preprocess


@dataclass
class Clip:
    """A model with all that is needed to feed it.

    Attributes:
        model: open_clip `CLIP`, `CustomTextCLIP` or `CoCa`, in eval mode, float32, CPU.
        preprocess: Input size, mean, std, interpolation.
        tokenizer: Texts to int64 [batch, context_length].
        config: open_clip `model_cfg`.
        name: Reference it was loaded by.
        sha256: Digest of the weights.
        license: License of the weights.
        folder: Local folder it came from; empty for published names.
        card: `model.json` of the folder.
    """

    model: torch.nn.Module
    preprocess: Preprocess
    tokenizer: Callable[[Sequence[str]], torch.Tensor]
    config: dict[str, Any]
    name: str
    sha256: str
    license: str
    folder: str = ""
    card: dict[str, Any] = field(default_factory=dict)

    @property
    def embed_dim(self) -> int:
        """Width of the embeddings."""
        return int(self.config["embed_dim"])

    @property
    def logit_scale(self) -> float:
        """The model's own logit scale (1 / temperature)."""
        scale: Any = self.model.logit_scale
        return float(scale.exp().detach().reshape(-1)[0])

    @torch.no_grad()
    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """Normalized pixels float32 [batch, 3, size, size] to unit-norm embeddings [batch, dim]."""
        images = images.contiguous(memory_format=torch.channels_last)  # a third faster for convolutions on CPU
        model: Any = self.model
        return model.encode_image(images, normalize=True).float()

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """Texts to unit-norm embeddings [len(texts), dim]."""
        model: Any = self.model
        tokens = self.tokenizer(list(texts))
        if "hf_model_name" in self.config["text_cfg"]:
            # These towers mask their padding, so columns that are padding in every row change nothing but the cost.
            used = (tokens != model.text.config.pad_token_id).sum(dim=1)
            tokens = tokens[:, : max(1, int(used.max()))]
        return model.encode_text(tokens.to(model.logit_scale.device), normalize=True).float()
