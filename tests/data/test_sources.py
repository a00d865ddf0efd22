"""Sources: each layout, and a sentence for each way to get it wrong."""

import csv
import gzip
import io
import json
import shutil
import tarfile

import pyarrow
import pytest
import webdataset
from pyarrow import parquet

from mobileclip.data import sources
from mobileclip.errors import ConfigError, DataError
from tests.stages import shapes

PNG = shapes.draw("red", "circle", 20)


def _table(folder, *rows, name="captions.jsonl"):
    (folder / "a.png").write_bytes(PNG)
    (folder / name).write_text("".join(r + "\n" if isinstance(r, str) else json.dumps(r) + "\n" for r in rows))
    return folder


def _options(folder, **options):
    scratch = folder.parent / f"{folder.name}.scratch"
    scratch.mkdir(exist_ok=True)
    return sources.Options(scratch=scratch, **options)


def _read(folder, kind="table", table="captions.jsonl", **options):
    return list(sources.read(folder, kind, _options(folder, table=table, **options)))


class TestDetect:
    def test_knows_its_kinds(self, tmp_path):
        for name, file in (("table", "captions.jsonl"), ("webdataset", "a.tar"), ("folder", "deep/a.JPG")):
            path = tmp_path / name / file
            path.parent.mkdir(parents=True)
            path.write_bytes(b"")
            assert sources.detect(tmp_path / name, _options(tmp_path)) == name
        assert sources.detect(tmp_path / "webdataset" / "a.tar", _options(tmp_path)) == "webdataset"

    def test_an_empty_folder(self, tmp_path):
        with pytest.raises(
            DataError,
            match=rf"^prepare\.source: '{tmp_path}' holds no 'captions\.jsonl', no other table of images and captions, "
            r"no \.tar shards and no pictures\.$",
        ):
            sources.detect(tmp_path, _options(tmp_path))


