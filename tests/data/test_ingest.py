"""Odd sources: nothing vanishes, what is not read is a fault with its reason."""

import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from mobileclip.data import sources, texts
from mobileclip.data.coco import split_of
from mobileclip.data.render import render
from mobileclip.data.zips import unzipped
from mobileclip.errors import DataError
from mobileclip.storage.walk import is_hidden, walk
from tests.stages import shapes
from tests.stages.preparing import read_back, run_prepare

PNG = shapes.draw("red", "circle", 20)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="20" height="10"><rect width="9" height="9"/></svg>'


def _options(tmp_path: Path, **options) -> sources.Options:
    scratch = tmp_path.parent / f"{tmp_path.name}.scratch"
    scratch.mkdir(exist_ok=True)
    return sources.Options(scratch=scratch, **options)


def _read(folder: Path, **options) -> list[sources.Raw]:
    made = _options(folder, **options)
    return list(sources.read(folder, sources.detect(folder, made), made))


def _tar(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def _write(folder: Path, **files: bytes | str) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


class TestTexts:
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
    def test_encodings(self, encoding):
        assert texts.decode("a bear in the wood, ein Bär".encode(encoding)) == "a bear in the wood, ein Bär"

    def test_only_line_feeds_and_returns_end_a_line(self):
        assert texts.lines("one\x0btwo\u2028three\x85\r\nfour\rfive\n\n") == ["one\x0btwo\u2028three", "four", "five"]

    def test_translations_are_no_captions(self):
        text = "A dog.\nde.utf8=Ein Hund.\nzh_tw.utf8=\u72d7\nca@valencia.utf8=Un gos.\nx.utf8 = y\n"
        assert texts.captions(text) == (
            ["A dog.", "x.utf8 = y"], {"de": "Ein Hund.", "zh_tw": "\u72d7", "ca@valencia": "Un gos."}
        )  # fmt: skip


class TestTars:
    def test_dots_in_keys(self, tmp_path):
        names = ("22.05", "22.06", "Dr. Who", "plain")
        members = {f"{name}.{end}": PNG if end == "jpg" else name.encode() for name in names for end in ("jpg", "txt")}
        _write(tmp_path, **{"a.tar": _tar(members | {"x.input.jpg": PNG, "x.txt": b"x"})})
        found = {row.name.removeprefix("a.tar:"): (row.fields["captions"], row.extension) for row in _read(tmp_path)}
        assert found == {name: ([name], "jpg") for name in (*names, "x")}

    def test_several_images_of_a_key_without_a_text_are_faults_of_their_own(self, tmp_path):
        _write(
            tmp_path, **{"a.tar": _tar({"x.in.jpg": PNG, "x.out.jpg": PNG, "y.png": PNG, "y.gif": PNG, "y.txt": b"y"})}
        )
        rows = {row.name: row.fields["captions"] for row in _read(tmp_path)}
        assert rows == {"a.tar:x.in": [], "a.tar:x.out": [], "a.tar:y.png": ["y"], "a.tar:y.gif": ["y"]}

    def test_tars_that_follow_each_other_in_a_file(self, tmp_path):
        parts = [_tar({f"{n}.png": PNG, f"{n}.txt": str(n).encode()}) for n in range(3)]
        _write(tmp_path, **{"a.tar": b"".join(parts)})
        assert [row.fields["captions"] for row in _read(tmp_path)] == [["0"], ["1"], ["2"]]

    def test_a_damaged_header_ends_nothing_in_silence(self, tmp_path):
        data = bytearray(_tar({f"{n}.txt": b"x" for n in range(4)}))
        data[2 * 1024 + 150] ^= 0xFF  # within the third header's checksum
        _write(tmp_path, **{"a.tar": bytes(data)})
        with pytest.raises(DataError, match=r"'a\.tar' is no readable tar: the header at byte 2048 is damaged\.$"):
            _read(tmp_path)

    @pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.TAR"])
    def test_names_of_tars(self, tmp_path, name):
        import gzip

        data = _tar({"a.png": PNG, "a.txt": b"one\ntwo"})
        _write(tmp_path, **{name: gzip.compress(data) if "z" in name else data})
        assert _read(tmp_path)[0].fields["captions"] == ["one", "two"]

    def test_a_bomb_is_one_fault_and_the_others_are_read(self, tmp_path):
        import gzip

        bomb = _tar({"a.png": bytes(70 << 20)})
        _write(tmp_path, **{"a.tar.gz": gzip.compress(bomb), "b.tar": _tar({"b.png": PNG, "b.txt": b"x"})})
        first, second = _read(tmp_path)
        assert first.fault.endswith(
            "inflates beyond 67108864 bytes, want at most 50 times its size (prepare.max_inflation)."
        )
        assert (second.fault, second.image) == ("", PNG)
        assert not list((tmp_path.parent / f"{tmp_path.name}.scratch").glob("*.tar"))


class TestFolders:
    def test_every_format_and_what_belongs_together(self, tmp_path):
        for end in ("gif", "bmp", "jfif", "tif", "avif", "svg"):
            _write(tmp_path, **{f"{end}/a.{end}": PNG, f"{end}/a.txt": "x"})
        _write(tmp_path, **{"alone.txt": "x", "README.txt": "x", "bare.png": PNG})
        rows = {row.name: row.fault for row in _read(tmp_path)}
        assert rows == {
            **{f"{end}/a.{end}": "" for end in ("gif", "bmp", "jfif", "tif", "avif", "svg")},
            "bare.png": "", "alone.txt": "no image beside the text",
        }  # fmt: skip

    def test_hidden_files_are_no_data_for_any_source(self, tmp_path):
        hidden = ("._a.png", ".ipynb_checkpoints/a.png", "__MACOSX/a.png", ".Trash/a.png", "@eaDir/a.png")
        _write(tmp_path, **{"a.png": PNG, "a.txt": "x"}, **dict.fromkeys(hidden, PNG), **{"._a.txt": b"\0\5"})
        assert [row.name for row in _read(tmp_path)] == ["a.png"]
        assert all(map(is_hidden, hidden))
        assert not is_hidden("../a.png")

    def test_links(self, tmp_path):
        outside = _write(tmp_path / "outside", **{"b.png": PNG, "b.txt": "secret"})
        source = _write(tmp_path / "source", **{"a.png": PNG, "a.txt": "x"})
        (source / "inner.png").symlink_to("a.png")
        (source / "dead.png").symlink_to("nothing.png")
        (source / "out.png").symlink_to(outside / "b.png")
        (source / "a2.png").write_bytes(PNG)
        (source / "a2.txt").symlink_to(outside / "b.txt")
        (source / "folder").symlink_to(outside)
        (outside / "loop").symlink_to(source)
        faults = {row.name: row.fault for row in _read(source)}
        assert faults == {
            "a.png": "", "inner.png": "", "dead.png": "is a link to nothing",
            "out.png": "is a link out of the folder (prepare.follow_links reads it)",
            "a2.png": "its text is a link out of the folder (prepare.follow_links reads it)",
            "folder": "is a linked folder (prepare.follow_links reads it)",
        }  # fmt: skip
        followed = {row.name: (row.fault, row.outside) for row in _read(source, follow_links=True)}
        assert followed["folder/b.png"] == ("", True)
        assert followed["a.png"] == ("", False)
        assert any(one.fault == "is a link to a folder above it" for one in walk(source, follow_links=True))

    def test_classes(self, tmp_path):
        _write(
            tmp_path, **{f"{s}/{c}/{n}.png": PNG for s in ("train", "test") for c in ("red_fox", "cat") for n in "ab"}
        )
        rows = {row.name: row for row in _read(tmp_path)}
        assert rows["test/red_fox/a.png"].fields == {
            "captions": ["a photo of red fox"], "label": "red_fox", "split": "test"
        }  # fmt: skip
        assert ("split" in rows["train/cat/a.png"].fields, rows["train/cat/a.png"].drawn) == (False, ("validation",))


class TestTables:
    def test_metadata_in_split_folders(self, tmp_path):
        for split in ("train", "test"):
            _write(tmp_path, **{f"{split}/metadata.csv": f"file_name,text\na.png,{split}\n", f"{split}/a.png": PNG})
        rows = {row.fields["captions"][0]: row for row in _read(tmp_path)}
        assert (rows["test"].fields["split"], rows["test"].image) == ("test", PNG)
        assert rows["train"].drawn == ("validation",)

    @pytest.mark.parametrize(
        ("name", "head", "row"),
        [
            ("captions.txt", "image,caption\n", "a.png,dog {}\n"),
            ("Flickr8k.token.txt", "", "a.png#{0}\tdog {0}\n"),
            ("results.csv", "image_name| comment_number| comment\n", "a.png| {0}| dog {0}\n"),
        ],
    )
    def test_five_rows_of_an_image_are_its_five_captions(self, tmp_path, name, head, row):
        _write(tmp_path / "in", **{name: head + "".join(row.format(n) for n in range(5)), "Images/a.png": PNG})
        metrics = run_prepare(tmp_path / "in", tmp_path / "out")
        assert (metrics["captions/kept"], metrics["captions/per_image"], metrics["rows_joined"]) == (5, 5, 4)
        (sample,) = read_back(tmp_path / "out").values()
        assert sample.captions == [f"dog {n}" for n in range(5)]

    def test_karpathy(self, tmp_path):
        rows = [{"filename": "a.png", "filepath": "val", "split": "restval", "sentences": [{"raw": "x"}, {"raw": "y"}]}]
        _write(tmp_path, **{"dataset.json": json.dumps({"images": rows}), "val/a.png": PNG})
        (row,) = _read(tmp_path)
        assert (row.fields, row.image) == ({"captions": ["x", "y"], "split": "train"}, PNG)

    def test_an_optional_field_costs_no_image(self, tmp_path):
        row = '{"image": "a.png", "caption": "x", "score": NaN, "half": "\\ud83d", "deep": ' + "[" * 80 + "]" * 80 + "}"
        _write(tmp_path / "in", **{"captions.jsonl": row, "a.png": PNG})
        metrics = run_prepare(tmp_path / "in", tmp_path / "out")
        (sample,) = read_back(tmp_path / "out").values()
        assert (sample.metadata["score"], "half" in sample.metadata, metrics["fields/left_out"]) == (None, False, 2)


class TestCoco:
    @pytest.mark.parametrize(
        ("name", "split"),
        [("captions_val2017", "validation"), ("captions_train2014", "train"), ("captions_retrieval", ""),
         ("captions_latest", ""), ("captions_trainval", "")],
    )  # fmt: skip
    def test_a_split_is_a_word_of_the_name(self, name, split):
        assert split_of(name) == split

    def test_nulls_ids_of_two_types_and_a_training_file_alone(self, tmp_path):
        captions = [
            {"image_id": "1", "caption": None},
            {"image_id": "1", "caption": "x"},
            {"image_id": 9, "caption": "y"},
        ]
        content = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": captions}
        _write(tmp_path / "in", **{"captions_train2017.json": json.dumps(content), "a.png": PNG})
        metrics = run_prepare(tmp_path / "in", tmp_path / "out", validation_share=1, max_bad_share=0.5)
        assert (metrics["captions/empty"], metrics["samples/validation"], metrics["quarantined/no_image"]) == (1, 1, 1)
        assert [s.captions for s in read_back(tmp_path / "out").values()] == [["x"]]


def test_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("images/a.png", PNG)
        archive.writestr("captions.csv", "filepath,title\nimages/a.png,x\n")
    assert run_prepare(tmp_path / "a.zip", tmp_path / "out")["images/kept"] == 1
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("../a.png", PNG)
    with pytest.raises(DataError, match=r"'b\.zip' has a member '\.\./a\.png', want one that stays within\.$"):
        unzipped(tmp_path / "b.zip", tmp_path, max_inflation=50, follow_links=False)


class TestRender:
    def test_a_drawing_gets_its_size(self):
        from PIL import Image

        data = render(SVG, "svg", size=64, max_pixels=10**6)
        assert Image.open(io.BytesIO(data)).size == (64, 32)

    @pytest.mark.parametrize("href", ["/etc/hostname", "&#47;etc/hostname", "&file;", "a.png", "file:///a.png"])
    def test_a_drawing_reads_no_file(self, href):
        text = f'<!DOCTYPE svg [<!ENTITY file "/etc/hostname">]>{SVG.decode()}'.replace(
            "<rect", f'<image href="{href}"/><rect'
        )
        with pytest.raises(DataError, match=r"^image: the SVG refers to another file"):
            render(text.encode(), "svg", size=64, max_pixels=10**6)

    def test_a_drawing_beyond_all_bounds(self):
        with pytest.raises(DataError, match="want at most 50 to 1"):
            render(SVG.replace(b'"20"', b'"2e9"'), "svg", size=64, max_pixels=10**6)


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert [(one.name, one.fault) for one in walk(tmp_path)] == [("a.png", "is no regular file")]
