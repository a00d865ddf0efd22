"""Attention in operations of at most four axes, from the same weights: what GPUs and NPUs of phones accept.

timm packs query, key and value into one product and reshapes it to five axes; open_clip and torch fold the heads into
the batch. Delegates of LiteRT, QNN and Core ML refuse tensors of rank 5, and phone GPUs are reported to miscompute
products whose batch is a head (`mobileclip.formats.residency` has the reports). Here every tensor of the scores is
[rows, heads, length, length].
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from open_clip.modified_resnet import AttentionPool2d
from timm.layers.attention import Attention as VitAttention
from timm.layers.attention_pool import AttentionPoolLatent
from timm.models.fastvit import Attention as MapAttention
from torch import nn


class PlainAttention(nn.Module):
    """Multi-head attention with query, key and value apart; what a tower's own adds around it is kept as it is."""

    def __init__(self, parts: Sequence[nn.Module], out: nn.Module, *, heads: int) -> None:
        """Take the projections of queries, keys and values, and the last one."""
        super().__init__()
        self.query, self.key, self.value = parts
        self.out = out
        self.heads = heads
        self.query_norm: nn.Module = nn.Identity()
        self.key_norm: nn.Module = nn.Identity()
        self.norm: nn.Module = nn.Identity()
        self.gate: nn.Module | None = None

    def forward(self, x: torch.Tensor, keys: torch.Tensor | None = None, mask: Any = None) -> torch.Tensor:
        """Attend from `x` [rows, length, width] to `keys` [rows, length of keys, width], by default `x` itself.

        Args:
            x: What the queries come from.
            keys: What keys and values come from.
            mask: Added to the scores, or None; broadcast to [rows, heads, length, length of keys].
        """
        source = x if keys is None else keys
        query = self.query_norm(self._by_head(self.query(x)))
        key, value = self.key_norm(self._by_head(self.key(source))), self._by_head(self.value(source))
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        if mask is not None:
            scores = scores + mask.to(scores.dtype)
        attended = (scores.softmax(dim=-1) @ value).transpose(1, 2)
        joined = self.norm(attended.reshape(-1, x.shape[1], self.heads * value.shape[-1]))
        return self.out(joined if self.gate is None else joined * self.gate(x).sigmoid())  # type: ignore[no-any-return]

    def _by_head(self, y: torch.Tensor) -> torch.Tensor:
        """[rows, length, width] to [rows, heads, length, width of a head]."""
        return y.reshape(-1, y.shape[1], self.heads, y.shape[2] // self.heads).transpose(1, 2)


def from_torch(attention: nn.MultiheadAttention) -> PlainAttention:
    """Torch's own attention, as open_clip uses it: rows first, one packed projection."""
    weights, biases = attention.in_proj_weight.detach(), attention.in_proj_bias
    parts = _split(weights, None if biases is None else biases.detach(), 3)
    return PlainAttention(parts, deepcopy(attention.out_proj), heads=int(attention.num_heads))


def spell_attention(encoder: nn.Module) -> nn.Module:
    """Exchange every attention that is known for its plain form, in place; others stay as they are.

    Known are those of timm's ViT (MobileCLIP-B, L-14, custom towers) and FastViT (S0 to S4), timm's pooling by
    a latent query (SigLIP), open_clip's ResNet pooling and `nn.MultiheadAttention`. Subclasses stay: what they changed
    is not known. The embeddings are equal up to rounding.

    Args:
        encoder: An image encoder in eval mode.
    """
    for name, child in list(encoder.named_children()):
        rewrite = _REWRITES.get(type(child))
        if rewrite is None or not _is_known(child):
            spell_attention(child)
        else:
            setattr(encoder, name, rewrite(child).eval())
    return encoder


class _OverTokens(nn.Module):
    """In place of timm's ViT attention."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        parts = _split(attention.qkv.weight.detach(), _bias(attention.qkv), 3)
        self.attend = PlainAttention(parts, attention.proj, heads=int(attention.num_heads))
        self.attend.query_norm, self.attend.key_norm = attention.q_norm, attention.k_norm
        self.attend.norm, self.attend.gate = attention.norm, attention.gate

    def forward(self, x: torch.Tensor, attn_mask: Any = None, is_causal: bool = False) -> torch.Tensor:
        """[rows, length, width] to the same shape."""
        if attn_mask is not None or is_causal:
            raise NotImplementedError("an image tower's attention has no mask")
        return self.attend(x)  # type: ignore[no-any-return]


class _OverMap(nn.Module):
    """In place of FastViT's attention."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        parts = _split(attention.qkv.weight.detach(), _bias(attention.qkv), 3)
        self.attend = PlainAttention(parts, attention.proj, heads=int(attention.num_heads))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, channels, height, width] to the same shape."""
        attended: torch.Tensor = self.attend(x.flatten(2).transpose(1, 2))
        return attended.transpose(1, 2).reshape(-1, *x.shape[1:])


class _ByLatent(nn.Module):
    """In place of timm's pooling by a latent query."""

    def __init__(self, pool: Any) -> None:
        super().__init__()
        parts = [pool.q, *_split(pool.kv.weight.detach(), _bias(pool.kv), 2)]
        self.attend = PlainAttention(parts, pool.proj, heads=int(pool.num_heads))
        self.attend.query_norm, self.attend.key_norm = pool.q_norm, pool.k_norm
        self.latent, self.pos_embed, self.pool = pool.latent, pool.pos_embed, pool.pool
        self.norm, self.mlp = pool.norm, pool.mlp

    def forward(self, x: torch.Tensor, attn_mask: Any = None) -> torch.Tensor:
        """[rows, length, width] to [rows, width], or to one row per latent."""
        if attn_mask is not None:
            raise NotImplementedError("an image tower's pooling has no mask")
        if self.pos_embed is not None:
            x = x + self.pos_embed.unsqueeze(0).to(x.dtype)
        # The queries are the same for every row: their products broadcast.
        pooled = self.attend(self.latent, x)
        if self.mlp is not None:
            pooled = pooled + self.mlp(self.norm(pooled))
        if self.pool == "token":
            return pooled[:, 0]  # type: ignore[no-any-return]
        return pooled.mean(1) if self.pool == "avg" else pooled  # type: ignore[no-any-return]


