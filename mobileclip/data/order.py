"""The order in which training sees samples: a function of seed and step alone, whatever processes or restarts do."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

Place = tuple[int, int]
"""(epoch, position in the split)."""


@dataclass(frozen=True)
class Steps:
    """The places of steps `first`..`last` - 1, planned as they come: a long run has billions."""

    samples: int
    batch_size: int
    first: int
    last: int
    seed: int
    rows: slice

    def __iter__(self) -> Iterator[list[Place]]:
        steps = range(self.first, self.last)
        return (place_batch(self.samples, self.batch_size, step, self.seed)[self.rows] for step in steps)


def place_batch(samples: int, batch_size: int, step: int, seed: int) -> list[Place]:
    """(epoch, position) of every sample of one step."""
    places: list[Place] = []
    start = step * batch_size
    while len(places) < batch_size:
        epoch, offset = divmod(start + len(places), samples)
        order = _permutation(samples, epoch, seed)
        places += [(epoch, int(p)) for p in order[offset : offset + batch_size - len(places)]]
    return places


_PERMUTATIONS: dict[tuple[int, int, int], np.ndarray] = {}


def _permutation(samples: int, epoch: int, seed: int) -> np.ndarray:
    key = (samples, epoch, seed)
    if key not in _PERMUTATIONS:
        if len(_PERMUTATIONS) > 4:
            _PERMUTATIONS.clear()
        _PERMUTATIONS[key] = np.random.default_rng([seed, epoch]).permutation(samples)
    return _PERMUTATIONS[key]
