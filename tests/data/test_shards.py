"""Shards: equal samples give equal bytes, webdataset reads them, a cut tar is refused."""

import hashlib
import json
import pickle
import tarfile

import pytest
import webdataset

from mobileclip import manifest
from mobileclip.data.shards import Sample, ShardReader, read_samples, write_shard
from mobileclip.errors import DataError
from mobileclip.manifest import uids_digest
from tests.stages import shapes

HOSTILE = 'tab\t "quoted" \\ é 猫 \U0001f600 </title>'


def _samples(count: int = 5):
    return [
        (
            Sample(
                f"{index:024x}",
                shapes.draw("red", "circle", 10 + index),
                {"captions": [f"number {index}", HOSTILE], "group": "a", "nested": {"b": [1, None]}},
            ),
            "png" if index % 2 else "webp",
        )
        for index in range(count)
    ]


def test_equal_samples_give_equal_bytes_whatever_the_order_of_their_fields(tmp_path):
    samples = _samples()
    turned = [(Sample(s.uid, s.image, dict(reversed(s.metadata.items()))), e) for s, e in samples]
    first = write_shard(str(tmp_path / "a"), "train-00000", "train", samples)
    assert write_shard(str(tmp_path / "b"), "train-00000", "train", turned) == first
    data = (tmp_path / "a" / "train-00000.tar").read_bytes()
    assert data == (tmp_path / "b" / "train-00000.tar").read_bytes()
    assert hashlib.sha256(data).hexdigest() == first.sha256
    assert (first.bytes, first.samples) == (len(data), 5)
    assert first.uids_sha256 == uids_digest([s.uid for s, _ in samples])
    with tarfile.open(tmp_path / "a" / "train-00000.tar") as tar:
        assert {member.mtime for member in tar} == {0}


def test_samples_come_back_in_any_order_and_in_another_process(tmp_path):
    samples = _samples()
    reader = ShardReader(str(tmp_path), write_shard(str(tmp_path), "s", "train", samples))
    assert len(reader) == 5
    assert reader.uids == [s.uid for s, _ in samples]
    for index in (3, 0, 4, 3):
        assert reader.sample(index) == samples[index][0]
    travelled = pickle.loads(pickle.dumps(reader))
    assert travelled.sample(2) == samples[2][0]
    assert travelled.sample(2).captions == ["number 2", HOSTILE]


def test_webdataset_itself_reads_them(tmp_path):
    samples = _samples()
    write_shard(str(tmp_path), "s", "train", samples)
    found = list(webdataset.WebDataset(str(tmp_path / "s.tar"), shardshuffle=False))
    assert [row["__key__"] for row in found] == [s.uid for s, _ in samples]
    for row, (sample, extension) in zip(found, samples, strict=True):
        assert row[extension] == sample.image
        assert json.loads(row["json"]) == sample.metadata
        assert row["txt"].decode() == sample.captions[0]
    decoded = next(iter(webdataset.WebDataset(str(tmp_path / "s.tar"), shardshuffle=False).decode("pil")))
    assert decoded["webp"].size == (64, 64)
    assert decoded["json"]["group"] == "a"


def _cuts(path):
    """Ends of a tar: between samples, between members, within a header, within a picture, nothing left."""
    with tarfile.open(path) as tar:
        members = list(tar)
    yield "between samples", members[9].offset
    yield "between members", members[10].offset
    yield "within a header", members[6].offset + 100
    yield "within a picture", members[9].offset_data + 40
    yield "all of it", 0


def _written(folder, *, indexed):
    """A shard's entry, with its index or as earlier datasets have it."""
    shard = write_shard(str(folder), "s", "train", _samples())
    return shard if indexed else shard.model_copy(update={"index_sha256": ""})


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("case", range(5))
def test_a_cut_tar_is_refused_with_a_sentence(tmp_path, case, indexed):
    shard = _written(tmp_path, indexed=indexed)
    path = tmp_path / "s.tar"
    _, end = list(_cuts(path))[case]
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(
        DataError, match=r"^shard 's': '.*s\.tar' (is no readable tar: .*|has \d+ (samples|bytes), .*|lacks .*)\.$"
    ) as caught:
        ShardReader(str(tmp_path), shard)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("indexed", [True, False])
def test_what_is_no_tar_or_other_samples_or_missing_is_refused(tmp_path, indexed):
    shard = _written(tmp_path, indexed=indexed)
    write_shard(str(tmp_path), "s", "train", _samples()[::-1])
    with pytest.raises(DataError, match=r"^shard 's': .* has 5 samples, the manifest promises 5 with uids"):
        ShardReader(str(tmp_path), shard)
    (tmp_path / "s.tar").write_bytes(b"no tar at all " * 100)
    with pytest.raises(DataError, match=r"^shard 's': '.*' (is no readable tar|has 1400 bytes, )"):
        ShardReader(str(tmp_path), shard)
    (tmp_path / "s.tar").unlink()
    with pytest.raises(DataError, match=r"no file '.*s\.tar'"):
        ShardReader(str(tmp_path), shard)


def test_read_samples_goes_through_the_splits_in_order(tiny_data):
    content = manifest.read(tiny_data)
    uids = [s.uid for s in read_samples(tiny_data, content, "train", "test")]
    expected = [u for shard in content.split("train", "test") for u in ShardReader(tiny_data, shard).uids]
    assert uids == expected
    assert len(uids) == 36
