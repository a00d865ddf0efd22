"""prepare: splits, quarantine, duplicates, limits, and nothing half-written."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from mobileclip import manifest
from mobileclip.data.shards import read_samples
from mobileclip.errors import DataError
from tests.stages import shapes
from tests.stages.preparing import read_back, run_prepare, write_table


def _files(folder) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def test_everything_a_user_gave_is_kept(tiny_source, tiny_data):
    rows = [json.loads(line) for line in (tiny_source / "captions.jsonl").read_text().splitlines()]
    samples = {s.image: s for s in read_back(tiny_data).values()}
    assert len(samples) == len(rows) == 40
    for row in rows:
        sample = samples[(tiny_source / row.pop("image")).read_bytes()]  # original bytes
        assert sample.metadata == {**row, "width": 64, "height": 64}
    content = manifest.read(tiny_data)
    assert [(s.name, s.samples) for s in content.shards] == [
        ("train-00000", 16), ("train-00001", 16), ("validation-00000", 4), ("test-00000", 4)
    ]  # fmt: skip
    assert {s.metadata["split"] for s in read_samples(tiny_data, content, "test")} == {"test"}
    assert [(s.license, s.samples) for s in content.sources] == [("CC0-1.0", 40)]


def test_the_same_input_gives_the_same_bytes_in_any_order(tiny_source, tiny_data, tmp_path):
    shutil.copytree(tiny_source, tmp_path / "source")
    lines = (tiny_source / "captions.jsonl").read_text().splitlines(keepends=True)
    random.Random(0).shuffle(lines)
    (tmp_path / "source" / "captions.jsonl").write_text("".join(lines))
    run_prepare(tmp_path / "source", tmp_path / "out", shard_samples=16)
    assert _files(tmp_path / "out") == _files(tiny_data)


def test_its_shards_are_a_source_again(tiny_data, tmp_path):
    """webdataset in, webdataset out: the same pictures, uids and captions."""
    metrics = run_prepare(tiny_data, tmp_path / "again", source="webdataset")
    assert metrics["samples/train"] == 32
    again, before = read_back(tmp_path / "again"), read_back(tiny_data)
    assert again.keys() == before.keys()
    assert all(again[uid].captions == before[uid].captions for uid in before)


def test_a_folder_of_pictures_and_texts(tmp_path):
    for index in range(3):
        path = tmp_path / "source" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(shapes.draw("red", "square", 20 + 8 * index))
        path.with_suffix(".txt").write_text(f"  red \t square {index}\n\nanother one\n")
    run_prepare(tmp_path / "source", tmp_path / "out", validation_share=0, license="MIT")
    samples = sorted(read_back(tmp_path / "out").values(), key=lambda s: s.captions)
    assert [s.captions for s in samples] == [[f"red square {i}", "another one"] for i in range(3)]
    assert {s.metadata["license"] for s in samples} == {"MIT"}


class TestSplit:
    def test_a_group_never_lies_in_two_splits_whatever_else_is_there(self, tmp_path):
        rows = [{"caption": "x", "group_key": f"object {i % 40}"} for i in range(160)]
        metrics = run_prepare(write_table(tmp_path / "a", rows), tmp_path / "out", validation_share=0.3)
        splits: dict[str, set[str]] = {}
        for sample in read_back(tmp_path / "out").values():
            splits.setdefault(sample.metadata["group_key"], set()).add(sample.metadata["split"])
        assert all(len(s) == 1 for s in splits.values())
        held_out = {g for g, s in splits.items() if s == {"validation"}}
        assert 5 <= len(held_out) <= 20
        assert metrics["samples/validation"] == 4 * len(held_out)
        run_prepare(write_table(tmp_path / "b", rows[:80]), tmp_path / "half", validation_share=0.3)
        again = {
            s.metadata["group_key"]
            for s in read_back(tmp_path / "half").values()
            if s.metadata["split"] == "validation"
        }
        assert again == held_out

    def test_without_a_group_the_uid_decides_and_the_share_is_kept(self, tmp_path):
        rows = [{"caption": "x", "group_key": None} for _ in range(200)]
        metrics = run_prepare(write_table(tmp_path / "a", rows), tmp_path / "out", validation_share=0.25)
        assert 30 <= metrics["samples/validation"] <= 70
        assert 30 <= metrics["samples/test"] <= 70
        assert sum(metrics[f"samples/{split}"] for split in ("train", "validation", "test")) == 200
        metrics = run_prepare(tmp_path / "a", tmp_path / "no-test", validation_share=0.25, test_share=0)
        assert (metrics["samples/test"], metrics["samples/validation"] > 30) == (0, True)

    def test_a_given_split_wins_and_an_unknown_one_is_quarantined(self, tmp_path):
        rows = [{"caption": "x", "split": split} for split in ("test", "validation", "dev")]
        metrics = run_prepare(
            write_table(tmp_path / "a", rows), tmp_path / "out", validation_share=1, max_bad_share=0.5
        )
        assert (metrics["samples/test"], metrics["samples/validation"], metrics["quarantined"]) == (1, 1, 1)
        assert (
            "split is 'dev', want one of train, validation, test" in (tmp_path / "out" / "quarantine.jsonl").read_text()
        )


def test_bad_samples_are_quarantined_with_their_reason_and_counted(tmp_path):
    source = write_table(tmp_path / "a", [{"caption": "fine"} for _ in range(4)])
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 30, 3)).astype(np.uint8))
    noise.save(tmp_path / "whole.jpg")
    (source / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:400])
    (source / "empty.png").write_bytes(b"")
    (source / "text.png").write_text("no picture")
    Image.new("L", (200, 200)).save(source / "big.png")
    shutil.copy(source / "0.png", source / "same.png")
    bad = {
        "cut.jpg": "image: cannot be decoded: ", "empty.png": "picture file is missing or empty",
        "gone.png": "picture file is missing or empty", "text.png": "image: cannot be decoded: cannot identify",
        "big.png": "image: 200x200 pixels, want at most 10000 in all", "notes.txt": "no picture (jpg, jpeg, png, webp,",
        "same.png": "same bytes as 0.png", "1.png#blank": "no caption", "2.png#surrogate": "a text is no valid Unicode",
    }  # fmt: skip
    with (source / "captions.jsonl").open("a") as handle:
        for name in bad:
            caption = {"1.png#blank": " \t\n ", "2.png#surrogate": "half \ud83d"}.get(name, "x")
            handle.write(json.dumps({"image": name.partition("#")[0], "captions": [caption]}) + "\n")
    metrics = run_prepare(source, tmp_path / "out", max_bad_share=0.7, max_pixels=10_000)
    assert metrics["images/kept"] == 4
    assert (
        metrics["images/seen"]
        == 4 + len(bad)
        == sum(metrics[name] for name in ("images/kept", "quarantined", "duplicates"))
    )
    reasons = {name.partition("/")[2]: n for name, n in metrics.items() if name.startswith("quarantined/")}
    assert reasons == {
        "undecodable": 2, "missing_file": 2, "size": 1, "no_image": 1, "no_caption": 1, "no_unicode": 1
    }  # fmt: skip
    assert (metrics["quarantined"], metrics["duplicates"]) == (8, 1)
    assert manifest.read(str(tmp_path / "out")).quarantined == 8
    rejected = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert len(rejected) == len(bad)
    for row, (name, reason) in zip(rejected, bad.items(), strict=True):
        assert row["sample"] == name.partition("#")[0]
        assert row["reason"].startswith(reason)
    assert str(tmp_path) not in json.dumps(rejected)


def test_too_many_bad_samples_stop_before_anything_is_written(tmp_path):
    source = write_table(tmp_path / "a", [{"caption": "x"} for _ in range(9)])
    (source / "5.png").write_bytes(b"broken")
    with pytest.raises(DataError) as caught:
        run_prepare(source, tmp_path / "out", max_bad_share=0.1)
    assert str(caught.value).startswith(
        "prepare.max_bad_share: 1 of 9 samples are bad (want at most 10.00%), the first is '5.png': image: cannot be"
    )
    assert str(caught.value).endswith(f"; all are in '{tmp_path}/out/quarantine.jsonl'.")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["quarantine.jsonl"]
    assert json.loads((tmp_path / "out" / "quarantine.jsonl").read_text())["sample"] == "5.png"


def test_the_sentence_names_a_bad_sample_not_a_duplicate(tmp_path):
    source = write_table(
        tmp_path / "a", [{"caption": "x"}, {"caption": "x", "image": "0.png"}, {"caption": "x", "image": "gone.png"}]
    )
    (source / "gone.png").unlink()
    with pytest.raises(DataError, match=r"the first is 'gone\.png': picture file is missing or empty; all"):
        run_prepare(source, tmp_path / "out")


def test_long_and_odd_captions_are_kept_whole(tmp_path):
    long = "word " * 2000
    source = write_table(tmp_path / "a", [{"captions": [long, "", "猫 \U0001f600", '"</script>']}])
    run_prepare(source, tmp_path / "out")
    (sample,) = read_back(tmp_path / "out").values()
    assert sample.captions == [long.strip(), "猫 \U0001f600", '"</script>']
    path = next((tmp_path / "out").glob("*.tar"))
    assert next(iter(webdataset.WebDataset(str(path), shardshuffle=False)))["txt"].decode() == long.strip()


def test_licenses_are_counted_one_by_one(tmp_path):
    rows = [{"caption": "x", "license": name} for name in ("MIT", "MIT", "CC-BY-4.0", None, "")]
    run_prepare(write_table(tmp_path / "a", rows), tmp_path / "out", license="own")
    sources = manifest.read(str(tmp_path / "out")).sources
    assert [(s.license, s.samples) for s in sources] == [("CC-BY-4.0", 1), ("MIT", 2), ("own", 2)]


def test_a_second_run_into_the_same_folder_is_complete(tmp_path):
    source = write_table(tmp_path / "a", [{"caption": "x"} for _ in range(6)])
    run_prepare(source, tmp_path / "out", shard_samples=2, validation_share=0)
    run_prepare(source, tmp_path / "out", shard_samples=3, validation_share=0)
    assert len(read_back(tmp_path / "out")) == 6
