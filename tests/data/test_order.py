"""The order of training: every sample once per epoch, also where no table holds the order; where samples lie."""

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobileclip.data.order import WHOLE, Rows, Steps, Streams, permuted, place_batch
from mobileclip.training.world import World


@settings(max_examples=100, deadline=None)
@given(samples=st.integers(1, 3000), epoch=st.integers(0, 3), seed=st.integers(0, 2**32))
def test_without_a_table_every_position_comes_once(samples, epoch, seed):
    found = permuted(np.arange(samples), samples, epoch=epoch, seed=seed)
    assert sorted(found.tolist()) == list(range(samples))
    part = permuted(np.arange(samples)[samples // 3 :], samples, epoch=epoch, seed=seed)
    assert (
        part.tolist() == found[samples // 3 :].tolist()
    )  # a place's position does not depend on what is asked beside it


def test_without_a_table_the_order_looks_random():
    """Neighbors of the order: as far apart as in a random one (a third of the range), and evenly spread."""
    samples = 100_000
    found = permuted(np.arange(samples), samples, epoch=0, seed=0)
    distance = np.abs(np.diff(found)).mean() / samples
    assert distance == pytest.approx(1 / 3, abs=0.01)
    # Of the first tenth of the order every twentieth of the samples gets a twentieth: 500 each, deviation about 21.
    counts = np.histogram(found[: samples // 10], bins=20, range=(0, samples))[0]
    assert abs(counts - 500).max() < 100
    other = permuted(np.arange(samples), samples, epoch=1, seed=0)
    assert (found == other).mean() < 1e-3
    assert np.corrcoef(found, other)[0, 1] == pytest.approx(0, abs=0.02)


def test_a_step_over_billions_takes_no_memory():
    samples, batch = 1_280_000_000, 8192
    tracemalloc.start()
    first = place_batch(samples, batch, 0, 0)
    last = place_batch(samples, batch, samples // batch, 0)  # its end lies in the next epoch
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
    assert len({p for _, p in first}) == len(first) == batch
    assert {epoch for epoch, _ in last} == ({0, 1} if samples % batch else {1})
    assert max(p for _, p in first + last) < samples
    assert max(p for _, p in first) > 0.99 * samples


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=8), st.randoms())
def test_rows_are_those_of_a_plain_list(shards, random):
    given_rows = [
        (size, np.array([row for row in range(size) if random.random() < 0.5], np.int32) if some else None)
        for size, some in shards
    ]
    rows = Rows.of(given_rows)
    wanted = list(
        itertools.chain.from_iterable(
            ((shard, int(row)) for row in (range(size) if kept is None else kept))
            for shard, (size, kept) in enumerate(given_rows)
        )
    )
    assert list(rows) == wanted
    assert len(rows) == len(wanted)
    with pytest.raises(IndexError):
        rows[len(wanted)]


def _starts(sizes):
    return np.cumsum([0, *sizes], dtype=np.int64)


_SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=40).filter(sum)


class TestStreams:
    @settings(max_examples=80, deadline=None)
    @given(
        sizes=_SIZES, batch=st.integers(1, 40), seed=st.integers(0, 5), streams=st.integers(1, 6),
        window=st.integers(1, 4),
    )  # fmt: skip
    def test_every_epoch_holds_every_sample_once(self, sizes, batch, seed, streams, window):
        order = Streams(_starts(sizes), seed, streams=streams, window=window)
        samples = sum(sizes)
        steps = -(-2 * samples // batch)
        places = [place for step in range(steps) for place in order.place_batch(batch, step)]
        for epoch in (0, 1):
            assert sorted(position for e, position in places if e == epoch) == list(range(samples))

    @settings(max_examples=40, deadline=None)
    @given(sizes=_SIZES, batch=st.integers(1, 40), step=st.integers(0, 9), processes=st.integers(1, 5))
    def test_processes_share_the_batch_that_one_reads(self, sizes, batch, step, processes):
        """Also in any order of asking: nothing but (seed, step) decides."""
        whole = Streams(_starts(sizes), 3, streams=4).place_batch(batch, step)
        later = Streams(_starts(sizes), 3, streams=4)
        later.place_batch(batch, step + 5)
        shares = [later.place_batch(batch, step, World(rank, processes).rows(batch)) for rank in range(processes)]
        assert [place for share in shares for place in share] == whole

    def test_a_process_reads_shards_of_its_own_and_few_at_a_time(self):
        """64 shards of 100 in 8 streams, four processes: each has two streams' shards, in windows of two of each."""
        starts = _starts([100] * 64)
        order = Streams(starts, 0, streams=8, window=2)
        seen = []
        for rank in range(4):
            steps = [order.place_batch(32, step, World(rank, 4).rows(32)) for step in range(200)]
            shards = [{int(np.searchsorted(starts, p, side="right")) - 1 for _, p in step} for step in steps]
            seen.append(set().union(*shards))
            for first in range(0, 200, 50):  # 50 steps x 8 samples are the 2 x 2 x 100 of two streams' windows
                assert len(set().union(*shards[first : first + 50])) == 4
        assert sum(len(own) for own in seen) == len(set().union(*seen)) == 64

    def test_a_step_over_many_shards_takes_little_memory(self):
        starts = _starts([19_531] * 65_536)
        tracemalloc.start()
        order = Streams(starts, 0)
        first = order.place_batch(8192, 0, slice(0, 1024))
        last = order.place_batch(8192, int(starts[-1]) // 8192, slice(0, 1024))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 20e6
        assert len({p for _, p in first}) == 1024
        assert {epoch for epoch, _ in last} <= {0, 1}
        assert max(p for _, p in first + last) < starts[-1]

    def test_samples_of_a_window_are_mixed(self):
        """The ranks of a stream's first window against their places: no correlation, all shards from the start on."""
        starts = _starts([1000] * 30)
        order = Streams(starts, 0, streams=10, window=3)
        positions = np.array([p for step in range(30) for _, p in order.place_batch(1000, step)])
        positions = positions.reshape(30, 10, 100).swapaxes(0, 1).reshape(10, 3000)
        for own in positions:
            assert abs(np.corrcoef(np.arange(3000), own % 1000)[0, 1]) < 0.08  # over four deviations of 1 / sqrt(3000)
            assert len(set((own[:60] // 1000).tolist())) == len(set((own // 1000).tolist())) == 3


def test_many_shards_are_read_in_streams_and_few_are_permuted_whole():
    for shards, streamed in ((WHOLE, False), (WHOLE + 1, True)):
        starts = _starts([3] * shards)
        (places,) = Steps(starts, 64, 2, 3, 7, slice(None))
        whole = place_batch(3 * shards, 64, 2, 7)
        assert places == (Streams(starts, 7).place_batch(64, 2) if streamed else whole)
        assert (places != whole) is streamed