class TestTable:
    def test_jsonl_with_fields(self, tmp_path):
        _table(
            tmp_path,
            {"image": "a.png", "captions": ["one", "two"], "group": "x"},
            "",
            {"image": "a.png", "caption": "three"},
        )
        first, second = _read(tmp_path)
        assert (first.name, first.extension, first.image) == ("a.png", "png", PNG)
        assert first.fields == {"group": "x", "captions": ["one", "two"]}
        assert second.fields == {"captions": ["three"]}

    def test_csv(self, tmp_path):
        (tmp_path / "a.png").write_bytes(PNG)
        with (tmp_path / "t.csv").open("w", newline="") as handle:
            csv.writer(handle).writerows(
                [["image", "caption", "group"], ["a.png", 'a "quoted", one\nof two lines', ""]]
            )
        (row,) = _read(tmp_path, table="t.csv")
        assert row.fields == {"captions": ['a "quoted", one\nof two lines']}

    def test_a_missing_picture_is_left_to_the_quarantine(self, tmp_path):
        _table(tmp_path, {"image": "nothing.png", "caption": "x"})
        assert _read(tmp_path)[0].image == b""

    def test_invalid_utf8_is_replaced(self, tmp_path):
        _table(tmp_path)
        (tmp_path / "captions.jsonl").write_bytes(b'{"image": "a.png", "caption": "caf\xe9"}\n')
        assert _read(tmp_path)[0].fields["captions"] == ["caf\ufffd"]

    @pytest.mark.parametrize(
        ("line", "sentence"),
        [
            ("{", "captions.jsonl:2: not a JSON object."),
            ("[1]", "captions.jsonl:2: got list, want a JSON object."),
            (
                '{"image": "../a.png", "caption": "x"}',
                "captions.jsonl:2: image '../a.png' lies outside the input folder.",
            ),
            (
                '{"image": "/etc/passwd", "caption": "x"}',
                "captions.jsonl:2: image '/etc/passwd' lies outside the input folder.",
            ),
        ],
    )
    def test_a_wrong_line_is_named(self, tmp_path, line, sentence):
        _table(tmp_path, {"image": "a.png", "caption": "fine"}, line)
        with pytest.raises(DataError) as caught:
            _read(tmp_path)
        assert str(caught.value) == sentence

    @pytest.mark.parametrize(
        ("line", "fault"),
        [
            ({"caption": "x", "photograph": "a.png"}, "the row names no image"),
            ({"image": None, "caption": "x"}, "the row names no image"),
            ({"image": "a.png", "captions": 5}, "row: 'captions' is int, want a text or a list of texts."),
            ({"image": "a.png", "captions": {"en": "x"}}, "row: 'captions' is dict, want a text or a list of texts."),
            ({"image": "a\0.png", "caption": "x"}, "image 'a\\x00.png' is no file name"),
            ({"image": "http://x/a.png", "caption": "x"}, "the image is an address, want a file (img2dataset fetches"),
            ({"image": ".cache/a.png", "caption": "x"}, "its name is hidden (a dot in front,"),
        ],
    )
    def test_a_row_that_cannot_be_used_is_left_to_the_quarantine(self, tmp_path, line, fault):
        _table(tmp_path, {"image": "a.png", "caption": "fine"}, line, {"image": "a.png", "caption": "fine, too"})
        rows = _read(tmp_path)
        assert [bool(row.fault) for row in rows] == [False, True, False]
        assert rows[1].fault.startswith(fault)

    @pytest.mark.parametrize("captions", [None, [], "", [None], float("nan")])
    def test_a_row_without_a_caption_stops_no_table(self, tmp_path, captions):
        _table(tmp_path, {"image": "a.png", "captions": captions}, {"image": "a.png", "caption": "x"})
        rows = _read(tmp_path)
        assert [[c for c in row.fields["captions"] if c] for row in rows] == [[], ["x"]]

    def test_a_table_without_a_column_for_images_says_what_was_meant(self, tmp_path):
        _table(tmp_path, {"imgae": "a.png", "caption": "x"})
        with pytest.raises(
            DataError,
            match=r"^captions\.jsonl: no column 'image', got imgae, caption; did you mean 'imgae'\? "
            r"prepare\.columns\.image names it\.$",
        ):
            _read(tmp_path)
        (row,) = _read(tmp_path, columns={"image": "imgae"})
        assert row.image == PNG
        (tmp_path / "t.csv").write_text("image,captoin\na.png,x\n")
        with pytest.raises(
            DataError, match=r"^t\.csv: no column 'captions', got image, captoin; did you mean 'captoin'\? prepare"
        ):
            _read(tmp_path, table="t.csv")
        with pytest.raises(ConfigError, match=r"^prepare\.columns: got 'captoins', want .*, did you mean captions\.$"):
            _read(tmp_path, columns={"captoins": "x"})

    def test_a_link_out_of_the_folder_is_read_where_the_user_says_so(self, tmp_path):
        """As DVC's `cache.type symlink` and hub caches lay files out."""
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / "ab12").write_bytes(PNG)
        source = tmp_path / "source"
        source.mkdir()
        (source / "link.png").symlink_to(tmp_path / "cache" / "ab12")
        (source / "captions.jsonl").write_text('{"image": "link.png", "caption": "x"}\n')
        (row,) = _read(source)
        assert (row.fault, row.image) == ("is a link out of the folder (prepare.follow_links reads it)", b"")
        (row,) = _read(source, follow_links=True)
        assert (row.fault, row.image, row.outside, row.extension) == ("", PNG, True, "png")
        (source / "captions.jsonl").write_text('{"image": "../cache/ab12", "caption": "x"}\n')
        with pytest.raises(DataError, match="lies outside the input folder"):
            _read(source, follow_links=True)

    def test_no_such_table(self, tmp_path):
        with pytest.raises(DataError, match=r"^prepare\.table: no file '.*t\.csv'\.$"):
            _read(tmp_path, table="t.csv")

    @pytest.mark.parametrize(
        ("rows", "sentence"),
        [
            ("a.png,one,x,too,many", "t.csv:2: 5 values for 3 columns."),
            ('a.png,x,y\na.png,"never closed\na.png,x,y\n', "t.csv:3: a quote that opens here is not closed"),
            ('a.png,x,y\na.png,"swallows\na.png,"other",y\n', "t.csv:3: a quote that opens here is not closed"),
            ("a.png," + "x" * 200_000 + "\n", "t.csv:2: field larger than field limit"),
        ],
    )
    def test_a_wrong_csv_row_is_named_by_its_first_line(self, tmp_path, rows, sentence):
        (tmp_path / "a.png").write_bytes(PNG)
        (tmp_path / "t.csv").write_text(f"image,caption,group\n{rows}\n")
        with pytest.raises(DataError) as caught:
            _read(tmp_path, table="t.csv")
        assert str(caught.value).startswith(sentence)

    def test_a_quote_in_a_tsv_is_a_character(self, tmp_path):
        (tmp_path / "a.png").write_bytes(PNG)
        captions = ['"Once upon a time', "two", 'he said "no"', '"', "five", '"six" and', "seven", '"eight"']
        (tmp_path / "t.tsv").write_text("image\tcaption\n" + "".join(f"a.png\t{c}\n" for c in captions))
        assert [row.fields["captions"] for row in _read(tmp_path, table="t.tsv")] == [[c] for c in captions]

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
    @pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
    def test_encodings(self, tmp_path, encoding, suffix):
        (tmp_path / "a.png").write_bytes(PNG)
        row = {"image": "a.png", "caption": "ein Bär\u2028im \x85 Wald"}
        mark = "\t" if suffix == "tsv" else ","
        text = (
            json.dumps(row, ensure_ascii=False)
            if suffix == "jsonl"
            else mark.join(row) + "\n" + mark.join(row.values())
        )
        (tmp_path / f"t.{suffix}").write_bytes(f"{text}\n".encode(encoding))
        (found,) = _read(tmp_path, table=f"t.{suffix}")
        assert found.fields == {"captions": [row["caption"]]}