class _OverResNet(nn.Module):
    """In place of open_clip's pooling of a ResNet, for the one query that is used: the mean's."""

    def __init__(self, pool: AttentionPool2d) -> None:
        super().__init__()
        self.positional_embedding = pool.positional_embedding
        self.attend = PlainAttention([pool.q_proj, pool.k_proj, pool.v_proj], pool.c_proj, heads=pool.num_heads)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, channels, height, width] to [rows, width]."""
        tokens = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        tokens = tokens + self.positional_embedding.to(x.dtype)
        return self.attend(tokens[:, :1], tokens)[:, 0]  # type: ignore[no-any-return]


class _LikeTorch(nn.Module):
    """In place of torch's own attention."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.attend = from_torch(attention)

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, need_weights: bool, attn_mask: Any = None
    ) -> tuple[torch.Tensor, None]:
        """[rows, length, width] of queries to the same shape, without weights."""
        if need_weights or key is not value:
            raise NotImplementedError("an image tower's attention has one source and gives no weights")
        return self.attend(query, key, attn_mask), None


_REWRITES: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    VitAttention: _OverTokens,
    MapAttention: _OverMap,
    AttentionPoolLatent: _ByLatent,
    AttentionPool2d: _OverResNet,
    nn.MultiheadAttention: _LikeTorch,
}


def _is_known(attention: nn.Module) -> bool:
    """Whether torch's attention has nothing that `from_torch` leaves out; the others have no variants."""
    if not isinstance(attention, nn.MultiheadAttention):
        return True
    has_extras = attention.bias_k is not None or attention.add_zero_attn
    return attention.in_proj_weight is not None and attention.batch_first and not has_extras


def _bias(linear: nn.Linear) -> torch.Tensor | None:
    return None if linear.bias is None else linear.bias.detach()


def _split(weight: torch.Tensor, bias: torch.Tensor | None, count: int) -> list[nn.Linear]:
    """A packed projection as `count` of equal width."""
    biases = (None,) * count if bias is None else bias.chunk(count)
    return [make_linear(part, one) for part, one in zip(weight.chunk(count), biases, strict=True)]


def make_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """A projection of its own with a copy of that weight [width out, width in]."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight.data = weight.clone().contiguous()
    if bias is not None:
        linear.bias.data = bias.clone().contiguous()
    return linear
