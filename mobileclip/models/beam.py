"""Beam search over a CoCa with the cached decoder: the captions of open_clip's own beam search.

The bookkeeping is transformers' own `BeamSearchScorer`, as in open_clip; what is ours is that the image is encoded once
and that a step costs one position. Like open_clip's, the search adds up logits, not log-probabilities. open_clip's beam
groups carry no diversity penalty, so each of them finds the same captions; there is one group here.
"""

import torch
from torch import Tensor
from transformers.generation import BeamSearchScorer

from mobileclip.models.decoder import CachedDecoder


def search(
    decoder: CachedDecoder,
    *,
    batch: int,
    captions: int,
    beams: int,
    lengths: tuple[int, int],
    specials: tuple[int, int, int],
) -> Tensor:
    """The best captions of a batch.

    Args:
        decoder: `CachedDecoder` over batch * beams rows.
        batch: Images.
        captions: Captions per image, at most `beams`: the best ones, which all differ.
        beams: Hypotheses kept at every step, at least 2.
        lengths: No end token before the first, no caption longer than the second, start token included.
        specials: Ids of start, end and padding.

    Returns:
        int64 [batch, captions, max_tokens], best first.
    """
    (min_tokens, max_tokens), (start, end, pad) = lengths, specials
    scorer = BeamSearchScorer(
        batch_size=batch, num_beams=beams, device=torch.device("cpu"), num_beam_hyps_to_keep=captions
    )
    ids = torch.full((batch * beams, 1), start, dtype=torch.int64)
    scores = torch.full((batch, beams), -1e9)
    scores[:, 0] = 0  # the beams start equal: let one of them open
    scores = scores.flatten()
    tokens = indices = ids
    for length in range(1, max_tokens):
        logits = decoder.step(ids[:, -1].to(decoder.device)).float()
        if length < min_tokens:
            logits[:, end] = -torch.inf
        vocabulary = logits.shape[-1]
        totals = (logits.cpu() + scores[:, None]).view(batch, -1)
        best, places = totals.topk(2 * beams, dim=1, sorted=True)
        indices, tokens = places // vocabulary, places % vocabulary
        chosen = scorer.process(ids, best, tokens, indices, pad_token_id=pad, eos_token_id=end)
        scores, rows = chosen["next_beam_scores"], chosen["next_beam_indices"]
        ids = torch.cat([ids[rows], chosen["next_beam_tokens"][:, None]], dim=1)
        if scorer.is_done:
            break
        decoder.reorder(rows.to(decoder.device))
    found = scorer.finalize(
        ids, scores, tokens, indices, pad_token_id=pad, eos_token_id=end, max_length=max_tokens
    )["sequences"]  # fmt: skip
    padded = torch.full((batch * captions, max_tokens), pad, dtype=torch.int64)
    padded[:, : found.shape[1]] = found
    return padded.view(batch, captions, max_tokens)
