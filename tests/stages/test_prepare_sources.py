"""prepare from every kind of source, with duplicates, look-alikes, the license ledger and bounded memory."""

import io
import json
import shutil
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from mobileclip import manifest
from mobileclip.convert import convert
from mobileclip.data.shards import read_samples
from mobileclip.errors import DataError
from mobileclip.models.replay import verify
from tests.stages import shapes
from tests.stages.preparing import read_back, run_prepare, write_table


def _img2dataset(folder, count, shards=2, **fields):
    """Shards as img2dataset writes them: numbered keys, a json with status and digests, two files beside each tar."""
    folder.mkdir(parents=True)
    for shard in range(shards):
        with webdataset.TarWriter(str(folder / f"{shard:05d}.tar"), encoder=False) as writer:
            for row in range(count):
                key, text = f"{shard:05d}{row:04d}", f"number {row} of {shard}"
                image = shapes.draw("#%06x" % (shard * 77_777 + row * 4099), "cross", 20)
                record = {
                    "caption": text, "url": "https://x", "key": key, "status": "success", "error_message": None,
                    "width": 1, "height": 1, "original_width": 64, "exif": "{}", "sha256": "0" * 64, **fields,
                }  # fmt: skip
                writer.write({"__key__": key, "png": image, "txt": text.encode(), "json": json.dumps(record).encode()})
        (folder / f"{shard:05d}.parquet").write_bytes(b"")
        (folder / f"{shard:05d}_stats.json").write_text("{}")
    return folder


def test_img2dataset_output_as_it_is(tmp_path):
    source = _img2dataset(tmp_path / "source", 5)
    metrics = run_prepare(source, tmp_path / "out", validation_share=0)
    assert metrics["samples/train"] == 10
    samples = read_back(tmp_path / "out").values()
    assert {s.captions[0] for s in samples} == {f"number {r} of {s}" for s in range(2) for r in range(5)}
    for sample in samples:  # its own record, but for the size, which is that of the bytes here
        assert sample.metadata["url"] == "https://x"
        assert sample.metadata["original_width"] == sample.metadata["width"] == 64
        assert len(sample.metadata["key"]) == 9
    with pytest.raises(DataError, match=r"10 of 10 samples are bad .*: its bytes are not those of its sha256 field;"):
        run_prepare(source, tmp_path / "out", check_sha256=True)
    _img2dataset(tmp_path / "failed", 3, status="failed_to_download", error_message="HTTP Error 404")
    with pytest.raises(DataError, match=r"6 of 6 samples are bad .*: its download failed: HTTP Error 404; all"):
        run_prepare(tmp_path / "failed", tmp_path / "out")


def test_coco(tmp_path):
    (tmp_path / "val2017").mkdir()
    images = []
    for index in range(4):
        (tmp_path / "val2017" / f"{index}.png").write_bytes(shapes.draw("red", "circle", 20 + 2 * index))
        images.append({"id": index, "file_name": f"{index}.png", "license": 1})
    captions = [{"image_id": i % 4, "caption": f"caption {i}"} for i in range(20)]
    content = {"images": images, "annotations": captions, "licenses": [{"id": 1, "name": "CC-BY-4.0"}]}
    (tmp_path / "captions_val2017.json").write_text(json.dumps(content))
    metrics = run_prepare(tmp_path, tmp_path / "out")
    assert metrics["samples/validation"] == 4
    assert all(len(s.captions) == 5 for s in read_back(tmp_path / "out").values())
    assert [(s.license, s.samples) for s in manifest.read(str(tmp_path / "out")).sources] == [("CC-BY-4.0", 4)]


