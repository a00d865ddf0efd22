"""The text tower of MobileCLIP-S0: convolutions over the token axis around a short transformer.

MobileCLIP (arXiv 2311.17049, section 4.2) calls it MCt: six blocks, of which the first and the last are Text-RepMixer
(kernel 11), the four between open_clip's own attention blocks. A Text-RepMixer block is FastViT's (arXiv 2303.14189,
section 3.2) turned to one dimension: a depthwise token mixer trained as a difference of branches, then a feed-forward
layer that starts with a depthwise convolution. open_clip ships neither, so the two block parts are written here; all
else of the tower, and every name outside `resblocks.N.mixer` and `.ffn`, is open_clip's `TextTransformer`.
"""

from typing import Any

import torch
from open_clip import CustomTextCLIP
from open_clip.transformer import TextTransformer
from torch import nn
from torch.nn import functional as F

_LAYER_SCALE = 1e-5


class TokenMixer(nn.Module):
    """x + scale * (mix(x) - norm(x)) along the tokens, which folds into one depthwise convolution.

    While training, `mix` is a depthwise convolution and an identity, each with its own batch norm, and `norm` is a
    batch norm alone. All are linear in evaluation mode, so `reparameterize` adds them up.
    """

    def __init__(self, width: int, kernel_size: int) -> None:
        """Branches of `width` channels; `kernel_size` (tokens) is odd, so that the length stays."""
        super().__init__()
        self.conv = nn.Conv1d(width, width, kernel_size, padding=kernel_size // 2, groups=width, bias=False)
        self.conv_norm = nn.BatchNorm1d(width)
        self.skip_norm = nn.BatchNorm1d(width)
        self.norm = nn.BatchNorm1d(width)
        self.layer_scale = nn.Parameter(torch.full((width,), _LAYER_SCALE))
        self.reparam_conv: nn.Conv1d | None = None
        nn.init.trunc_normal_(self.conv.weight, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, width, tokens] to the same shape."""
        if self.reparam_conv is not None:
            return self.reparam_conv(x)  # type: ignore[no-any-return]
        mixed = self.conv_norm(self.conv(x)) + self.skip_norm(x) - self.norm(x)
        return x + self.layer_scale.unsqueeze(1) * mixed

    @torch.no_grad()
    def reparameterize(self) -> None:
        """Replace the branches by one convolution with a bias; a second call changes nothing."""
        if self.reparam_conv is not None:
            return
        conv, width = self.conv, self.conv.out_channels
        kernel, middle = conv.weight.clone(), conv.kernel_size[0] // 2
        slope, offset = _affine(self.conv_norm)
        kernel *= slope.view(-1, 1, 1)
        for norm, sign in ((self.skip_norm, 1), (self.norm, -1)):
            own_slope, own_offset = _affine(norm)
            kernel[:, 0, middle] += sign * own_slope
            offset = offset + sign * own_offset
        kernel *= self.layer_scale.view(-1, 1, 1)
        kernel[:, 0, middle] += 1
        folded = nn.Conv1d(
            width, width, conv.kernel_size[0], padding=middle, groups=width, device=kernel.device, dtype=kernel.dtype
        )
        folded.weight.copy_(kernel)
        folded.bias.copy_(self.layer_scale * offset)  # type: ignore[union-attr]
        self.reparam_conv = folded.train(self.training)
        for name in ("conv", "conv_norm", "skip_norm", "norm", "layer_scale"):
            delattr(self, name)


class ConvFeedForward(nn.Module):
    """Depthwise convolution along the tokens with batch norm, then two linear layers with GELU between."""

    def __init__(self, width: int, kernel_size: int, hidden: int) -> None:
        """Channels `width`, `hidden` between the linear layers."""
        super().__init__()
        self.conv = nn.Conv1d(width, width, kernel_size, padding=kernel_size // 2, groups=width, bias=False)
        self.norm = nn.BatchNorm1d(width)
        self.c_fc = nn.Linear(width, hidden)
        self.c_proj = nn.Linear(hidden, width)
        for module in (self.conv, self.c_fc, self.c_proj):
            nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(self.c_fc.bias)
        nn.init.zeros_(self.c_proj.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, width, tokens] to [batch, tokens, width]."""
        local = self.norm(self.conv(x)).transpose(1, 2)
        return self.c_proj(F.gelu(self.c_fc(local)))  # type: ignore[no-any-return]


class TextRepMixerBlock(nn.Module):
    """Token mixer, then feed-forward layer, each with a residual; called like open_clip's attention blocks."""

    def __init__(self, width: int, kernel_size: int, mlp_ratio: float = 4.0) -> None:
        """A block of `width` channels."""
        super().__init__()
        self.mixer = TokenMixer(width, kernel_size)
        self.ffn = ConvFeedForward(width, kernel_size, int(width * mlp_ratio))
        self.layer_scale = nn.Parameter(torch.full((width,), _LAYER_SCALE))

    def get_weight_dtype(self) -> torch.dtype:
        """Type of the weights; open_clip asks the first block."""
        return self.ffn.c_fc.weight.dtype

    def forward(self, x: torch.Tensor, *_: torch.Tensor | None, attn_mask: torch.Tensor | None = None) -> torch.Tensor:  # noqa: ARG002
        """[batch, tokens, width] to the same shape; keys, values and mask are of attention blocks and not used."""
        mixed = self.mixer(x.transpose(1, 2))
        return mixed.transpose(1, 2) + self.layer_scale * self.ffn(mixed)  # type: ignore[no-any-return]


def clip_with_text_repmixer(config: dict[str, Any]) -> CustomTextCLIP:
    """An open_clip model whose text tower is this one.

    Args:
        config: open_clip's `model_cfg`; `text_cfg` has the `repmixer` entry that open_clip does not know.
    """
    text = config["text_cfg"]
    known = {**config, "text_cfg": {key: value for key, value in text.items() if key != "repmixer"}}
    known.pop("custom_text", None)
    built = CustomTextCLIP(**known)
    built.text = text_repmixer_tower(config["embed_dim"], text)
    return built


def text_repmixer_tower(embed_dim: int, text_cfg: dict[str, Any]) -> TextTransformer:
    """The tower of a configuration with a `repmixer` entry.

    Args:
        embed_dim: Width of the embeddings.
        text_cfg: open_clip's text configuration (`layers` counts the attention blocks) with
            `repmixer: {"kernel_size": tokens}`.

    Returns:
        An open_clip `TextTransformer`: token ids int64 [batch, context_length] to [batch, embed_dim].
    """
    options = dict(text_cfg)
    kernel_size = int(options.pop("repmixer")["kernel_size"])
    options.pop("tokenizer_kwargs", None)
    tower = TextTransformer(output_dim=embed_dim, **options)
    first, last = (TextRepMixerBlock(tower.width, kernel_size, options.get("mlp_ratio", 4.0)) for _ in range(2))
    tower.transformer.resblocks = nn.ModuleList([first, *tower.transformer.resblocks, last])
    tower.transformer.layers += 2
    return tower


def from_published(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The text half of a published MobileCLIP-S0 checkpoint under this tower's names.

    Args:
        weights: `text_encoder.*` tensors of the published file, whole names.

    Returns:
        Tensors by name inside the tower; kernels [width, 1, 1, k] become [width, 1, k], 1x1 convolutions matrices.
    """
    found = {}
    for name, value in weights.items():
        own = name.removeprefix("text_encoder.")
        for theirs, ours in _NAMES:
            own = own.replace(theirs, ours)
        found[own] = _reshaped(own, value)
    return found


_NAMES = (
    ("embedding_layer.", "token_embedding."),
    ("positional_embedding.pos_embed.pos_embed", "positional_embedding"),
    ("projection_layer", "text_projection"),
    ("final_layer_norm.", "ln_final."),
    ("transformer.", "transformer.resblocks."),
    ("pre_norm_mha.0.", "ln_1."),
    ("pre_norm_mha.1.qkv_proj.", "attn.in_proj_"),
    ("pre_norm_mha.1.", "attn."),
    ("pre_norm_ffn.0.", "ln_2."),
    ("pre_norm_ffn.1.", "mlp.c_fc."),
    ("pre_norm_ffn.4.", "mlp.c_proj."),
    ("token_mixer.norm.rbr_skip.", "mixer.norm."),
    ("token_mixer.mixer.rbr_skip.", "mixer.skip_norm."),
    ("token_mixer.mixer.rbr_conv.0.conv.", "mixer.conv."),
    ("token_mixer.mixer.rbr_conv.0.bn.", "mixer.conv_norm."),
    ("token_mixer.layer_scale", "mixer.layer_scale"),
    ("convffn.conv.conv.", "ffn.conv."),
    ("convffn.conv.bn.", "ffn.norm."),
    ("convffn.fc1.", "ffn.c_fc."),
    ("convffn.fc2.", "ffn.c_proj."),
)


def _reshaped(own: str, value: torch.Tensor) -> torch.Tensor:
    if own == "positional_embedding" or own.endswith("layer_scale"):
        return value.squeeze()
    if value.ndim != 4:
        return value
    return value.squeeze(2) if own.endswith("conv.weight") else value.flatten(1)


def _affine(norm: nn.BatchNorm1d) -> tuple[torch.Tensor, torch.Tensor]:
    """Slope and offset of a batch norm in evaluation mode."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("norm: got a batch norm without running statistics, want one with them.")
    slope = norm.weight / (norm.running_var + norm.eps).sqrt()
    return slope, norm.bias - norm.running_mean * slope
