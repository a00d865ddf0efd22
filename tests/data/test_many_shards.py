"""More shards than are opened at once: files are looked for first, opened at their turn, and none is held open."""

import resource
import shutil
from multiprocessing import get_context
from pathlib import Path

import pytest

from mobileclip import manifest
from mobileclip.data.loader import PairDataset, Recipe, batches
from mobileclip.data.order import WHOLE, Streams
from mobileclip.errors import DataError, IntegrityError
from mobileclip.manifest import Manifest
from tests.data.pairs import equal

SHARDS = WHOLE + 44
FILES = 24
"""Descriptors that the process may still open; the data set has 2,000 files and more."""


@pytest.fixture(scope="module")
def many(content) -> Manifest:
    """The first training shard under many names: a description of a large data set."""
    first = content.split("train")[0]
    names = [f"train-{number:05d}" for number in range(SHARDS)]
    columns = [
        column.model_copy(update={"parts": dict.fromkeys(names, column.parts[first.name])})
        for column in content.columns
        if first.name in column.parts
    ]
    return Manifest(shards=[first.model_copy(update={"name": name}) for name in names], columns=columns)


def _read(folder: str, many: Manifest, recipe: Recipe) -> None:
    dataset = PairDataset(folder, many, recipe)
    held = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (held + FILES, held + FILES))
    first = dataset[0, 0]
    for start in dataset.starts[:-1]:
        assert equal(dataset[0, int(start)], first)  # every shard is the same one
    assert len(list(Path("/proc/self/fd").iterdir())) <= held + 1


def test_under_a_small_limit_of_open_files_every_shard_is_read(tiny_reinforced, many, recipe):
    columns = len(PairDataset(tiny_reinforced, many, recipe)._columns)
    assert SHARDS * (columns + 1) > 50 * FILES
    child = get_context("fork").Process(target=_read, args=(tiny_reinforced, many, recipe))
    child.start()
    child.join(300)
    assert child.exitcode == 0


def test_opening_opens_no_shard(tiny_reinforced, many, recipe, monkeypatch):
    opened = []
    monkeypatch.setattr("mobileclip.data.loader.ShardReader", lambda *_: opened.append(1))
    PairDataset(tiny_reinforced, many, recipe)
    assert opened == []


def test_batches_follow_the_streams_on_any_number_of_workers(tiny_reinforced, many, recipe):
    dataset = PairDataset(tiny_reinforced, many, recipe)
    places = Streams(dataset.starts, 5).place_batch(16, 1)
    for workers in (0, 2):
        (batch,) = batches(dataset, batch_size=16, first_step=1, last_step=2, seed=5, workers=workers)
        for row, place in enumerate(places):
            assert equal({name: value[row] for name, value in batch.items()}, dataset[place])


@pytest.fixture
def copied(tiny_reinforced, many, tmp_path) -> tuple[str, Manifest]:
    """The same with one column file of its own, that of the last shard."""
    moved = many.moved(tiny_reinforced, str(tmp_path))
    column = moved.column("views")
    part = column.parts[many.shards[-1].name]
    shutil.copy(tmp_path / part.path, tmp_path / "last.safetensors")
    own = column.model_copy(
        update={"parts": {**column.parts, many.shards[-1].name: part.model_copy(update={"path": "last.safetensors"})}}
    )
    return str(tmp_path), moved.with_column(own)


def test_a_file_that_is_missing_or_cut_is_named_before_the_first_step(copied, recipe):
    folder, content = copied
    PairDataset(folder, content, recipe)
    last = Path(folder, "last.safetensors")
    size = last.stat().st_size
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.raises(
        DataError, match=rf"^data: '.*last\.safetensors' has {size - 1} bytes, the manifest promises {size}\.$"
    ):
        PairDataset(folder, content, recipe)
    last.unlink()
    with pytest.raises(DataError, match=r"^data: '.*last\.safetensors' is missing\.$"):
        PairDataset(folder, content, recipe)


def test_a_shard_without_a_column_is_named_before_the_first_step(tiny_reinforced, many, recipe):
    column = many.column("views")
    parts = {name: part for name, part in column.parts.items() if name != many.shards[7].name}
    with pytest.raises(IntegrityError, match=r"^column 'views': has no rows for shard 'train-00007'\.$"):
        PairDataset(tiny_reinforced, many.with_column(column.model_copy(update={"parts": parts})), recipe)


def test_no_manifest_is_written_with_an_index_it_does_not_have(content):
    """Entries of earlier data sets keep their bytes, and so their digest."""
    first = content.shards[0]
    assert "index_sha256" in first.model_dump()
    assert "index_sha256" not in first.model_copy(update={"index_sha256": ""}).model_dump()
    assert manifest.Shard.model_validate(first.model_dump()) == first