class TestDuplicates:
    def _source(self, tmp_path):
        rows = [{"captions": ["one", "two"]}, {"caption": "three", "image": "copy.png"}, {"caption": "other"}]
        source = write_table(tmp_path / "source", rows)
        (source / "copy.png").write_bytes((source / "0.png").read_bytes())
        with (source / "captions.jsonl").open("a") as handle:
            handle.write(json.dumps({"image": "0.png", "captions": ["two", "four"]}) + "\n")
        return source

    def test_are_counted_and_dropped(self, tmp_path):
        metrics = run_prepare(self._source(tmp_path), tmp_path / "out")
        assert (metrics["duplicates"], metrics["quarantined"], metrics["rows_joined"]) == (1, 0, 1)
        # A further row of the same file is one more row of its captions, no duplicate.
        expected = {("one", "two", "four"), ("other",)}
        assert {tuple(s.captions) for s in read_back(tmp_path / "out").values()} == expected

    def test_or_give_their_captions_to_the_first(self, tmp_path):
        metrics = run_prepare(self._source(tmp_path), tmp_path / "out", duplicates="merge")
        assert (metrics["duplicates"], metrics["merged_captions"], metrics["rows_joined"]) == (1, 1, 1)
        expected = {("one", "two", "three", "four"), ("other",)}
        assert {tuple(s.captions) for s in read_back(tmp_path / "out").values()} == expected


