"""The index beside a shard: what the tar's own headers say, whole or not used."""

import io
import json
import logging
import tarfile

import pytest

from mobileclip.data.shards import Sample, ShardReader, write_shard
from mobileclip.data.tar_index import index_tar
from mobileclip.errors import DataError

UIDS = ["a", "ünicode", "x" * 120, "0123456789abcdef"]  # a long one gets a second header


def _samples():
    return [
        (Sample(uid, bytes([place]) * (place * 700 + 1), {"captions": [uid], "place": place}), "png")
        for place, uid in enumerate(UIDS)
    ]


def _members(tar):
    with tarfile.open(tar) as file:
        return {info.name: (info.offset_data, info.size) for info in file}


def test_it_says_where_the_tar_has_its_members(tmp_path):
    write_shard(str(tmp_path), "s", "train", _samples())
    members = _members(tmp_path / "s.tar")
    with (tmp_path / "s.tar").open("rb") as file:
        found = index_tar(file, name="s")
    assert found.all_uids() == [found.uid(row) for row in range(len(found))] == UIDS
    assert [tuple(row) for row in found.spans.tolist()] == [
        (*members[f"{uid}.png"], *members[f"{uid}.json"]) for uid in UIDS
    ]
    assert (tmp_path / "s.index").read_bytes() == found.to_bytes()


@pytest.mark.parametrize(
    "state", ["as written", "none in the manifest", "missing", "flipped", "of another shard", "empty"]
)
def test_samples_are_the_same_whatever_became_of_it(tmp_path, caplog, state):
    shard = write_shard(str(tmp_path), "s", "train", _samples())
    path = tmp_path / shard.index_path
    content = bytearray(path.read_bytes())
    content[-20] ^= 1  # within the spans: it would cut other bytes out of the tar
    if state == "none in the manifest":
        shard = shard.model_copy(update={"index_sha256": ""})
    elif state == "missing":
        path.unlink()
    elif state == "flipped":
        path.write_bytes(content)
    elif state == "of another shard":
        other = write_shard(str(tmp_path), "t", "train", _samples()[::-1])
        path.write_bytes((tmp_path / other.index_path).read_bytes())
    elif state == "empty":
        path.write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        reader = ShardReader(str(tmp_path), shard)
    assert [reader.sample(row) for row in range(len(reader))] == [sample for sample, _ in _samples()]
    said = [record.message for record in caplog.records]
    assert len(said) == (state not in {"as written", "none in the manifest"})
    assert all(line.endswith("reading the tar's own headers instead.") for line in said)


@pytest.mark.parametrize("lost", ["json", "png"])
def test_a_sample_without_its_members_is_named(lost):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for uid in ("a", "b"):
            for extension, data in (("json", json.dumps({}).encode()), ("png", b"x")):
                if (uid, extension) != ("b", lost):
                    info = tarfile.TarInfo(f"{uid}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    stream.seek(0)
    with pytest.raises(DataError, match=r"^shard 's' lacks the image or the json of 'b'\.$"):
        index_tar(stream, name="shard 's'")
