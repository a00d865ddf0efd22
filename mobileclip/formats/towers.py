"""The two programs of a student before any format: image tower and text tower as plain modules.

Pixel normalization and unit norm are part of the towers, so a client sends RGB in 0-1 and gets embeddings it can
compare by dot product. The text tower is rewritten from the same weights in operations every exporter knows (plain
attention, end-of-text pooling by a mask, int32 tokens); open_clip's fused attention and arg-max do not lower on
several runtimes.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.tokenizer import SimpleTokenizer, get_clean_fn
from open_clip.transformer import ResidualAttentionBlock
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mobileclip.errors import ConfigError
from mobileclip.formats.plain_attention import from_torch, make_linear, spell_attention
from mobileclip.models.reparameterize import reparameterize
from mobileclip.models.text_repmixer import TextRepMixerBlock
from mobileclip.models.zoo import Clip

IMAGE_INPUT, IMAGE_OUTPUT = "image", "image_features"
TEXT_INPUT, TEXT_OUTPUT = "text", "text_features"


@dataclass(frozen=True)
class Towers:
    """A student split in two.

    Attributes:
        image: float32 [batch, 3, size, size], RGB in 0-1, to unit-norm float32 [batch, dim].
        text: int32 [batch, context_length] to unit-norm float32 [batch, dim].
        plain_text: Whether the text tower is the rewrite; otherwise it is the model's own, wrapped.
    """

    image: nn.Module
    text: nn.Module
    plain_text: bool


def split(clip: Clip) -> Towers:
    """Fold, split and rewrite a student; its own modules stay as they are.

    Args:
        clip: An open_clip `CLIP` or `CustomTextCLIP` with its preprocessing.

    Raises:
        ConfigError: It is a captioner: its towers are no CLIP towers.
    """
    if "multimodal_cfg" in clip.config:
        raise ConfigError(f"student: '{clip.name}' is a captioner (CoCa), want a CLIP model.")
    visual = spell_attention(fold_batch_norm(reparameterize(clip.model.visual)))  # type: ignore[arg-type]
    image = ImageTower(visual, mean=clip.preprocess.mean, std=clip.preprocess.std)
    plain = is_plain(clip)
    text: nn.Module = PlainText(clip) if plain else WrappedText(deepcopy(clip.model))
    return Towers(_frozen(image), _frozen(text), plain)


_NOTHING = -1e4  # added to a score, it leaves no share of a softmax; half precision holds it


class ImageTower(nn.Module):
    """Normalization, image encoder and unit norm as one module."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, encoder: nn.Module, *, mean: tuple[float, float, float], std: tuple[float, float, float]
    ) -> None:
        """Wrap an encoder that takes normalized pixels."""
        super().__init__()
        self.encoder = encoder
        self.is_normalized = any(mean) or any(value != 1 for value in std)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """RGB float32 [batch, 3, size, size] in 0-1 to unit-norm float32 [batch, dim]."""
        # Mean and standard deviation come first and in float32: folding them into the first convolution would change
        # the zero padding at the border, and half precision would lose bits of the pixels.
        pixels = (image - self.mean) / self.std if self.is_normalized else image
        return F.normalize(self.encoder(pixels.to(_dtype(self.encoder))).float(), dim=-1)


class PlainText(nn.Module):
    """An open_clip text transformer in plain operations, from the same weights."""

    causal: torch.Tensor | None
    earlier: torch.Tensor

    def __init__(self, clip: Clip) -> None:
        """Copy the text weights of a model for which `is_plain` holds."""
        super().__init__()
        tower = _text_tower(clip.model)
        transformer = deepcopy(tower.transformer)
        self.token_embedding = deepcopy(tower.token_embedding)
        self.positional_embedding = nn.Parameter(tower.positional_embedding.detach().clone())
        # Text-RepMixer blocks are plain operations themselves, once their branches are folded.
        self.blocks = nn.ModuleList(
            [
                _PlainBlock(block) if isinstance(block, ResidualAttentionBlock) else reparameterize(block)
                for block in transformer.resblocks
            ]
        )
        self.ln_final = _plain_norm(tower.ln_final)
        self.projection = _projection(tower.text_projection)
        self.end_token = int(clip.tokenizer.eot_token_id)  # type: ignore[attr-defined]
        length = self.positional_embedding.shape[0]
        causal = tower.attn_mask
        self.register_buffer("causal", None if causal is None else causal.detach().clone(), persistent=False)
        earlier = torch.triu(torch.ones(length, length), diagonal=1)
        self.register_buffer("earlier", earlier, persistent=False)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Token ids int32 [batch, context_length] to unit-norm float32 [batch, dim]."""
        # A one-hot row over the positions instead of arg-max and gather, which mobile runtimes lack for integers.
        # Subtracting the count of earlier end tokens keeps the first one alone, as arg-max does.
        x = self.token_embedding(text) + self.positional_embedding
        is_end = (text == self.end_token).to(x.dtype)
        ended = is_end @ self.earlier
        first_end = F.relu(is_end - ended).unsqueeze(1)
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x, self.causal)
        # Of the last block only the end token is read.
        if isinstance(last, _PlainBlock):
            later = None if self.causal is None else (ended.clamp(max=1) * _NOTHING)[:, None, None]
            x = last(x, later, first_end)
        else:
            x = first_end @ last(x, self.causal)
        return F.normalize(self.projection(self.ln_final(x).squeeze(1)).float(), dim=-1)


class WrappedText(nn.Module):
    """Any other text tower, by the model's own code."""

    def __init__(self, model: nn.Module) -> None:
        """Keep the text half of `model` alone."""
        super().__init__()
        model.visual = nn.Identity()
        if isinstance(text := getattr(model, "text", None), HFTextEncoder):
            text.transformer.register_forward_pre_hook(_plainly, with_kwargs=True)
        self.model = model.eval()

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Token ids int32 [batch, context_length] to unit-norm float32 [batch, dim]."""
        return F.normalize(self.model.encode_text(text.long()).float(), dim=-1)  # type: ignore[operator]


def is_plain(clip: Clip) -> bool:
    """Whether the text tower is what `PlainText` rewrites.

    That is a transformer of open_clip's default blocks, fed by CLIP's own tokenizer and pooled where the token id is
    largest, which is then the first end-of-text token.
    """
    tower = _text_tower(clip.model)
    if not has_clip_tokenizer(clip) or not hasattr(tower, "token_embedding"):
        return False
    if getattr(tower, "cls_emb", None) is not None or getattr(tower, "use_pad_mask", False):
        return False
    pool = getattr(tower, "pool_type", "") or getattr(tower, "text_pool_type", "")
    known = (ResidualAttentionBlock, TextRepMixerBlock)
    return pool == "argmax" and all(isinstance(block, known) for block in tower.transformer.resblocks)


def is_causal(clip: Clip) -> bool:
    """Whether the text tower's tokens see earlier tokens only."""
    return getattr(_text_tower(clip.model), "attn_mask", None) is not None


