"""Caption generation for open_clip's CoCa: one image pass for all captions, exact key-value caches, seeded draws.

open_clip's own `generate` runs both text decoders over the whole prefix for every token and takes one caption per call.
Here the unimodal decoder, the multimodal decoder's self-attention and its cross-attention keep their keys and values,
so a token costs one position (`mobileclip.models.decoder`). Under greedy decoding the tokens equal `generate`'s.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from open_clip import CoCa
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from mobileclip.errors import ConfigError
from mobileclip.models.beam import search
from mobileclip.models.decoder import CachedDecoder
from mobileclip.models.zoo import Clip

# Matrix products of 16 or more rows give each row the same bits whatever the number of rows (measured with MKL on
# AVX-512); below that other kernels run. Smaller batches are filled up, so that a caption never depends on its batch.
MIN_ROWS = 16


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; the order of the operations is open_clip's: length, then filter, then temperature.

    Attributes:
        method: `greedy`, a draw from the `top_p` nucleus or the `top_k` likeliest tokens, `beam` search for the
            likeliest captions, or `beam_logits`, which scores as open_clip's own beam search does.
        top_p: Mass of the nucleus, in (0, 1].
        top_k: Tokens kept by `top_k`.
        temperature: Divides the logits of the tokens that are kept.
        num_beams: Hypotheses kept by a beam search.
        min_tokens: No end token before this length, start token included.
        max_tokens: Longest caption, start and end token included.
    """

    method: Literal["greedy", "top_p", "top_k", "beam", "beam_logits"] = "top_p"
    top_p: float = 0.9
    top_k: int = 50
    temperature: float = 1.0
    min_tokens: int = 5
    max_tokens: int = 30
    num_beams: int = 6


@dataclass(frozen=True)
class Specials:
    """Ids of the tokens with a meaning of their own."""

    start: int = 49406
    end: int = 49407
    pad: int = 0


def check(clip: Clip, sampling: Sampling) -> None:
    """Refuse what cannot be decoded exactly.

    Raises:
        ConfigError: The model writes no captions, its text tower is not causal, or the length does not fit.
    """
    model = clip.model
    if not isinstance(model, CoCa):
        raise ConfigError(f"model: '{clip.name}' is {type(model).__name__}, want a CoCa, which can write captions.")
    if not isinstance(model.text, TextTransformer) or model.text.attn_mask is None:
        raise ConfigError(f"model: the text tower of '{clip.name}' is not causal, so it cannot write word by word.")
    longest = min(model.text.context_length, model.context_length)
    if sampling.max_tokens > longest:
        raise ConfigError(f"max_tokens: got {sampling.max_tokens}, '{clip.name}' takes at most {longest}.")
    if max(sampling.min_tokens, 1) >= sampling.max_tokens:
        raise ConfigError(f"min_tokens: got {sampling.min_tokens}, want less than max_tokens ({sampling.max_tokens}).")


def write_captions(
    clip: Clip, images: Tensor, uids: Sequence[str], *, num_captions: int, sampling: Sampling, seed: int
) -> list[list[str]]:
    """Captions of a batch of images.

    Args:
        clip: A CoCa that passed `check`.
        images: Normalized pixels float32 [batch, 3, size, size], on the model's device.
        uids: The images' uids; with `seed` and the caption's index they decide every draw.
        num_captions: Captions per image.
        sampling: How tokens are drawn.
        seed: Seed of the draws.

    Returns:
        `num_captions` strings per image; a string may be empty.
    """
    draws = torch.from_numpy(
        np.stack([[uniforms(seed, uid, m, sampling.max_tokens) for m in range(num_captions)] for uid in uids])
    )
    specials = specials_of(clip)
    tokens = generate(clip.model, images, draws, sampling=sampling, specials=specials)
    return [[to_text(row, clip.tokenizer, specials) for row in rows] for rows in tokens.tolist()]


