"""One flipped byte in what a finished run or an interrupted training left: no reader goes on as if nothing were."""

import json

import numpy as np
import pytest
import torch

from mobileclip import manifest, storage
from mobileclip.data.columns import ColumnPlan, ColumnReader, collect, commit
from mobileclip.data.shards import ShardReader, read_samples
from mobileclip.errors import MobileClipError
from mobileclip.models import zoo
from mobileclip.training import checkpoint
from tests.stages import shapes
from tests.training import test_checkpoint as trainings

FLIPS = 25  # per file


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A dataset with a column of numbers."""
    out = shapes.make(tmp_path_factory.mktemp("data"))
    found = manifest.read(out)
    plan = ColumnPlan("numbers", "selection", {"seed": 1})
    for shard in found.shards:
        commit(out, plan, shard, {"values": torch.arange(shard.samples * 8).view(shard.samples, 8)})
    manifest.write(out, collect(out, [plan], found.shards, found))
    return out


def _read_shards(out):
    return [(sample.image, sample.metadata) for sample in read_samples(out, manifest.read(out), "train", "validation")]


def _read_column(out):
    found = manifest.read(out)
    return [ColumnReader(out, found.column("numbers"), shard).all("values").tolist() for shard in found.shards]


def _flipped(path, read, seed):
    """How often a flip anywhere in the file was used without a word."""
    original, places = path.read_bytes(), np.random.RandomState(seed)
    before, silent, said = read(), [], []
    for _ in range(FLIPS):
        place, bit = places.randint(len(original)), 1 << places.randint(8)
        changed = bytearray(original)
        changed[place] ^= bit
        path.write_bytes(changed)
        try:
            read()
        except MobileClipError as error:
            said.append(str(error))
        else:
            silent.append(place)
    path.write_bytes(original)
    assert read() == before
    assert not [sentence for sentence in said if "\n" in sentence]
    return silent


@pytest.mark.parametrize("index", [0, -1])
def test_shards(data, index):
    shard = manifest.read(data).shards[index]
    assert _flipped(storage.local_copy(storage.join(data, shard.path)), lambda: _read_shards(data), 1) == []


def test_columns(data):
    found = manifest.read(data)
    path = storage.local_copy(storage.join(data, found.column("numbers").parts[found.shards[0].name].path))
    assert _flipped(path, lambda: _read_column(data), 2) == []


@pytest.mark.parametrize("name", [zoo.CONFIG_FILE, zoo.WEIGHTS_FILE])
def test_models(tmp_path, name):
    zoo.save(str(tmp_path), zoo.create("tiny-resnet"), license="MIT", card={})
    assert _flipped(tmp_path / name, lambda: zoo.load(f"local-dir:{tmp_path}").sha256, 3) == []


@pytest.mark.parametrize("name", [checkpoint.STATE, checkpoint.MODEL, checkpoint.OPTIMIZER, checkpoint.MEAN])
def test_interrupted_trainings(tmp_path, name):
    model, optimizer = trainings._trained()
    trainings._save(tmp_path, model, optimizer)

    def read():
        step = checkpoint.find(str(tmp_path), key="a")
        return step, checkpoint.load(str(tmp_path), step, model=model, optimizer=optimizer).history

    assert _flipped(tmp_path / "step-000000003" / name, read, 4) == []


@pytest.mark.parametrize("name", [checkpoint.MODEL, checkpoint.BEST])
def test_best_weights(tmp_path, name):
    checkpoint.save_best(str(tmp_path), 7, {"x": torch.arange(100.0)})
    path = tmp_path / "best-000000007" / name
    assert (
        _flipped(
            path, lambda: {name: value.tolist() for name, value in checkpoint.load_best(str(tmp_path), 7).items()}, 5
        )
        == []
    )


def test_a_shard_is_hashed_once_by_all_who_read_it(data, monkeypatch):
    found = manifest.read(data)
    hashed = []
    digest_file = storage.checked.digest_file
    monkeypatch.setattr(storage.checked, "digest_file", lambda path: hashed.append(path) or digest_file(path))
    monkeypatch.setattr(storage.checked, "_marks", [])
    readers = [ShardReader(data, found.shards[0]) for _ in range(3)]
    assert [path.suffix for path in hashed] == [".index"]  # opening reads the index alone
    assert len({json.dumps(reader.sample(0).metadata) for reader in readers}) == 1
    assert [path.suffix for path in hashed] == [".index", ".tar"]