def has_clip_tokenizer(clip: Clip) -> bool:
    """Whether texts become tokens by CLIP's byte-pair encoding: lower case, end of text as the last id, padding 0."""
    tokenizer = clip.tokenizer
    if not isinstance(tokenizer, SimpleTokenizer) or tokenizer.reduction_fn is not None:
        return False
    return bool(tokenizer.clean_fn is get_clean_fn("lower") and tokenizer.eot_token_id == tokenizer.vocab_size - 1)


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """Fold each batch norm that directly follows its convolution (timm's `ConvNormAct`), in place.

    Runtimes do this when they load a float32 program; folding before the cast keeps half precision from rounding
    scale and kernel apart.
    """
    for module in model.modules():
        conv, norm = getattr(module, "conv", None), getattr(module, "bn", None)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and _has_no_activation(norm):
            module.conv = fuse_conv_bn_eval(conv.eval(), norm.eval())
            module.bn = nn.Identity()
    return model


class _PlainBlock(nn.Module):
    """open_clip's ResidualAttentionBlock with its attention spelled out."""

    def __init__(self, block: ResidualAttentionBlock) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = _plain_norm(block.ln_1), _plain_norm(block.ln_2)
        self.ls_1, self.ls_2 = block.ls_1, block.ls_2
        self.mlp = block.mlp
        self.attention = from_torch(block.attn)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None, chosen: torch.Tensor | None = None) -> torch.Tensor:
        """[batch, length, width] to the same shape.

        Args:
            x: Tokens.
            mask: Added to the scores of all tokens, or of the chosen one.
            chosen: One-hot rows [batch, 1, length]: the block is computed for that token alone, [batch, 1, width].
        """
        normed = self.ln_1(x)
        if chosen is None:
            x = x + self.ls_1(self.attention(normed, mask=mask))
        else:
            x = chosen @ x + self.ls_1(self.attention(chosen @ normed, normed, mask))
        return x + self.ls_2(self.mlp(self.ln_2(x)))  # type: ignore[no-any-return]


def _plainly(tower: Any, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments that spare a Hugging Face tower operations which mobile runtimes lack.

    Of a flag per token transformers makes what attention adds to its scores by indexing; a mask of four dimensions it
    takes as it is. Token types, which are all zero, it gathers by position where they are not given.
    """
    flags = named["attention_mask"][:, None, None, :].float()
    plain = {**named, "attention_mask": (1 - flags) * _NOTHING}
    if hasattr(getattr(tower, "embeddings", None), "token_type_embeddings"):
        plain["token_type_ids"] = torch.zeros_like(named["input_ids"])
    return given, plain


def _text_tower(model: nn.Module) -> Any:
    """The module that holds the text weights: `CustomTextCLIP.text`, or the model itself for open_clip's `CLIP`."""
    return getattr(model, "text", model)


def _plain_norm(norm: nn.LayerNorm) -> nn.LayerNorm:
    plain = nn.LayerNorm(norm.normalized_shape, eps=norm.eps)
    plain.load_state_dict(norm.state_dict())
    return plain


def _projection(projection: nn.Parameter | nn.Linear | None) -> nn.Module:
    if projection is None:
        return nn.Identity()
    if isinstance(projection, nn.Linear):
        return deepcopy(projection)
    return make_linear(projection.detach().T, None)


def _has_no_activation(norm: nn.Module) -> bool:
    return isinstance(getattr(norm, "act", nn.Identity()), nn.Identity)


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def _frozen(module: nn.Module) -> nn.Module:
    return module.eval().requires_grad_(requires_grad=False)
