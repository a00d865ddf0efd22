"""The order in which training sees samples: a function of seed and step alone, whatever processes or restarts do."""

from collections.abc import Iterator, Sequence
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
        count = min(batch_size - len(places), samples - offset)
        if samples <= _TABLE:
            order = _permutation(samples, epoch, seed)[offset : offset + count]
        else:
            order = permuted(np.arange(offset, offset + count), samples, epoch=epoch, seed=seed)
        places += [(epoch, int(p)) for p in order]
    return places


@dataclass(frozen=True)
class Rows:
    """Where the samples that are used lie: (shard, row) by position, in the memory of a number per shard.

    Attributes:
        starts: Position of each shard's first sample, and their number at the end, int64 [shards + 1].
        kept: By shard the rows that are used, int32; `None` = all.
    """

    starts: np.ndarray
    kept: tuple[np.ndarray | None, ...]

    @classmethod
    def of(cls, shards: Sequence[tuple[int, np.ndarray | None]]) -> "Rows":
        """From every shard's number of samples and, where not all are used, the rows that are."""
        counts = [size if kept is None else len(kept) for size, kept in shards]
        return cls(np.cumsum([0, *counts], dtype=np.int64), tuple(kept for _, kept in shards))

    def __len__(self) -> int:
        """Number of samples."""
        return int(self.starts[-1])

    def __getitem__(self, position: int) -> tuple[int, int]:
        """Shard and row of a position."""
        if not 0 <= position < len(self):
            raise IndexError(position)
        shard = int(np.searchsorted(self.starts, position, side="right")) - 1
        row = position - int(self.starts[shard])
        kept = self.kept[shard]
        return shard, row if kept is None else int(kept[row])

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """All of them, in order."""
        return (self[position] for position in range(len(self)))


_TABLE = 2**26
"""Samples up to which an epoch's order is a table; a billion's would take 10 GB in every process."""
_ROUNDS = 6
_PERMUTATIONS: dict[tuple[int, int, int], np.ndarray] = {}


def _permutation(samples: int, epoch: int, seed: int) -> np.ndarray:
    key = (samples, epoch, seed)
    if key not in _PERMUTATIONS:
        if len(_PERMUTATIONS) > 1:  # a batch lies in two epochs at most times
            _PERMUTATIONS.clear()
        _PERMUTATIONS[key] = np.random.default_rng([seed, epoch]).permutation(samples)
    return _PERMUTATIONS[key]


def permuted(places: np.ndarray, samples: int, *, epoch: int, seed: int) -> np.ndarray:
    """Positions of an epoch at these places of its order, without a table of the others.

    A Feistel network over the next even number of bits, followed until it is back among the samples (cycle walking,
    Black and Rogaway, CT-RSA 2002): a permutation of `range(samples)` whatever the round function is.

    Args:
        places: int64 [n], 0 to `samples` - 1.
        samples: In the epoch.
        epoch: Chooses the permutation, with `seed`.
        seed: Of the run.
    """
    half = np.uint64((max(samples - 1, 1).bit_length() + 1) // 2)
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = np.random.default_rng([seed, epoch]).integers(2**63, size=_ROUNDS, dtype=np.uint64)
    found = places.astype(np.uint64)
    outside = np.ones(len(found), dtype=bool)
    while outside.any():
        left, right = found[outside] >> half, found[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        found[outside] = (left << half) | right
        outside = found >= samples
    return found.astype(np.int64)


def _mixed(value: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), which wraps around at 64 bits."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
