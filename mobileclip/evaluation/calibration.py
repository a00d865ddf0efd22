"""Which logit scales, and which teachers, give the true pair the highest likelihood: a search on embeddings alone.

For a batch of pairs a teacher of scale s says P(text j | image i) = softmax_j(s <u_i, v_j>), an ensemble the mean of
its teachers' probabilities (MobileCLIP, arXiv 2311.17049, equation 1). Temperature scaling (Guo et al., arXiv
1706.04599) of that in-batch retrieval minimizes the negative log-likelihood of the true pair, in both directions.

The probability of a teacher's true pair depends on its own scale alone. So every teacher is evaluated once per scale,
and a joint search over an ensemble only averages numbers that are there.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from mobileclip.errors import IntegrityError

# Combinations of scales up to which an ensemble is searched exhaustively: four teachers with seven scales.
_EXHAUSTIVE = 3000
_ROUNDS = 3
_COMPARED = 5

Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Likelihoods:
    """Log-probability of the true pair.

    Attributes:
        scales: The candidates.
        table: By teacher and place of the scale, for every batch float64 [2 * rows]: image to text, then text to image.
    """

    scales: tuple[float, ...]
    table: Mapping[str, Sequence[Sequence[torch.Tensor]]]


@dataclass(frozen=True)
class Ensemble:
    """Teachers with their scales, and how well they do.

    Attributes:
        scales: By teacher.
        nll: Negative log-likelihood of the true pair [nats], mean over batches.
        error: Standard error of that mean over batches; 0 with one batch.
    """

    scales: dict[str, float]
    nll: float
    error: float


def likelihoods(batches: Sequence[Mapping[str, Pair]], scales: Sequence[float]) -> Likelihoods:
    """Evaluate every teacher at every scale.

    Args:
        batches: By teacher unit-norm image and text embeddings [rows, dim] of the same pairs.
        scales: Candidates (1 / temperature).

    Raises:
        IntegrityError: Embeddings of a teacher are not finite, of which no scale is the best.
    """
    table: dict[str, list[list[torch.Tensor]]] = {name: [[] for _ in scales] for name in batches[0]}
    for batch in batches:
        for name, (image, text) in batch.items():
            if not (torch.isfinite(image).all() and torch.isfinite(text).all()):
                raise IntegrityError(f"calibrate: the stored embeddings of teacher '{name}' are not finite.")
            cosines = image.double() @ text.double().T
            for place, scale in enumerate(scales):
                logits = scale * cosines
                true = [F.log_softmax(side, dim=1).diagonal() for side in (logits, logits.T)]
                table[name][place].append(torch.cat(true))
    return Likelihoods(tuple(scales), table)


def curve(found: Likelihoods, name: str) -> list[float]:
    """Negative log-likelihood of one teacher alone, by scale."""
    return [_score(found, {name: place}).nll for place in range(len(found.scales))]


def joint(found: Likelihoods, names: Sequence[str]) -> Ensemble:
    """The best scales of an ensemble: all combinations where they are few, else coordinate descent."""
    places = range(len(found.scales))
    if len(places) ** len(names) <= _EXHAUSTIVE:
        grid = (dict(zip(names, chosen, strict=True)) for chosen in itertools.product(places, repeat=len(names)))
        return min((_score(found, chosen) for chosen in grid), key=lambda ensemble: ensemble.nll)
    chosen = dict.fromkeys(names, len(places) // 2)
    for _ in range(_ROUNDS):
        for name in names:
            scored = [(_score(found, {**chosen, name: place}).nll, place) for place in places]
            chosen[name] = min(scored)[1]
    return _score(found, chosen)


def grow(found: Likelihoods, names: Sequence[str]) -> Ensemble:
    """The best teacher alone, then one more as long as one helps; the order of `names` is kept."""
    best = min((joint(found, [name]) for name in names), key=lambda ensemble: ensemble.nll)
    while True:
        rest = [name for name in names if name not in best.scales]
        grown = [joint(found, [n for n in names if n in best.scales or n == name]) for name in rest]
        better = min(grown, key=lambda ensemble: ensemble.nll, default=best)
        if not better.nll < best.nll:  # also where one is not a number: the search ends
            return best
        best = better


def compare(found: Likelihoods, names: Sequence[str], *, also: Sequence[Ensemble] = ()) -> list[Ensemble]:
    """Every ensemble of `names` at its best scales, best first; of more than five teachers singles and `also` alone."""
    sizes = range(1, len(names) + 1 if len(names) <= _COMPARED else 2)
    members = [chosen for size in sizes for chosen in itertools.combinations(names, size)]
    scored = {tuple(ensemble.scales): ensemble for ensemble in also}
    scored |= {chosen: joint(found, chosen) for chosen in members if chosen not in scored}
    return sorted(scored.values(), key=lambda ensemble: (ensemble.nll, list(ensemble.scales)))


def _score(found: Likelihoods, places: Mapping[str, int]) -> Ensemble:
    columns = [found.table[name][place] for name, place in places.items()]
    # The logarithm of the mean over teachers, without leaving logarithms: a sharp scale underflows otherwise.
    means = [
        math.log(len(columns)) - float(torch.stack(teachers).logsumexp(dim=0).mean())
        for teachers in zip(*columns, strict=True)
    ]
    scales = {name: found.scales[place] for name, place in places.items()}
    count = len(means)
    mean = math.fsum(means) / count
    spread = math.fsum((value - mean) ** 2 for value in means)
    return Ensemble(scales, mean, math.sqrt(spread / (count * (count - 1))) if count > 1 else 0.0)
