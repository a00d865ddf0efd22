"""Ours to the public layout and back, joins by uid, coverage, damage, and a student trained on the result."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from mobileclip import manifest
from mobileclip.__main__ import main
from mobileclip.config import Calibrate, Distill, Optimizer, Training
from mobileclip.convert import convert
from mobileclip.data.columns import ColumnReader, read_captions
from mobileclip.data.embeddings import decode_all
from mobileclip.data.shards import ShardReader
from mobileclip.errors import ConfigError, DataError, IntegrityError
from mobileclip.models.replay import verify
from mobileclip.stages import calibrate, distill
from mobileclip.tracking.protocol import LogTracker


def _files(folder) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def _tensor(folder, name, key="views"):
    content = manifest.read(str(folder))
    column = content.column(name)
    readers = [ColumnReader(str(folder), column, s) for s in content.shards if s.name in column.parts]
    if column.kind == "embedding":
        return [decode_all(reader) for reader in readers]
    return [reader.all(key) for reader in readers]


def _samples(folder):
    content = manifest.read(str(folder))
    readers = [ShardReader(str(folder), shard) for shard in content.split("train")]
    return [reader.sample(row) for reader in readers for row in range(len(reader))]


def _edit(source, target, change) -> Path:
    """The tars of a folder with the members of each sample changed: `change(key, members)` returns them or None."""
    target.mkdir()
    for path in sorted(Path(source).iterdir()):
        if path.suffix != ".tar":
            shutil.copy(path, target)
            continue
        samples: dict[str, dict[str, bytes]] = {}
        with tarfile.open(path) as tar:
            for info in tar:
                key, _, extension = info.name.partition(".")
                samples.setdefault(key, {})[extension] = tar.extractfile(info).read()
        with tarfile.open(target / path.name, "w") as tar:
            for key, members in samples.items():
                for extension, data in (change(key, members) or {}).items():
                    info = tarfile.TarInfo(f"{key}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return target


@pytest.fixture(scope="module")
def public(tiny_reinforced, tmp_path_factory) -> Path:
    """The reinforced dataset as the public sets are distributed: npz, one captioner, no pictures, no captions."""
    out = tmp_path_factory.mktemp("public")
    convert(tiny_reinforced, out=str(out), options={"text_layout": "legacy", "without_images": True})
    return out


@pytest.fixture(scope="module")
def joined(public, tiny_data, tmp_path_factory) -> tuple[str, dict]:
    out = str(tmp_path_factory.mktemp("joined"))
    return out, convert(str(public), out=out, options={"images": tiny_data})


@pytest.mark.parametrize("encoding", ["npz", "pth.gz"])
@pytest.mark.parametrize("text_layout", ["new", "legacy"])
def test_there_and_back_nothing_is_lost(tiny_reinforced, tmp_path, encoding, text_layout):
    options = {"encoding": encoding, "text_layout": text_layout}
    written = convert(tiny_reinforced, out=str(tmp_path / "public"), options=options)
    assert (written["tars"], written["samples"]) == (2, 32)
    report = convert(str(tmp_path / "public"), out=str(tmp_path / "back"), options={})
    assert (report["rows"], report["joined"], report["left_out"]) == (32, 32, {})
    assert report["picture_bytes"] == {"same": 32}
    before, after = _samples(tiny_reinforced), _samples(tmp_path / "back")
    assert [(s.uid, s.image, s.captions) for s in before] == [(s.uid, s.image, s.captions) for s in after]
    assert all(s.metadata.items() <= t.metadata.items() for s, t in zip(before, after, strict=True))
    for key in ("views", "sizes"):
        assert all(map(torch.equal, _tensor(tiny_reinforced, "views", key), _tensor(tmp_path / "back", "views", key)))
    old, new = manifest.read(tiny_reinforced), manifest.read(str(tmp_path / "back"))
    for shard, again in zip(old.split("train"), new.shards, strict=True):
        captions = read_captions(str(tmp_path / "back"), new.column("coca"), again)
        assert captions == read_captions(tiny_reinforced, old.column("coca"), shard)
    for name in ("first.views", "first.captions", "first.coca"):
        for (a, counts), (b, again) in zip(
            _tensor(tiny_reinforced, name), _tensor(tmp_path / "back", name), strict=True
        ):
            assert torch.equal(counts, again)
            if encoding == "npz":
                assert torch.equal(a, b)
            else:
                assert torch.equal(a.bfloat16().half().float(), b)
    assert {c.name: c.license for c in new.columns} == {c.name: c.license for c in old.columns}
    assert new.sources == old.sources


def test_the_way_back_replays_what_the_teacher_saw(joined, tiny_teachers):
    """verify re-embeds the joined pictures through the converted parameters with the teacher the column names."""
    report = verify(joined[0], teachers=tiny_teachers, samples=8)
    assert report["replay_min_cosine"]["first"] > 0.999


def test_views_of_other_rows_do_not_replay(public, tiny_data, tiny_teachers, tmp_path):
    """The proof above can fail: parameters that are not those of the vectors beside them are found out."""

    def turn(_, members):
        rows = json.loads(members["paug.json"])["param_aug"]
        return {**members, "paug.json": json.dumps({"param_aug": rows[1:] + rows[:1]}).encode()}

    source = _edit(public, tmp_path / "public", turn)
    convert(str(source), out=str(tmp_path / "out"), options={"images": tiny_data})
    verify(str(tmp_path / "out"))  # every digest and shape is right
    with pytest.raises(IntegrityError, match=r"^teacher 'first': a stored view embeds to cosine"):
        verify(str(tmp_path / "out"), teachers=tiny_teachers, samples=8)


def test_tars_hold_what_the_public_ones_hold(public, tiny_reinforced):
    sample = next(iter(webdataset.WebDataset(str(public / "00000000.tar"), shardshuffle=False)))
    assert {k for k in sample if not k.startswith("__")} == {"paug.json", "syn.json", "npz", "json"}
    arrays = np.load(io.BytesIO(sample["npz"]), allow_pickle=False)
    assert {k: (v.dtype, v.shape) for k, v in arrays.items()} == {
        "image_emb": (np.float32, (3, 128)),
        "text_emb": (np.float32, (3, 128)),
        "more_text_emb": (np.float32, (1, 128)),
    }
    assert set(json.loads(sample["syn.json"])) == {"syn_text"}
    rows = json.loads(sample["paug.json"])["param_aug"]
    assert [[len(part) for part in row] for row in rows] == [[4, 2]] * 3
    assert json.loads((public / "config.json").read_text())["reinforce"]["image_augmentation"]["random_resized_crop"]


def test_pictures_come_from_tars_by_uid_and_what_is_missing_is_counted_and_named(public, tiny_data, tmp_path):
    """As users have it: img2dataset tars with their own keys and the uid in the json, links dead, rows gone."""
    (tmp_path / "images").mkdir()
    rows = _samples(tiny_data)
    shown, gone = rows[4:], {s.uid for s in rows[:4]}
    with webdataset.TarWriter(str(tmp_path / "images" / "00000.tar"), encoder=False) as writer:
        for index, sample in enumerate(shown):
            fields = json.dumps({"uid": sample.uid, "caption": "the text", "key": f"{index:09d}"}).encode()
            writer.write({"__key__": f"{index:09d}", "png": sample.image, "json": fields, "txt": b"the text"})
    lost = {s.uid for s in rows[4:7]}
    source = _edit(public, tmp_path / "public", lambda key, members: None if key in lost else members)
    options = {"images": str(tmp_path / "images"), "min_coverage": 0.5}
    with pytest.raises(
        DataError, match=r"^convert\.min_coverage: 0 of 29 rows could be joined, want at least 50\.00%;"
    ):
        convert(str(source), out=str(tmp_path / "strict"), options=options)  # two vectors, one caption
    source = _edit(source, tmp_path / "one", _first_caption_only)
    report = convert(str(source), out=str(tmp_path / "out"), options=options)
    assert (report["rows"], report["joined"], report["pictures"]) == (29, 25, 28)
    assert report["left_out"]["missing_picture"]["count"] == 4
    assert {item["uid"] for item in report["left_out"]["missing_picture"]["first"]} == gone
    assert report["pictures_without_rows"] == {"count": 3, "first": sorted(lost)}
    listed = [json.loads(line) for line in (tmp_path / "out" / "left_out.jsonl").read_text().splitlines()]
    assert {item["uid"] for item in listed} == gone | lost
    assert {tuple(s.captions) for s in _samples(tmp_path / "out")} == {("the text",)}
    assert json.loads((tmp_path / "out" / "coverage.json").read_text()) == report
    verify(str(tmp_path / "out"))


def _first_caption_only(_, members):
    arrays = dict(np.load(io.BytesIO(members["npz"])))
    arrays.pop("more_text_emb")
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return {**members, "npz": stream.getvalue()}


def test_without_pictures_it_can_be_calibrated_and_says_what_it_cannot(public, tmp_path):
    report = convert(str(public), out=str(tmp_path / "out"), options={"without_images": True})
    assert report["joined"] == 32
    calibrate.run(
        Calibrate(batch_size=8, batches=1, scales=[10.0, 50.0]), out=str(tmp_path / "calibrate"), tracker=LogTracker(),
        data=str(tmp_path / "out"),
    )  # fmt: skip
    with pytest.raises(DataError, match="holds no images, the dataset was converted without them"):
        _samples(tmp_path / "out")


def test_a_student_learns_from_it(joined, tmp_path):
    config = Distill(
        model="tiny-mci", distill_weight=0.7, synthetic=["coca"],
        training=Training(steps=2, batch_size=8, optimizer=Optimizer(warmup_steps=1), workers=0, checkpoint_every=0),
    )  # fmt: skip
    metrics = distill.run(config, out=str(tmp_path), tracker=LogTracker(), data=joined[0])
    assert 0 < metrics["student/loss"] < 20


class TestDamage:
    """Whatever one sample holds, the others are converted, and the report names it."""

    def _damage(self, public, tiny_data, tmp_path, change):
        first: list[str] = []

        def edit(key, members):
            if not first:
                first.append(key)
                return change(dict(members))
            return members

        source = _edit(public, tmp_path / "public", edit)
        report = convert(str(source), out=str(tmp_path / "out"), options={"images": tiny_data})
        assert report["joined"] == 31
        verify(str(tmp_path / "out"))
        (cause,) = report["left_out"]
        (item,) = report["left_out"][cause]["first"]
        assert item["uid"] == first[0]
        return cause, item["reason"]

    @pytest.mark.parametrize(
        ("member", "data", "reason"),
        [
            ("npz", b"PK\x03\x04 no archive", "npz: is no readable archive"),
            ("npz", None, "the sample has no 'pth.gz', only json, paug.json, syn.json."),
            ("paug.json", b"{", 'paug.json: want {"param_aug": [one list per view]}.'),
            ("paug.json", b'{"param_aug": [[[0, 0, 9, 9], [[0, 0.0]]]]}', "paug.json: 1 views, want 3 as in the first"),
            ("syn.json", b'{"syn_text": [5, "x"]}', "syn.json: 'syn_text' is no list of texts."),
            ("syn.json", b'{"syn_text": ["half \\ud83d", "x"]}', "syn.json: 'syn_text' is no list of texts."),
            ("syn.json", b"{}", "syn.json: keys are [], want ['syn_text'] as in the first sample."),
            ("syn.json", b'{"syn_text": ["a", "b", "c", "d"]}', "text_emb: 3 vectors, fewer than the 4 synthetic"),
        ],
    )
    def test_of_a_member(self, public, tiny_data, tmp_path, member, data, reason):
        # The first whole sample says what a sample has: damage the last one, so that it never is this.
        keys: list[str] = []
        with tarfile.open(public / "00000001.tar") as tar:
            keys = [info.name.partition(".")[0] for info in tar]

        def edit(key, members):
            if key == keys[-1]:
                return {k: v for k, v in {**members, member: data}.items() if v is not None}
            return members

        source = _edit(public, tmp_path / "public", edit)
        report = convert(str(source), out=str(tmp_path / "out"), options={"images": tiny_data})
        assert report["joined"] == 31
        (item,) = report["left_out"]["damaged_row"]["first"]
        assert (item["uid"], item["tar"]) == (keys[-1], "00000001.tar")
        assert item["reason"].startswith(reason)
        verify(str(tmp_path / "out"))

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (lambda a: {**a, "image_emb": a["image_emb"][:0]}, "image_emb: 0 vectors for 3 views."),
            (lambda a: {**a, "image_emb": a["image_emb"] * 2}, "image_emb: a vector of teacher 'first' is not of unit"),
            (lambda a: {**a, "image_emb": a["image_emb"] * np.nan}, "image_emb: holds values that are not finite."),
            (lambda a: {**a, "text_emb": a["text_emb"][:, :9]}, "text_emb: vectors of 9 values, want 128."),
            (lambda a: {"text_emb": a["text_emb"]}, "image_emb: is missing, there are ['text_emb']."),
        ],
    )
    def test_of_vectors(self, public, tiny_data, tmp_path, change, reason):
        """Among them what the public generator leaves after the first batch of a shard: no vectors at all."""

        def edit(members):
            stream = io.BytesIO()
            np.savez(stream, **change(dict(np.load(io.BytesIO(members["npz"])))))
            return {**members, "npz": stream.getvalue()}

        cause, found = self._damage(public, tiny_data, tmp_path, edit)
        assert cause == "damaged_row"
        assert found.startswith(reason)

    def test_a_resized_picture_is_refused(self, public, tiny_data, tmp_path):
        """A copy of half the size replays without an error on a wrong crop; here it is left out."""
        row = [[0, 0, 65, 60], [[0, 0.0], [6, 0.27]]]
        cause, reason = self._damage(
            public, tiny_data, tmp_path, lambda m: {**m, "paug.json": json.dumps({"param_aug": [row] * 3}).encode()}
        )
        assert (cause, reason.partition(";")[0]) == (
            "other_picture", "image: has 64x64 pixels, its views reach to 60x65",
        )  # fmt: skip

    @pytest.mark.parametrize("share", [0.3, 0.7])
    def test_a_cut_tar_stops_with_its_name(self, public, tiny_data, tmp_path, share):
        shutil.copytree(public, tmp_path / "public")
        path = tmp_path / "public" / "00000001.tar"
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        with pytest.raises(DataError, match=r"^convert: '00000001\.tar' is no readable tar: [^\n]+\.$"):
            convert(str(tmp_path / "public"), out=str(tmp_path / "out"), options={"images": tiny_data})

    def test_a_uid_in_two_tars_stops_with_both_names(self, public, tiny_data, tmp_path):
        shutil.copytree(public, tmp_path / "public")
        shutil.copy(public / "00000000.tar", tmp_path / "public" / "00000002.tar")
        with pytest.raises(DataError, match=r"^convert: uid '\w+' occurs in '00000000\.tar' and in '00000002\.tar', "):
            convert(str(tmp_path / "public"), out=str(tmp_path / "out"), options={"images": tiny_data})

    def test_names_that_leave_the_folder_are_left_out(self, public, tiny_data, tmp_path):
        source = _edit(public, tmp_path / "public", lambda _, members: members)
        with tarfile.open(source / "00000000.tar", "a") as tar:
            for name in ("../../evil.paug.json", "/etc/x y.npz", "back\\slash.npz"):
                tar.addfile(tarfile.TarInfo(name))
        report = convert(str(source), out=str(tmp_path / "out"), options={"images": tiny_data})
        assert (report["joined"], report["left_out"]["damaged_row"]["count"]) == (32, 3)
        assert not list(tmp_path.rglob("evil*"))


def test_a_run_that_was_stopped_goes_on_and_gives_the_same_bytes(public, tiny_data, joined, tmp_path):
    whole = _files(joined[0])
    convert(str(public), out=str(tmp_path), options={"images": tiny_data})
    assert _files(tmp_path) == whole  # another folder, the same bytes
    manifest_file, unit = tmp_path / "manifest.json", next((tmp_path / "units").glob("00001-*"))
    manifest_file.unlink()
    unit.unlink()
    (tmp_path / ".scratch").mkdir()
    (tmp_path / ".scratch" / "left.tar").write_bytes(b"by a kill")
    kept = next(tmp_path.glob("train-00000-*.tar")).stat()
    convert(str(public), out=str(tmp_path), options={"images": tiny_data})
    assert _files(tmp_path) == whole
    assert next(tmp_path.glob("train-00000-*.tar")).stat().st_mtime_ns == kept.st_mtime_ns


def test_wrong_options_get_a_sentence(public, tiny_data, tmp_path, capsys):
    (tmp_path / "tars").mkdir()
    shutil.copy(public / "00000000.tar", tmp_path / "tars")
    with pytest.raises(ConfigError, match=r"nothing says whose embeddings these are, want --layout with datacompdr"):
        convert(str(tmp_path / "tars"), out=str(tmp_path / "out"), options={})
    with pytest.raises(DataError, match=r"vectors of 128 values, want 768 \+ 768"):
        convert(
            str(tmp_path / "tars"), out=str(tmp_path / "out"), options={"layout": "datacompdr", "images": tiny_data}
        )
    with pytest.raises(ConfigError, match=r"^convert\.out: got "):
        convert(tiny_data, out=tiny_data, options={})
    with pytest.raises(DataError, match=r"^convert: the dataset has no teacher embeddings"):
        convert(tiny_data, out=str(tmp_path / "out"), options={})
    assert main(["convert", str(tmp_path), "--out", str(tmp_path / "o"), "--min-coverage", "2"]) == 2
    assert "convert.min_coverage: got 2.0, want a share from 0 to 1." in capsys.readouterr().err


def test_the_command(public, tiny_data, tmp_path, capsys):
    code = main(["convert", str(public), "--out", str(tmp_path), "--images", tiny_data, "--dtype", "int8"])
    assert code == 0
    assert json.loads(capsys.readouterr().out)["joined"] == 32
    assert manifest.read(str(tmp_path)).column("first.views").spec["dtype"] == "int8"
    verify(str(tmp_path))
