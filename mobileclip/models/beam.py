"""Beam search over a CoCa with the cached decoder: the likeliest captions, or those of open_clip's own beam search.

A caption's score is the mean log-probability of the tokens behind the start token, the end token included:
sum_t log p(y_t | y_<t, image) / |y|. A search ends when no open caption can still beat the worst of those it keeps;
captions that are open at the greatest length compete as they are.

open_clip 3.3 adds up logits instead of log-probabilities, divides by the length with the start token and stops as soon
as the best open caption scores no better at its present length. `add_logits` does the same, token for token. Its beam
groups carry no diversity penalty, so each of them finds the same captions: N beams in G groups are a search of N / G.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mobileclip.models.decoder import CachedDecoder

_SHUT = -1e9  # the beams of an image start equal: all but one wait behind this score until they are opened


@dataclass
class _Kept:
    """The best captions of one image that have ended, at most `size`.

    Attributes:
        size: Captions kept.
        found: Score and tokens, in the order in which they ended.
        closed: Whether the search for this image is over.
    """

    size: int
    found: list[tuple[float, Tensor]] = field(default_factory=list)
    closed: bool = False

    def add(self, score: float, tokens: Tensor) -> None:
        """Keep a caption if it is one of the best."""
        if len(self.found) < self.size or score > self.worst():
            self.found.append((score, tokens))
            if len(self.found) > self.size:
                self.found.remove(min(self.found, key=lambda one: one[0]))

    def worst(self) -> float:
        return min(score for score, _ in self.found)

    def best(self, count: int) -> list[Tensor]:
        """The best captions; of equal ones the later first."""
        return [tokens for _, tokens in sorted(self.found, key=lambda one: one[0])[::-1][:count]]


def search(
    decoder: CachedDecoder,
    *,
    batch: int,
    captions: int,
    beams: int,
    lengths: tuple[int, int],
    specials: tuple[int, int, int],
    add_logits: bool = False,
) -> Tensor:
    """The best captions of a batch.

    Args:
        decoder: `CachedDecoder` over batch * beams rows.
        batch: Images.
        captions: Captions per image, at most `beams`: the best ones, which all differ.
        beams: Hypotheses kept at every step, at least 2.
        lengths: No end token before the first, no caption longer than the second, start token included.
        specials: Ids of start, end and padding.
        add_logits: Score as open_clip does, by logits.

    Returns:
        int64 [batch, captions, max_tokens], best first.
    """
    (min_tokens, max_tokens), (start, end, pad) = lengths, specials
    unscored = 0 if add_logits else 1  # the start token, which has no probability
    kept = [_Kept(beams) for _ in range(batch)]
    ids = torch.full((batch * beams, 1), start, dtype=torch.int64)
    scores = torch.full((batch, beams), _SHUT)
    scores[:, 0] = 0
    for length in range(1, max_tokens):
        gains = decoder.step(ids[:, -1].to(decoder.device)).float().cpu()
        gains = gains if add_logits else gains.log_softmax(-1)
        if length < min_tokens:
            gains[:, end] = -torch.inf
        best, places = (gains + scores.view(-1, 1)).view(batch, -1).topk(2 * beams, dim=1, sorted=True)
        parents, tokens = places // gains.shape[-1], places % gains.shape[-1]
        parents += torch.arange(batch)[:, None] * beams
        scores, chosen = torch.zeros(batch, beams), torch.full((batch, beams), pad)
        rows = torch.arange(batch * beams).view(batch, beams)
        for image, ended in enumerate(kept):
            if ended.closed:
                continue
            going = _close(ended, best[image], tokens[image], ids[parents[image]], end, length + 1 - unscored)
            scores[image], chosen[image], rows[image] = (part[image, going] for part in (best, tokens, parents))
            # Log-probabilities only add up to less, so no open caption ends above its sum over the greatest length.
            longest = length + 1 if add_logits else max_tokens - unscored
            ended.closed = len(ended.found) == beams and ended.worst() >= float(best[image, 0]) / longest
        ids = torch.cat([ids[rows.flatten()], chosen.view(-1, 1)], dim=1)
        if all(ended.closed for ended in kept):
            break
        decoder.reorder(rows.flatten().to(decoder.device))
    for open_ids, totals, ended in zip(ids.view(batch, beams, -1), scores.tolist(), kept, strict=True):
        for tokens, total in zip(open_ids, totals, strict=True) if not ended.closed else ():
            ended.add(total / (len(tokens) - unscored), tokens)
    return _padded([ended.best(captions) for ended in kept], max_tokens, end=end, pad=pad)


def _close(kept: _Kept, best: Tensor, tokens: Tensor, prefixes: Tensor, end: int, length: int) -> list[int]:
    """Keep the captions of an image that end here; the places of the candidates that go on, one per beam."""
    beams = kept.size
    for place in range(beams):  # an end token that is not among the best `beams` is no caption
        if tokens[place] == end:
            kept.add(float(best[place]) / length, prefixes[place])
    return [place for place, token in enumerate(tokens.tolist()) if token != end][:beams]


def _padded(found: list[list[Tensor]], length: int, *, end: int, pad: int) -> Tensor:
    """Captions of all images as one tensor; an end token where one still fits in."""
    result = torch.full((len(found), len(found[0]), length), pad, dtype=torch.int64)
    for image, captions in enumerate(found):
        for place, tokens in enumerate(captions):
            result[image, place, : len(tokens)] = tokens
            if len(tokens) < length:
                result[image, place, len(tokens)] = end
    return result
