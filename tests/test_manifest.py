"""The manifest: canonical bytes, moves with its folders, refuses what it cannot trust."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mobileclip import manifest, storage
from mobileclip.errors import DataError, IntegrityError
from mobileclip.manifest import Attribution, Column, ColumnPart, Manifest, Shard, Source


def _shard(name="train-00000", split="train", path="") -> Shard:
    return Shard(
        name=name, split=split, path=path or f"{name}.tar", samples=2, bytes=10, sha256="a" * 64, uids_sha256="b" * 64
    )


def _column(name="coca", kind="caption", path="") -> Column:
    part = ColumnPart(path=path or f"{name}/x.safetensors", bytes=3, sha256="c" * 64, samples=2)
    return Column(name=name, kind=kind, spec={"b": 1, "a": [2]}, spec_sha256="d" * 64, parts={"train-00000": part})


def _content() -> Manifest:
    return Manifest(
        shards=[_shard(), _shard("validation-00000", "validation")],
        columns=[_column(), *(_column(n, "embedding") for n in ("first.views", "second.views", "first.captions"))],
        sources=[Source(name="pictures", license="CC0-1.0", samples=2)],
        scales={"first": 50.0},
    )  # fmt: skip


def test_written_and_read_back_with_the_same_bytes(tmp_path):
    manifest.write(str(tmp_path), _content())
    assert manifest.read(str(tmp_path)) == _content()
    assert manifest.read(str(tmp_path / "manifest.json")) == _content()
    assert manifest.read(str(tmp_path)).to_bytes() == (tmp_path / "manifest.json").read_bytes()
    assert manifest.read(str(tmp_path)).digest() == storage.digest_file(tmp_path / "manifest.json")


def test_look_ups():
    content = _content()
    assert [s.name for s in content.split("train")] == ["train-00000"]
    assert [s.name for s in content.split("test", "validation")] == ["validation-00000"]
    assert content.teachers() == ["first", "second"]
    assert content.has("coca")
    assert not content.has("blip")
    with pytest.raises(DataError, match=r"^data: no column 'blip' in the manifest, it has \['coca', 'first.views'"):
        content.column("blip")


def test_the_split_that_is_judged_on():
    def content(**samples):
        shards = [
            Shard(name=f"{s}-0", split=s, path="x", samples=n, bytes=1, sha256="", uids_sha256="")
            for s, n in samples.items()
        ]
        return Manifest(shards=shards)

    assert content(train=9, validation=3, test=2).held_out("auto") == "test"
    assert content(train=9, validation=3, test=0).held_out("auto") == "validation"
    assert content(train=9).held_out("auto") == "test"  # which is absent, and is said to be: never the training split
    assert content(train=9).held_out("auto", ("test", "validation", "train")) == "train"
    assert content(train=9, test=2).held_out("validation") == "validation"


def test_with_column_adds_or_replaces():
    other = _column(path="coca/y.safetensors")
    replaced = _content().with_column(other)
    assert [c.name for c in replaced.columns] == ["first.views", "second.views", "first.captions", "coca"]
    assert replaced.column("coca") == other
    assert len(_content().with_column(_column("new")).columns) == 5


names = st.text("abcxyz", min_size=1, max_size=3)
folders = st.lists(names, min_size=1, max_size=4).map("/".join)


@settings(deadline=None, max_examples=50)
@given(root=st.sampled_from(["/", "/srv/", "s3://bucket/"]), old=folders, new=folders, path=folders)
def test_moved_manifests_name_the_same_files(root, old, new, path):
    content = Manifest(shards=[_shard(path=path)], columns=[_column(path=path)])
    old, new = root + old, root + new
    moved = content.moved(old, new)
    assert storage.join(new, moved.shards[0].path) == storage.join(old, path)
    assert storage.join(new, moved.columns[0].parts["train-00000"].path) == storage.join(old, path)
    assert "://" not in moved.shards[0].path
    assert not moved.shards[0].path.startswith("/")
    assert moved.moved(new, old) == content


def test_a_tree_of_stages_moves_as_a_whole(tmp_path):
    (tmp_path / "a" / "prepare").mkdir(parents=True)
    (tmp_path / "a" / "prepare" / "train-00000.tar").write_bytes(b"tar")
    first, second = str(tmp_path / "a" / "prepare"), str(tmp_path / "a" / "filter")
    manifest.write(second, _content().moved(first, second))
    (tmp_path / "a").rename(tmp_path / "b")
    moved = str(tmp_path / "b" / "filter")
    assert storage.read_bytes(storage.join(moved, manifest.read(moved).shards[0].path)) == b"tar"


def test_none_or_damaged(tmp_path):
    with pytest.raises(
        DataError, match=r"^data: no manifest at '.*manifest\.json', want the output folder of an earlier stage\.$"
    ):
        manifest.read(str(tmp_path))
    file = tmp_path / "manifest.json"
    for text, error, match in (
        ("{", IntegrityError, r"manifest\.json: not JSON, the manifest is damaged\.$"),
        ("[]", DataError, r"^data: schema_version of '.*' is None, want 1\.$"),
        ('{"schema_version": 2}', DataError, r"is 2, want 1\.$"),
        ('{"schema_version": 1}', IntegrityError, r"manifest\.json: shards: Field required\.$"),
    ):
        file.write_text(text)
        with pytest.raises(error, match=match):
            manifest.read(str(tmp_path))
    raw = json.loads(_content().to_bytes())
    raw["columns"][0]["parts"]["train-00000"]["surprise"] = 1
    file.write_text(json.dumps(raw))
    with pytest.raises(
        IntegrityError, match=r"columns\.0\.parts\.train-00000\.surprise: Extra inputs are not permitted"
    ):
        manifest.read(str(tmp_path))


def test_digests_tell_specs_and_uids_apart():
    assert manifest.spec_digest({"a": 1, "b": 2}) == manifest.spec_digest({"b": 2, "a": 1})
    assert manifest.spec_digest({"a": 1}) != manifest.spec_digest({"a": 2})
    assert manifest.uids_digest(["a", "b"]) != manifest.uids_digest(["b", "a"])


def test_fields_that_came_later_leave_earlier_manifests_their_digest():
    """What was written before there were attributions and addresses is read, and written again, byte for byte."""
    raw = json.loads(_content().to_bytes())
    assert all("attributions" not in column for column in raw["columns"])
    assert [set(source) for source in raw["sources"]] == [{"name", "license", "attribution", "samples"}]
    owed = Attribution(kind="teacher", name="first", license="MIT", url="https://first.example")
    column = _column().model_copy(update={"attributions": [owed]})
    later = Manifest(
        shards=[], columns=[column], sources=[Source(name="x", license="MIT", url="https://x.example", samples=1)]
    )
    assert Manifest.model_validate_json(later.to_bytes()) == later
    assert later.digest() != later.with_column(_column()).digest()


@pytest.mark.parametrize("url", ["javascript:alert(1)", "x.example", "https://a b", 'https://a"onclick', "ftp://x"])
def test_an_address_is_one_of_the_web(url):
    with pytest.raises(ValidationError, match="url"):
        Source(name="x", license="MIT", url=url, samples=1)