@torch.no_grad()
def generate(
    model: nn.Module, images: Tensor, draws: Tensor, *, sampling: Sampling, specials: Specials = Specials()
) -> Tensor:
    """Token ids of all captions of a batch, decoded together until every caption has ended.

    Args:
        model: An open_clip `CoCa` in eval mode.
        images: Normalized pixels float32 [batch, 3, size, size].
        draws: Uniform numbers in [0, 1), float64 [batch, captions, max_tokens]; only the shape counts without a draw.
        sampling: How tokens are drawn.
        specials: Ids of start, end and padding.

    Returns:
        int64 [batch, captions, max_tokens]: start token, words, end token, then padding.
    """
    batch, captions = draws.shape[:2]
    beams = sampling.method in {"beam", "beam_logits"}
    rows = sampling.num_beams if beams else captions
    missing = max(0, -(-MIN_ROWS // rows) - batch)
    images = torch.cat([images, images[-1:].expand(missing, -1, -1, -1)])
    image_tokens = model._encode_image(images)[1]  # type: ignore[operator]  # noqa: SLF001 - open_clip has no other way to them
    decoder = CachedDecoder(model, image_tokens, captions=rows, max_tokens=sampling.max_tokens)
    if beams:
        return search(
            decoder, batch=batch + missing, captions=captions, beams=rows, add_logits=sampling.method == "beam_logits",
            lengths=(sampling.min_tokens, sampling.max_tokens), specials=(specials.start, specials.end, specials.pad),
        )[:batch]  # fmt: skip
    draws = torch.cat([draws, draws[-1:].expand(missing, -1, -1)]).flatten(0, 1).to(images.device)
    tokens = _decode(decoder.step, draws, sampling, specials)
    return tokens.view(batch + missing, captions, -1)[:batch]


def uniforms(seed: int, uid: str, index: int, count: int) -> np.ndarray:
    """The uniform numbers of one caption, one per token: float64 [count] in [0, 1 - 2^-32].

    They come from a counter-based generator keyed by seed, uid and caption index alone, so a caption is the same in
    whatever batch, process or order it is written.
    """
    key = int.from_bytes(hashlib.sha256(f"{seed}|{uid}|{index}".encode()).digest()[:16], "little")
    # Below one by more than a rounding, so that a draw times the total mass never rounds up to the total.
    return np.random.Generator(np.random.Philox(key=key)).random(count) * (1 - 2**-32)


def filtered(logits: Tensor, sampling: Sampling) -> Tensor:
    """Unnormalized probabilities of the next token, zero where the filter drops it.

    Tokens that tie with the last one kept are kept too, so the result does not depend on the order of a sort.

    Args:
        logits: float [rows, vocabulary].
        sampling: `top_p` keeps the smallest set of likeliest tokens with that mass (Holtzman et al., 2020),
            `top_k` the k likeliest.

    Returns:
        float32 [rows, vocabulary].
    """
    probabilities = logits.float().softmax(-1)
    if sampling.method == "top_k":
        floor = probabilities.topk(min(sampling.top_k, logits.shape[-1])).values[:, -1:]
    else:
        ascending = _sort(probabilities)
        mass = ascending.cumsum(-1, dtype=torch.float64)
        first = (mass <= (1 - sampling.top_p) * mass[:, -1:]).sum(-1, keepdim=True)
        floor = ascending.gather(-1, first.clamp(max=logits.shape[-1] - 1))
    kept = probabilities >= floor
    if sampling.temperature != 1:
        probabilities = (logits.float() / sampling.temperature).softmax(-1)
    return probabilities * kept


def draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """Inverse-CDF draw: the first token whose cumulated weight exceeds `uniform` times the total.

    Args:
        weights: Unnormalized probabilities [rows, vocabulary].
        uniform: float64 [rows] in [0, 1).

    Returns:
        int64 [rows].
    """
    mass = weights.cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(mass, uniform[:, None] * mass[:, -1:], right=True)[:, 0]


def specials_of(clip: Clip) -> Specials:
    """Start, end and padding ids of a captioner."""
    tokenizer: Any = clip.tokenizer
    return Specials(int(tokenizer.sot_token_id), int(tokenizer.eot_token_id), int(clip.model.pad_id))  # type: ignore[arg-type]


def to_text(tokens: Sequence[int], tokenizer: Any, specials: Specials = Specials()) -> str:
    """The caption in a row of tokens: what lies between the start token and the first special one.

    White space is collapsed, bytes that are no text are dropped. Full stops stay: a caption may have many sentences.
    """
    words: list[int] = []
    for token in tokens[1:]:
        if token in {specials.start, specials.end, specials.pad}:
            break
        if token in tokenizer.decoder:  # an architecture may have more output rows than the vocabulary has words
            words.append(token)
    text = tokenizer.decode(words).replace("\ufffd", "")
    return " ".join("".join(c for c in text if c.isprintable() or c.isspace()).split())


def _decode(step: Callable[[Tensor], Tensor], draws: Tensor, sampling: Sampling, specials: Specials) -> Tensor:
    """The loop over positions: tokens int64 [rows, max_tokens]."""
    tokens = torch.full(draws.shape, specials.pad, dtype=torch.int64, device=draws.device)
    tokens[:, 0] = specials.start
    alive = torch.ones(draws.shape[0], dtype=torch.bool, device=draws.device)
    for position in range(1, sampling.max_tokens):
        if position == sampling.max_tokens - 1:
            chosen = torch.full_like(tokens[:, 0], specials.end)
        else:
            logits = step(tokens[:, position - 1])
            if position < sampling.min_tokens:
                logits[:, specials.end] = -torch.inf
            greedy = sampling.method == "greedy"
            chosen = logits.argmax(-1) if greedy else draw(filtered(logits, sampling), draws[:, position])
        tokens[:, position] = torch.where(alive, chosen, specials.pad)
        alive &= (chosen != specials.end) & (chosen != specials.pad)
        if not alive.any():
            break
    return tokens


def _sort(values: Tensor) -> Tensor:
    """Ascending order per row; on the CPU by numpy, whose vectorized sort is over ten times faster than torch's."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.numpy(), axis=-1))
    return values.sort(dim=-1).values