def test_look_alikes_are_reported_also_across_splits_and_none_is_left_out(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    (tmp_path / "source").mkdir()
    for index in range(6):
        noise = Image.fromarray(rng.integers(0, 256, (6, 8, 3)).astype(np.uint8)).resize((160, 120))
        noise.save(tmp_path / "source" / f"{index}.png")
        rows.append({"image": f"{index}.png", "caption": "x", "split": "train"})
        if index < 2:
            noise.save(tmp_path / "source" / f"{index}-small.jpg", quality=60)
            rows.append({"image": f"{index}-small.jpg", "caption": "x", "split": ("train", "test")[index]})
    write_table(tmp_path / "source", rows)
    metrics = run_prepare(tmp_path / "source", tmp_path / "out", near_duplicates=True)
    assert metrics["samples/train"] + metrics["samples/test"] == 8
    assert (metrics["near_duplicates"], metrics["near_duplicates/across_splits"]) == (2, 1)
    lines = (tmp_path / "out" / "near_duplicates.jsonl").read_text().splitlines()
    samples = read_back(tmp_path / "out")
    for line in map(json.loads, lines):
        assert {samples[uid].metadata["width"] for uid in line["uids"]} == {160}
        assert line["distance"] <= 3
    assert {tuple(sorted(json.loads(line)["splits"])) for line in lines} == {("train", "train"), ("test", "train")}


def test_the_ledger_of_the_input_folder_goes_into_the_manifest(tmp_path):
    rows = [{"caption": "x", "artist": "ann"}, {"caption": "x", "artist": "ann"}, {"caption": "x", "license": "MIT"}]
    source = write_table(tmp_path / "source", rows)
    ledger = [{"set": "ann", "license": "CC-BY-4.0", "attribution": "Drawings by Ann."}]
    (source / "LICENSES.json").write_text(json.dumps(ledger))
    run_prepare(source, tmp_path / "out")
    assert [s.model_dump() for s in manifest.read(str(tmp_path / "out")).sources] == [
        {"name": "ann", "license": "CC-BY-4.0", "attribution": "Drawings by Ann.", "samples": 2},
        {"name": "pictures and captions", "license": "MIT", "attribution": "", "samples": 1},
    ]


def test_shards_end_at_their_samples_or_bytes(tmp_path):
    source = write_table(tmp_path / "source", [{"caption": "x"} for _ in range(20)])
    sizes = [(source / f"{i}.png").stat().st_size for i in range(20)]
    limit = 4 * max(sizes)
    run_prepare(source, tmp_path / "bytes", shard_bytes=limit, validation_share=0)
    content = manifest.read(str(tmp_path / "bytes"))
    held = [
        [len(s.image) for s in read_samples(str(tmp_path / "bytes"), _only(content, k), "train")]
        for k in range(len(content.shards))
    ]
    assert all(sum(part) <= limit for part in held)
    assert all(sum(part) + held[k + 1][0] > limit for k, part in enumerate(held[:-1]))
    run_prepare(source, tmp_path / "bytes", shard_bytes=1, validation_share=0)  # a single picture may be larger
    assert [s.samples for s in manifest.read(str(tmp_path / "bytes")).shards] == [1] * 20
    run_prepare(source, tmp_path / "bytes", validation_share=0)
    assert [p.name for p in sorted((tmp_path / "bytes").glob("*.tar"))] == ["train-00000.tar"]  # no stale ones


def _only(content, index):
    return content.model_copy(update={"shards": content.shards[index : index + 1]})


@pytest.mark.parametrize("kind", ["folder", "tar", "gz"])
def test_memory_does_not_grow_with_the_data(tmp_path, kind):
    """36 MB of pictures in shards of 2 MB: what is held at once is a shard or two, whatever the source."""
    rng = np.random.default_rng(0)
    source = tmp_path / "source"
    source.mkdir()
    members = {}
    for index in range(24):
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (700, 715, 3)).astype(np.uint8)).save(stream, "BMP")
        members[f"{index}"] = stream.getvalue()
    if kind == "folder":
        for name, data in members.items():
            (source / f"{name}.png").write_bytes(data)  # what a file is, its bytes say
            (source / f"{name}.txt").write_text("x")
    else:
        with webdataset.TarWriter(str(source / "0.tar"), encoder=False, compress=kind == "gz") as writer:
            for name, data in members.items():
                writer.write({"__key__": name, "png": data, "txt": b"x"})
    del members, data
    tracemalloc.start()
    try:
        metrics = run_prepare(source, tmp_path / "out", shard_bytes=2_000_000, validation_share=0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert metrics["samples/train"] == 24
    assert peak < 12_000_000
    assert not list(Path(tmp_path / "out").glob(".*"))


class TestDataCompDR:
    @pytest.fixture(scope="class")
    def source(self, tiny_reinforced, tiny_data, tmp_path_factory) -> Path:
        """Reinforcement tars without pictures, and the pictures in tars of their own."""
        folder = tmp_path_factory.mktemp("public")
        convert(tiny_reinforced, out=str(folder / "reinforcement"), options={"without_images": True})
        (folder / "images").mkdir()
        for shard in manifest.read(tiny_data).split("train"):
            shutil.copy(Path(tiny_data) / shard.path, folder / "images")
        return folder

    def test_becomes_shards_with_columns(self, source, tiny_reinforced, tmp_path):
        metrics = run_prepare(source, tmp_path / "out", validation_share=0)
        assert (metrics["samples/train"], metrics["coverage"], metrics["missing_pictures"]) == (32, 1, 0)
        content = manifest.read(str(tmp_path / "out"))
        assert [c.name for c in content.columns] == ["views", "coca", "first.views", "first.captions", "first.coca"]
        verify(str(tmp_path / "out"))
        one = {s.uid: (s.image, s.captions) for s in read_samples(str(tmp_path / "out"), content, "train")}
        before = manifest.read(tiny_reinforced)
        assert one == {s.uid: (s.image, s.captions) for s in read_samples(tiny_reinforced, before, "train")}

    def test_dead_links_are_counted_and_damaged_rows_limited(self, source, tmp_path):
        shutil.copytree(source, tmp_path / "source")
        (tmp_path / "source" / "images" / "train-00001.tar").unlink()
        metrics = run_prepare(tmp_path / "source", tmp_path / "out")
        assert (metrics["missing_pictures"], metrics["coverage"], metrics["quarantined"]) == (16, 0.5, 0)
        (tmp_path / "source" / "images" / "train-00000.tar").unlink()
        with pytest.raises(DataError, match=r"^convert\.images: '.*' holds no tars\.$"):
            run_prepare(tmp_path / "source", tmp_path / "out")
        with (
            tarfile.open(source / "images" / "train-00000.tar") as tar,
            tarfile.open(tmp_path / "source" / "images" / "train-00000.tar", "w") as copy,
        ):
            for info in tar:  # pictures that are cut
                data = tar.extractfile(info).read()[: 90 if info.name.endswith(".png") else None]
                info.size = len(data)
                copy.addfile(info, io.BytesIO(data))
        shutil.copy(source / "images" / "train-00001.tar", tmp_path / "source" / "images")
        with pytest.raises(
            DataError,
            match=r"^prepare\.max_bad_share: 16 of 32 samples are bad .*: image: cannot be decoded: [^\n]+\.$",
        ):
            run_prepare(tmp_path / "source", tmp_path / "bad")
        assert not (tmp_path / "bad" / "manifest.json").exists()