class TestFolder:
    def test_pictures_with_text_beside_them_in_order(self, tmp_path):
        for name, text in (("b/2.PNG", "two\nsecond line"), ("a/1.png", "one"), ("c.png", None)):
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(PNG)
            if text is not None:
                path.with_suffix(".txt").write_text(text)
        rows = _read(tmp_path, "folder")
        assert [(r.name, r.extension, r.fields["captions"]) for r in rows] == [
            ("a/1.png", "png", ["one"]), ("b/2.PNG", "png", ["two", "second line"]), ("c.png", "png", []),
        ]  # fmt: skip

    def test_without_any_caption(self, tmp_path):
        (tmp_path / "a.png").write_bytes(PNG)
        (tmp_path / "folder.png").mkdir()
        with pytest.raises(
            DataError,
            match=r"^prepare\.source: no picture in '.*' has a caption \(\.txt beside it\), nor is there a table\.$",
        ):
            _read(tmp_path, "folder")


def _tar(path, members, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


class TestWebdataset:
    def test_what_img2dataset_writes(self, tmp_path):
        with webdataset.TarWriter(str(tmp_path / "00000.tar")) as writer:
            for key, text in (("000000000", "a dog"), ("000000001", "a cat")):
                writer.write(
                    {"__key__": key, "png": PNG, "txt": text, "json": {"caption": text, "url": "u", "sha256": "0"}}
                )
        rows = _read(tmp_path, "webdataset")
        assert [(r.name, r.extension, r.fields["captions"], r.fields["key"]) for r in rows] == [
            ("00000.tar:000000000", "png", ["a dog"], "000000000"),
            ("00000.tar:000000001", "png", ["a cat"], "000000001"),
        ]
        assert rows[0].image == PNG
        assert rows[0].fields["url"] == "u"

    @pytest.mark.parametrize(
        ("fields", "captions"),
        [
            ({"captions": ["x", "y"]}, ["x", "y"]),
            ({"captions": "x y"}, ["x y"]),
            ({"caption": "x"}, ["x"]),
            ({"captions": ["x"], "caption": "y"}, ["x"]),
            ({}, []),
            ([1], []),
        ],
    )
    def test_captions_in_the_json(self, tmp_path, fields, captions):
        _tar(tmp_path / "a.tar", {"a.png": PNG, "a.json": json.dumps(fields).encode()})
        assert _read(tmp_path, "webdataset")[0].fields["captions"] == captions

    def test_keys_keep_their_folder_and_end_at_the_first_dot(self, tmp_path):
        _tar(
            tmp_path / "a.tar", {"x/a.b.png": PNG, "x/a.PNG": PNG, "y/a.png": PNG, "y/a.txt": b"t", "../../z.png": PNG}
        )
        rows = _read(tmp_path, "webdataset")
        assert [(r.name, r.extension) for r in rows] == [
            ("a.tar:x/a", "png"),
            ("a.tar:y/a", "png"),
            ("a.tar:../../z", "png"),
        ]
        assert not (tmp_path.parent / "z.png").exists()

    def test_compressed_tars(self, tmp_path):
        _tar(tmp_path / "a.tar", {"a.png": PNG, "a.txt": b"t"}, "w:gz")
        assert _read(tmp_path, "webdataset")[0].fields["captions"] == ["t"]

    @pytest.mark.parametrize("compressed", [False, True])
    @pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 0.6])
    def test_a_cut_tar_is_refused_with_its_name(self, tmp_path, share, compressed):
        path = _tar(tmp_path / "a.tar", {f"{i}.png": PNG + bytes(range(i, 200)) * 9 for i in range(9)})
        data = path.read_bytes()
        data = gzip.compress(data) if compressed else data
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(DataError, match=r"^prepare\.source: 'a\.tar' is no readable tar: [^\n]+\.$"):
            _read(tmp_path, "webdataset")

    def test_a_tar_that_was_cut_between_two_samples_is_refused(self, tmp_path):
        path = _tar(tmp_path / "a.tar", {"0.png": PNG, "0.txt": b"a", "1.png": PNG, "1.txt": b"b"})
        with tarfile.open(path) as tar:
            end = list(tar)[2].offset
        path.write_bytes(path.read_bytes()[:end])
        with pytest.raises(
            DataError,
            match=r"^prepare\.source: 'a\.tar' is no readable tar: its end mark is missing, the file is cut\.$",
        ):
            _read(tmp_path, "webdataset")

    def test_what_is_no_tar(self, tmp_path):
        (tmp_path / "a.tar").write_bytes(b"hello" * 1000)
        with pytest.raises(DataError, match=r"^prepare\.source: 'a\.tar' is no readable tar"):
            _read(tmp_path, "webdataset")

    @pytest.mark.parametrize(
        ("members", "fault"),
        [
            ({"a.json": b"{"}, "its json is damaged"),
            ({"a.json": b'{"caption": "caf\xe9"}'}, "its json is damaged"),
            ({"a.json": b"[1]"}, "its json is no object"),
            ({"a.json": b'{"caption": 5}'}, "json: 'captions' is int, want a text or a list of texts."),
            ({"a.json": b'{"status": "failed_to_download", "error_message": "404\\n gone"}'},
             "its download failed: 404 gone"),
            ({"a.json": b'{"status": "failed_to_resize"}'}, "its download failed: failed_to_resize"),
            ({"a.json": b'{"status": "success", "caption": "x"}'}, ""),
        ],
    )  # fmt: skip
    def test_a_damaged_sample_is_left_to_the_quarantine(self, tmp_path, members, fault):
        _tar(tmp_path / "a.tar", {"a.png": PNG, **members, "b.png": PNG, "b.txt": b"fine"})
        first, second = _read(tmp_path, "webdataset")
        assert (first.fault, second.fault) == (fault, "")
        assert second.fields["captions"] == ["fine"]

    def test_a_name_twice_and_a_link_are_left_to_the_quarantine(self, tmp_path):
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for name, kind in (("a.png", b"0"), ("a.png", b"0"), ("b.png", b"2"), ("c.png", b"0")):
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, "/etc/passwd" if kind == b"2" else ""
                tar.addfile(info)
        rows = _read(tmp_path, "webdataset")
        assert [r.fault for r in rows] == [
            "the tar has two members 'a.png'", "its '.png' is a link or a sparse file", "",
        ]  # fmt: skip
        assert rows[1].image == b""

    def test_invalid_utf8_in_a_text_is_replaced(self, tmp_path):
        _tar(tmp_path / "a.tar", {"a.png": PNG, "a.txt": b"caf\xe9"})
        assert _read(tmp_path, "webdataset")[0].fields["captions"] == ["caf\ufffd"]

    def test_notes_beside_the_samples_are_no_samples(self, tmp_path):
        _tar(tmp_path / "a.tar", {"README.md": b"hello", "a.png": PNG, "a.txt": b"t", "dir/.hidden": b"x"})
        assert [r.name for r in _read(tmp_path, "webdataset")] == ["a.tar:a"]

    def test_folders_of_tars_are_read_in_order(self, tmp_path):
        for name in ("01/00000.tar", "00/00001.tar", "00/00000.tar"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            _tar(tmp_path / name, {"a.png": PNG, "a.txt": b"t"})
        assert [r.name for r in _read(tmp_path, "webdataset")] == ["00/00000.tar:a", "00/00001.tar:a", "01/00000.tar:a"]

    def test_a_shard_that_was_lost_is_named(self, tmp_path):
        """img2dataset leaves two files beside each tar; they tell when the tar did not come along."""
        _tar(tmp_path / "00000.tar", {"a.png": PNG, "a.txt": b"t"})
        for name in ("00000.parquet", "00000_stats.json"):
            (tmp_path / name).write_bytes(b"")
        assert len(_read(tmp_path, "webdataset")) == 1
        (tmp_path / "00001_stats.json").write_bytes(b"{}")
        with pytest.raises(
            DataError, match=r"^prepare\.source: '00001\.tar' is missing, but its '00001_stats\.json' is there\.$"
        ):
            _read(tmp_path, "webdataset")


class TestCoco:
    def _source(self, tmp_path, **changes):
        for part, id_ in (("train2017", 1), ("val2017", 2)):
            (tmp_path / part).mkdir()
            (tmp_path / part / f"{id_:012d}.jpg").write_bytes(PNG)
            content = {
                "images": [{"id": id_, "file_name": f"{id_:012d}.jpg", "license": 4, "coco_url": "u"}],
                "annotations": [{"image_id": id_, "id": n, "caption": f"{part} {n}"} for n in range(5)],
                "licenses": [{"id": 4, "name": "CC-BY-2.0", "url": "x"}], **changes,
            }  # fmt: skip
            (tmp_path / "annotations").mkdir(exist_ok=True)
            (tmp_path / "annotations" / f"captions_{part}.json").write_text(json.dumps(content))
        return tmp_path

    def test_five_captions_split_and_license(self, tmp_path):
        source = self._source(tmp_path)
        assert sources.detect(source, _options(tmp_path)) == "coco"
        train, validation = _read(source, "coco")
        assert train.fields == {
            "captions": [f"train2017 {n}" for n in range(5)], "coco_id": 1, "coco_url": "u", "license": "CC-BY-2.0",
            "split": "train",
        }  # fmt: skip
        assert (validation.fields["split"], validation.image, validation.extension) == ("validation", PNG, "jpg")

    def test_one_file_by_name_and_its_folder(self, tmp_path):
        source = self._source(tmp_path)
        shutil.move(source / "val2017", source / "pictures")
        name = "annotations/captions_val2017.json"
        assert sources.detect(source, _options(source, table=name)) == "coco"
        row, other = _read(source, "coco", name, image_folder="pictures")
        assert row.image == PNG
        assert (other.name, other.unlisted) == ("train2017/000000000001.jpg", True)
        row, _ = _read(source, "coco", name)
        assert row.image == PNG  # the only file of that name

    def test_an_image_without_caption_and_one_outside(self, tmp_path):
        (row, _) = _read(self._source(tmp_path, annotations=[]), "coco")
        assert row.fields["captions"] == []
        for file in (tmp_path / "annotations").iterdir():
            file.write_text(json.dumps({"images": [{"id": 1, "file_name": "../../x.jpg"}], "annotations": []}))
        with pytest.raises(DataError, match=r"^captions_train2017\.json: image '../../x\.jpg' lies outside the input"):
            _read(tmp_path, "coco")

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"images": 5, "annotations": []}', '{"images": [{}]}'])
    def test_what_is_no_captions_file(self, tmp_path, text):
        (tmp_path / "captions_x.json").write_text(text)
        with pytest.raises(DataError, match=r"^captions_x\.json: is no COCO captions file, want "):
            _read(tmp_path, "coco")


