"""verify: a whole dataset passes, one flipped byte in any file fails with the file's name, a false replay is found."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from mobileclip import manifest, storage
from mobileclip.config import Prepare, Reinforce, TeacherRef, Views
from mobileclip.data.columns import ColumnPlan, ColumnReader, build_columns, collect
from mobileclip.data.embeddings import encode
from mobileclip.entry import run_stage
from mobileclip.errors import DataError, IntegrityError
from mobileclip.models import zoo
from mobileclip.models.replay import verify
from tests.models.perturbed import perturbed_clip


@pytest.fixture(scope="module")
def tree(tiny_source, tiny_teachers, tmp_path_factory) -> Path:
    """A reinforced dataset as the door leaves it, all below one folder."""
    root = tmp_path_factory.mktemp("tree")
    patch = pytest.MonkeyPatch()
    patch.setenv("MOBILECLIP_TRACKING", "off")
    run_stage("prepare", Prepare(shard_samples=16), out=root / "prepare", source=tiny_source)
    teacher = TeacherRef(name="first", model="trained:first")
    config = Reinforce(views=Views(num_views=2), teachers=[teacher], captions=[], batch_size=16)
    run_stage("reinforce", config, out=root / "reinforce", data=root / "prepare", teachers=tiny_teachers)
    patch.undo()
    return root


@pytest.fixture
def copy(tree, tmp_path) -> Path:
    shutil.copytree(tree, tmp_path / "tree")
    return tmp_path / "tree"


def test_a_whole_dataset_passes_and_replays(tree, tiny_teachers):
    report = verify(str(tree / "reinforce"), teachers=tiny_teachers, samples=4)
    assert report["samples"] == 40
    assert report["shards"] == 4
    assert report["columns"] == {"views": 2, "first.views": 2, "first.captions": 2}
    assert 0.9999 < report["replay_min_cosine"]["first"] <= 1.0001
    assert report["manifest"] == manifest.read(str(tree / "reinforce")).digest()
    plain = verify(str(tree / "reinforce"))
    assert plain["replay_min_cosine"] == {"first": "not replayed: the `teachers` folder was not given"}
    assert verify(str(tree / "prepare"))["columns"] == {}


def _paths(tree: Path) -> list[str]:
    content = manifest.read(str(tree / "reinforce"))
    parts = [part.path for column in content.columns for part in column.parts.values()]
    return [s.path for s in content.shards] + parts + ["manifest.json", "config.json", "metrics.json"]


def test_one_flipped_byte_in_any_file_is_found_and_named(copy):
    data = copy / "reinforce"
    paths = _paths(copy)
    assert len(paths) == 13
    for path in paths:
        file = Path(storage.join(data, path))
        whole = file.read_bytes()
        for place in (len(whole) // 3, len(whole) - 2):
            damaged = bytearray(whole)
            damaged[place] ^= 1
            file.write_bytes(bytes(damaged))
            with pytest.raises(IntegrityError, match=file.name) as caught:
                verify(str(data))
            assert caught.value.exit_code == 1
        file.write_bytes(whole)
    verify(str(data))


def test_a_missing_or_cut_file_is_found_and_named(copy):
    data = copy / "reinforce"
    for path in _paths(copy)[:8]:
        file = Path(storage.join(data, path))
        whole = file.read_bytes()
        for damage in (None, whole[:-1], b""):
            file.unlink() if damage is None else file.write_bytes(damage)
            with pytest.raises(IntegrityError, match=file.name):
                verify(str(data))
        file.write_bytes(whole)


def test_no_dataset(tmp_path):
    with pytest.raises(DataError, match="no manifest at"):
        verify(str(tmp_path))


def _replace_column(copy: Path, name: str, change) -> str:
    """A dataset whose column was computed wrongly from the start: every digest is right."""
    data = str(copy / "reinforce")
    content = manifest.read(data)
    column = content.column(name)
    plan = ColumnPlan(name, column.kind, {**column.spec, "wrong": True}, column.computed_on)
    shards = content.split("train")

    def compute(shard, _missing):
        reader = ColumnReader(data, column, shard)
        return {name: change({key: reader.all(key).clone() for key in reader.keys()})}  # noqa: SIM118

    build_columns(data, [plan], shards, compute)
    order = [c.name for c in content.columns]
    wrong = collect(data, [plan], shards, content)
    wrong = wrong.model_copy(update={"columns": sorted(wrong.columns, key=lambda c: order.index(c.name))})
    (copy / "reinforce" / "record.json").unlink()
    manifest.write(data, wrong)
    return data


def _spoil(key, place, value):
    def change(tensors):
        tensors[key][place] = value
        return tensors

    return change


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("views", _spoil("views", (3, 1, 3), 65), "a view lies outside its picture or names an unknown operation"),
        ("views", _spoil("views", (3, 1, 4), 14), "a view lies outside its picture or names an unknown operation"),
        (
            "views",
            lambda t: {**t, "views": t["views"][:, :, :7].contiguous()},
            r"views have shape \[16, 2, 7\], want \[16, N, 8\]",
        ),
        ("first.views", _spoil("features", (5, 0), float("nan")), "a vector is not finite or not of unit norm"),
        ("first.views", _spoil("features", 5, 0.0), "a vector is not finite or not of unit norm"),
        ("first.views", lambda t: {**t, "features": t["features"][:-1].contiguous()}, "31 rows for counts up to 32"),
        (
            "first.views",
            lambda t: {**t, "features": t["features"][:, :64].contiguous()},
            "vectors have 64 values, the spec says 128",
        ),
        ("first.views", _spoil("counts", 1, 1), "a sample has not 2 view embeddings"),
        ("first.captions", lambda t: {**t, "counts": t["counts"][:-1].contiguous()}, "32 rows for counts up to 30"),
    ],
)
def test_contents_are_checked_not_only_digests(copy, name, change, match):
    with pytest.raises(IntegrityError, match=rf"^column '{name}' of shard 'train-00000': {match}"):
        verify(_replace_column(copy, name, change))


def test_views_that_are_not_those_the_teacher_saw_do_not_replay(copy, tiny_teachers):
    def turn(tensors):
        tensors["views"] = tensors["views"].roll(1, dims=1)
        return tensors

    data = _replace_column(copy, "views", turn)
    verify(data)  # every digest is right
    with pytest.raises(
        IntegrityError, match=r"^teacher 'first': a stored view embeds to cosine 0\.\d+ with the stored vector"
    ):
        verify(data, teachers=tiny_teachers)


def test_another_teacher_of_that_name_is_refused(tree, tmp_path):
    zoo.save(str(tmp_path / "first"), perturbed_clip("tiny-mci", 77), license="MIT", card={})
    with pytest.raises(
        IntegrityError, match=r"^teacher 'first': its weights are \w{12}, not those the column names\.$"
    ):
        verify(str(tree / "reinforce"), teachers=str(tmp_path))


def test_a_teacher_from_a_folder_replays(tiny_data, tiny_teachers, tmp_path):
    teacher = TeacherRef(name="first", model=f"local-dir:{tiny_teachers}/first")
    config = Reinforce(views=Views(num_views=1), teachers=[teacher], captions=[], dtype="int8", splits=["validation"])
    from mobileclip.stages import reinforce
    from mobileclip.tracking.protocol import LogTracker

    reinforce.run(config, out=str(tmp_path), tracker=LogTracker(), data=tiny_data)
    assert verify(str(tmp_path), samples=2)["replay_min_cosine"]["first"] > 0.999


def test_int8_rounding_stays_within_what_verify_allows():
    vectors = torch.nn.functional.normalize(torch.randn(50, 128), dim=1)
    assert set(encode(vectors, [1] * 50, "int8")) == {"features", "scales", "counts"}


def test_the_record_is_json_with_the_digests_that_are_checked(tree):
    files = json.loads((tree / "reinforce" / "record.json").read_text())["files"]
    assert set(files) == {"manifest.json", "config.json", "metrics.json"}
