"""The order in which training sees samples: a function of seed and step alone, whatever processes or restarts do."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

Place = tuple[int, int]
"""(epoch, position in the split)."""


@dataclass(frozen=True)
class Steps:
    """The places of steps `first`..`last` - 1, planned as they come: a long run has billions.

    Attributes:
        starts: Position of each shard's first sample, and their number at the end, int64 [shards + 1].
        batch_size: Samples of a step, over all processes.
        first: The first step.
        last: The step before which it ends.
        seed: Of the order.
        rows: The share of every batch that this process reads.
    """

    starts: np.ndarray
    batch_size: int
    first: int
    last: int
    seed: int
    rows: slice

    def __iter__(self) -> Iterator[list[Place]]:
        steps = range(self.first, self.last)
        if len(self.starts) - 1 <= WHOLE:
            samples = int(self.starts[-1])
            return (place_batch(samples, self.batch_size, step, self.seed)[self.rows] for step in steps)
        order = Streams(self.starts, self.seed)
        return (order.place_batch(self.batch_size, step, self.rows) for step in steps)


def place_batch(samples: int, batch_size: int, step: int, seed: int) -> list[Place]:
    """(epoch, position) of every sample of one step, where each epoch is permuted whole."""
    places: list[Place] = []
    for epoch, offsets in _epochs(samples, batch_size, step):
        if samples <= _TABLE:
            order = _permutation(samples, epoch, seed)[offsets]
        else:
            order = permuted(offsets, samples, epoch=epoch, seed=seed)
        places += [(epoch, int(p)) for p in order]
    return places


def _epochs(samples: int, batch_size: int, step: int) -> Iterator[tuple[int, np.ndarray]]:
    """The epochs that lie in a step, with the places of its samples in the order of each."""
    start, stop = step * batch_size, (step + 1) * batch_size
    while start < stop:
        epoch, offset = divmod(start, samples)
        count = min(stop - start, samples - offset)
        yield epoch, np.arange(offset, offset + count)
        start += count


class Streams:
    """The order of many shards: a process touches few of them at a time, and no table of samples is made.

    The shards of an epoch are permuted and dealt to a fixed number of streams. A stream goes through its shards in
    windows and permutes the samples of a window. The epoch takes one sample of every stream in turn; streams that are
    at their end are left out. Within a batch samples are sorted by stream, so that processes which share a batch in
    equal parts have shards of their own. The batches are a function of seed and step, whatever reads them. (The
    canonical nodes of MosaicML's Streaming have the same purpose.)
    """

    def __init__(self, starts: np.ndarray, seed: int, *, streams: int = 128, window: int = 2) -> None:
        """The order of shards with these first positions.

        Args:
            starts: Position of each shard's first sample, and their number at the end, int64 [shards + 1].
            seed: Of the run.
            streams: Streams; a multiple of the number of processes keeps their shards apart.
            window: Shards of a stream whose samples are permuted together.
        """
        self._starts, self._seed, self._window = starts, seed, window
        self._count = min(streams, len(starts) - 1)
        self._plans: dict[int, _Epoch] = {}

    def place_batch(self, batch_size: int, step: int, rows: slice = slice(None)) -> list[Place]:
        """(epoch, position) of these rows of one step."""
        parts = [
            (epoch, *self._plan(epoch).deal(offsets)) for epoch, offsets in _epochs(self._samples, batch_size, step)
        ]
        epochs = np.concatenate([np.full(len(streams), epoch) for epoch, streams, _ in parts])[rows]
        streams, places = (np.concatenate([part[column] for part in parts])[rows] for column in (1, 2))
        found: list[Place] = []
        for epoch in dict.fromkeys(epochs.tolist()):
            own = epochs == epoch
            found += [(epoch, int(p)) for p in self._plan(epoch).positions(streams[own], places[own])]
        return found

    @property
    def _samples(self) -> int:
        return int(self._starts[-1])

    def _plan(self, epoch: int) -> "_Epoch":
        if epoch not in self._plans:
            if len(self._plans) > 1:  # a batch lies in two epochs at most times
                self._plans.clear()
            self._plans[epoch] = _Epoch.plan(self._starts, self._count, self._window, epoch, self._seed)
        return self._plans[epoch]


@dataclass(frozen=True)
class _Epoch:
    """One epoch of `Streams`.

    Attributes:
        starts: As in `Streams`.
        shards: By stream its shards in order.
        ends: By stream where each of its shards begins in it, and its length at the end.
        window: Shards per window.
        epoch: Its number.
        seed: Of the run.
    """

    starts: np.ndarray
    shards: tuple[np.ndarray, ...]
    ends: tuple[np.ndarray, ...]
    window: int
    epoch: int
    seed: int

    @classmethod
    def plan(cls, starts: np.ndarray, streams: int, window: int, epoch: int, seed: int) -> "_Epoch":
        """Permute and deal the shards."""
        order = np.random.default_rng([seed, epoch]).permutation(len(starts) - 1)
        sizes = np.diff(starts)
        shards = tuple(order[stream::streams] for stream in range(streams))
        return cls(starts, shards, tuple(np.cumsum([0, *sizes[own]]) for own in shards), window, epoch, seed)

    def deal(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Stream and place in it of places of the epoch's order, int64 [n] each, sorted by stream."""
        lengths = np.array([ends[-1] for ends in self.ends])
        by_length = np.argsort(lengths, kind="stable")
        ordered = lengths[by_length]
        # Samples before a round are sum(min(length, round)): between two streams' ends each round takes one of every
        # stream that is left.
        left = len(ordered) - np.arange(len(ordered))
        taken = np.cumsum(np.diff(ordered, prepend=0) * left)  # when the streams end, shortest first
        ended = np.searchsorted(taken, places, side="right")
        before = np.where(ended > 0, taken[ended - 1], 0)
        first = np.where(ended > 0, ordered[ended - 1], 0)
        rounds, turn = np.divmod(places - before, left[ended])
        streams = by_length[ended + turn]
        by_stream = np.argsort(streams, kind="stable")
        return streams[by_stream], (first + rounds)[by_stream]

    def positions(self, streams: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Positions in the data set of places in streams, int64 [n]."""
        found = np.empty(len(places), dtype=np.int64)
        for stream in np.unique(streams).tolist():
            rows = np.flatnonzero(streams == stream)
            found[rows] = self._in_stream(stream, places[rows])
        return found

    def _in_stream(self, stream: int, places: np.ndarray) -> np.ndarray:
        ends = self.ends[stream]
        windows = np.append(ends[: -1 : self.window], ends[-1])
        own = np.searchsorted(windows, places, side="right") - 1
        shuffled = np.empty(len(places), dtype=np.int64)
        for window in np.unique(own).tolist():
            rows, start = own == window, windows[window]
            key = (self.epoch * len(self.shards) + stream) * 2**32 + window
            length = int(windows[window + 1] - start)
            shuffled[rows] = start + permuted(places[rows] - start, length, epoch=key, seed=self.seed)
        shard = np.searchsorted(ends, shuffled, side="right") - 1
        positions: np.ndarray = self.starts[self.shards[stream][shard]] + shuffled - ends[shard]
        return positions


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


WHOLE = 256
"""Shards up to which an epoch is permuted whole: as many as lie in the windows of all streams."""
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
