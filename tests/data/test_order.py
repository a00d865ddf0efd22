"""The order of training: every sample once per epoch, also where no table holds the order; where samples lie."""

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobileclip.data.order import Rows, permuted, place_batch


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