class TestParquet:
    def test_paths_bytes_and_hugging_face_pictures(self, tmp_path):
        (tmp_path / "a.png").write_bytes(PNG)
        for index, image in enumerate(("a.png", PNG, {"bytes": PNG, "path": None}, {"bytes": None, "path": "a.png"})):
            rows = [{"image": image, "captions": ["one", "two"], "group": None, "width": 7}]
            parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"{index}.parquet")
            row = _read(tmp_path, table=f"{index}.parquet")[0]
            assert (row.image, row.extension) == (PNG, "png")
            assert row.fields == {"captions": ["one", "two"], "width": 7}

    def test_many_pictures_each_at_its_place(self, tmp_path):
        data = [PNG + bytes([n]) * n for n in range(40)]
        rows = [{"image": image, "caption": f"{n}"} for n, image in enumerate(data)]
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet", row_group_size=7)
        assert [row.image for row in _read(tmp_path, table="t.parquet") if not row.unlisted] == data

    @pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
    def test_a_damaged_file(self, tmp_path, share):
        parquet.write_table(pyarrow.table({"image": ["a.png"], "caption": ["x"]}), tmp_path / "t.parquet")
        data = (tmp_path / "t.parquet").read_bytes()
        (tmp_path / "t.parquet").write_bytes(data[: int(share * len(data))])
        with pytest.raises(DataError, match=r"^t\.parquet: is no readable Parquet file: [^\n]+\.$"):
            _read(tmp_path, table="t.parquet")


def test_tabs_and_a_byte_order_mark(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "t.tsv").write_bytes("\ufeffimage\tcaption\na.png\tone, two\n".encode())
    assert _read(tmp_path, table="t.tsv")[0].fields == {"captions": ["one, two"]}


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "t.csv").write_text("image,caption\na.png,x\n")
    (row,) = _read(tmp_path, table="t.csv")
    (tmp_path / "a.png").write_bytes(PNG[:9])
    with pytest.raises(DataError, match=r"a\.png' became shorter while it was read\.$"):
        _ = row.image
