"""One position at a time through both text decoders of an open_clip CoCa, with exact key-value caches.

Exact because both decoders are causal: the class token that `TextTransformer` appends stands behind every caption
token, and no caption token attends to it; the padding part of its mask is empty as long as a caption has not ended.
"""

from typing import Any

from torch import Tensor
from torch.nn import functional


class CachedDecoder:
    """Both decoders of a CoCa over a batch, one position at a time.

    Cross-attention keys and values are computed once per image; its captions are the queries of one attention call.

    Attributes:
        device: Where it computes.
        length: Positions read so far.
    """

    def __init__(self, model: Any, image_tokens: Tensor, *, captions: int, max_tokens: int) -> None:
        """Prepare to decode.

        Args:
            model: open_clip `CoCa`.
            image_tokens: [batch, image tokens, width] of its image tower.
            captions: Captions per image.
            max_tokens: Most positions that will be read.
        """
        self._model = model
        self._batch, self._captions = image_tokens.shape[0], captions
        self.device = image_tokens.device
        self.length = 0
        decoder = model.text_decoder
        self._cross = [_image_keys_values(block, image_tokens) for block in decoder.cross_attn]
        rows = self._batch * captions
        self._own = [
            _empty_cache(block, rows, max_tokens, image_tokens)
            for block in (*model.text.transformer.resblocks, *decoder.resblocks)
        ]

    def step(self, tokens: Tensor) -> Tensor:
        """Read one token per caption.

        Args:
            tokens: int64 [batch * captions], all captions of an image side by side.

        Returns:
            Logits of the next token [batch * captions, vocabulary].
        """
        text, decoder = self._model.text, self._model.text_decoder
        x = text.token_embedding(tokens).to(text.transformer.get_cast_dtype())
        x = x + text.positional_embedding[self.length].to(x.dtype)
        unimodal = len(text.transformer.resblocks)
        for block, cache in zip(text.transformer.resblocks, self._own[:unimodal], strict=True):
            x = _self_block(block, x, cache, self.length)
        if text.cls_emb is None:
            x = text.ln_final(x)
        for block, cross, cache, image in zip(
            decoder.resblocks, decoder.cross_attn, self._own[unimodal:], self._cross, strict=True
        ):
            x = _self_block(block, x, cache, self.length)
            x = _cross_block(cross, x.view(self._batch, self._captions, -1), image).flatten(0, 1)
        self.length += 1
        x = decoder.ln_final(x)
        return x if decoder.text_projection is None else x @ decoder.text_projection

    def reorder(self, rows: Tensor) -> None:
        """Let every row go on from the row named for it (of the same image): int64 [batch * captions]."""
        self._own = [cache[:, rows] for cache in self._own]


def _self_block(block: Any, x: Tensor, cache: Tensor, position: int) -> Tensor:
    """One block on the newest position [rows, width]; reads and extends `cache` [2, rows, heads, length, dim]."""
    attn = block.attn
    heads = attn.num_heads
    q, k, v = functional.linear(block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=-1)
    q, k, v = (part.view(len(x), heads, 1, -1) for part in (q, k, v))
    if hasattr(attn, "ln_q"):  # open_clip's own attention, with its optional norms
        q, k = attn.ln_q(q), attn.ln_k(k)
    cache[0, :, :, position : position + 1] = k
    cache[1, :, :, position : position + 1] = v
    keys, values = cache[:, :, :, : position + 1]
    y = functional.scaled_dot_product_attention(q, keys, values)
    if getattr(attn, "head_scale", None) is not None:
        y = y * attn.head_scale
    y = y.reshape(len(x), -1)
    if hasattr(attn, "ln_inner"):
        y = attn.ln_inner(y)
    y = attn.out_proj(y)
    if hasattr(block, "ln_attn"):
        y = block.ln_attn(y)
    x = x + block.ls_1(y)
    return x + block.ls_2(block.mlp(block.ln_2(x)))  # type: ignore[no-any-return]


def _cross_block(block: Any, x: Tensor, image: tuple[Tensor, Tensor]) -> Tensor:
    """One cross-attention block: the captions [batch, captions, width] of an image query its keys and values."""
    attn = block.attn
    width = attn.embed_dim
    bias = None if attn.in_proj_bias is None else attn.in_proj_bias[:width]
    q = _heads(functional.linear(block.ln_1(x), attn.in_proj_weight[:width], bias), attn.num_heads)
    y = functional.scaled_dot_product_attention(q, *image)
    x = x + block.ls_1(attn.out_proj(y.transpose(1, 2).flatten(2)))
    return x + block.ls_2(block.mlp(block.ln_2(x)))  # type: ignore[no-any-return]


def _image_keys_values(block: Any, image_tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [batch, heads, image tokens, dim] of one cross-attention block."""
    attn = block.attn
    width = attn.embed_dim
    bias = None if attn.in_proj_bias is None else attn.in_proj_bias[width:]
    both = functional.linear(block.ln_1_kv(image_tokens), attn.in_proj_weight[width:], bias)
    keys, values = (_heads(part, attn.num_heads) for part in both.chunk(2, dim=-1))
    return keys, values


def _empty_cache(block: Any, rows: int, length: int, like: Tensor) -> Tensor:
    heads = block.attn.num_heads
    return like.new_empty(2, rows, heads, length, block.attn.out_proj.in_features // heads)


def _heads(x: Tensor, heads: int) -> Tensor:
    """[batch, length, width] to [batch, heads, length, width / heads]."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)
