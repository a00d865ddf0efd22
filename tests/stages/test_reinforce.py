"""reinforce: what is stored is what the teacher says of the stored views, in any number of groups, at any time."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mobileclip import manifest
from mobileclip.config import TeacherRef
from mobileclip.data.augment import apply_view, draw_views
from mobileclip.data.columns import ColumnReader, read_captions
from mobileclip.data.embeddings import decode_all
from mobileclip.data.images import decode
from mobileclip.data.shards import ShardReader
from mobileclip.data.verify import verify
from mobileclip.errors import ConfigError, DataError, MobileClipError
from mobileclip.models import zoo
from mobileclip.report import LogTracker
from mobileclip.stages import reinforce

SECOND = TeacherRef(name="second", model="trained:second")


def _run(config, out, data, teachers, **options):
    return reinforce.run(config, out=str(out), tracker=LogTracker(), data=data, teachers=teachers, **options)


def _files(folder) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def _all(out, column, shard):
    content = manifest.read(str(out))
    return ColumnReader(str(out), content.column(column), shard)


def test_what_is_stored_is_what_the_teacher_says(tiny_reinforced, tiny_teachers, reinforce_config):
    """Recomputed one by one from the pictures: views, their vectors, and the vectors of both kinds of captions."""
    content = manifest.read(tiny_reinforced)
    clip = zoo.load("trained:first", trained=tiny_teachers)
    shard = content.split("train")[1]
    reader = ShardReader(tiny_reinforced, shard)
    stored = _all(tiny_reinforced, "views", shard)
    synthetic = read_captions(tiny_reinforced, content.column("coca"), shard)
    views, sizes = stored.all("views"), stored.all("sizes")
    for row in (0, 7, 15):
        sample = reader.sample(row)
        assert sizes[row].tolist() == [64, 64]
        drawn = draw_views(reinforce_config.views, uid=sample.uid, seed=7, width=64, height=64)
        assert views[row].tolist() == drawn.tolist()
        pixels = torch.stack([apply_view(decode(sample.image), v, size=64, interpolation="bilinear") for v in drawn])
        texts = {"captions": sample.captions, "coca": synthetic[row]}
        with torch.no_grad():
            expected = {"views": clip.model.encode_image(pixels.float() / 255)}
            expected |= {kind: clip.model.encode_text(clip.tokenizer(text)) for kind, text in texts.items()}
        for kind, vectors in expected.items():
            features, counts = decode_all(_all(tiny_reinforced, f"first.{kind}", shard))
            own = features[counts[row] : counts[row + 1]]
            torch.testing.assert_close(own, F.normalize(vectors, dim=1), atol=6e-4, rtol=0)


def test_metrics_and_manifest(tiny_reinforced, tiny_captioned, tiny_teachers, reinforce_config, tmp_path):
    metrics = _run(reinforce_config, tmp_path, tiny_captioned, tiny_teachers)
    content = manifest.read(str(tmp_path))
    assert {k: metrics[k] for k in ("samples", "views", "texts", "teachers", "caption_columns")} == {
        "samples": 32, "views": 96, "texts": 128, "teachers": 1, "caption_columns": 1,
    }  # fmt: skip
    assert metrics["bytes"] == sum(p.stat().st_size for p in tmp_path.rglob("*.safetensors"))
    column = content.column("first.views")
    clip = zoo.load("trained:first", trained=tiny_teachers)
    assert column.computed_on == ["views"]
    assert column.license == "LIC-first"
    assert column.spec["sha256"] == clip.sha256
    assert column.spec["logit_scale"] == pytest.approx(clip.logit_scale)
    assert column.spec["preprocess"] == clip.preprocess.as_open_clip()
    assert set(column.parts) == {s.name for s in content.split("train")}
    assert content.teachers() == ["first"]
    # Only paths may differ between two folders, and both lie beside each other here.
    assert {n: d for n, d in _files(tmp_path).items() if n != "manifest.json"} == {
        n: d for n, d in _files(tiny_reinforced).items() if n != "manifest.json"
    }


def test_groups_and_a_merge_give_the_manifest_of_one_run(
    tiny_reinforced, tiny_captioned, tiny_teachers, reinforce_config
):
    out = Path(tiny_reinforced).parent / "groups"  # beside the single run, so that relative paths agree
    assert _run(reinforce_config, out, tiny_captioned, tiny_teachers, group=1, num_groups=2) == {}
    assert not (out / "manifest.json").exists()
    with pytest.raises(MobileClipError, match="shard 'train-00000' is not there yet"):
        _run(reinforce_config, out, tiny_captioned, tiny_teachers, num_groups=2, merge=True)
    _run(reinforce_config, out, tiny_captioned, tiny_teachers, group=0, num_groups=2)
    _run(reinforce_config, out, tiny_captioned, tiny_teachers, num_groups=2, merge=True)
    assert _files(out) == _files(tiny_reinforced)


def test_a_second_teacher_later_leaves_every_older_file_as_it_was(
    tiny_captioned, tiny_teachers, reinforce_config, tmp_path
):
    _run(reinforce_config, tmp_path / "a", tiny_captioned, tiny_teachers)
    before = _files(tmp_path / "a")
    both = reinforce_config.model_copy(update={"teachers": [*reinforce_config.teachers, SECOND]})
    metrics = _run(both, tmp_path / "a", tiny_captioned, tiny_teachers)
    after = _files(tmp_path / "a")
    assert {n for n in before if before[n] != after[n]} == {"manifest.json"}
    assert {n.split("/")[0] for n in after.keys() - before.keys()} == {"second.views", "second.captions", "second.coca"}
    assert metrics["teachers"] == 2
    assert manifest.read(str(tmp_path / "a")).teachers() == ["first", "second"]
    _run(both, tmp_path / "b", tiny_captioned, tiny_teachers)
    assert _files(tmp_path / "b") == after  # as if both had been there from the start
    verify(str(tmp_path / "a"), teachers=tiny_teachers, samples=2)


def test_more_views_are_a_new_column_that_starts_with_the_old_ones(
    tiny_reinforced, tiny_captioned, tiny_teachers, reinforce_config, tmp_path
):
    more = reinforce_config.model_copy(update={"views": reinforce_config.views.model_copy(update={"num_views": 5})})
    _run(more, tmp_path, tiny_captioned, tiny_teachers)
    shard = manifest.read(tiny_reinforced).split("train")[0]
    old, new = (_all(out, "views", shard).all("views") for out in (tiny_reinforced, tmp_path))
    assert torch.equal(new[:, :3], old)
    other = reinforce_config.model_copy(update={"seed": 8})
    _run(other, tmp_path, tiny_captioned, tiny_teachers)
    assert not torch.equal(_all(tmp_path, "views", shard).all("views"), old)


@pytest.mark.parametrize("dtype", ["int8", "bfloat16", "float32"])
def test_other_storage_types_verify(tiny_captioned, tiny_teachers, reinforce_config, tmp_path, dtype):
    config = reinforce_config.model_copy(update={"dtype": dtype, "captions": []})
    _run(config, tmp_path, tiny_captioned, tiny_teachers)
    assert verify(str(tmp_path), teachers=tiny_teachers, samples=3)["replay_min_cosine"]["first"] > 0.9995
    assert manifest.read(str(tmp_path)).column("first.views").spec["dtype"] == dtype


def test_a_field_that_some_samples_lack_has_no_rows_there(tiny_captioned, tiny_teachers, reinforce_config, tmp_path):
    config = reinforce_config.model_copy(update={"caption_field": "descriptions", "captions": []})
    metrics = _run(config, tmp_path, tiny_captioned, tiny_teachers)
    assert 0 < metrics["texts"] < 32
    verify(str(tmp_path), teachers=tiny_teachers, samples=1)
    nothing = reinforce_config.model_copy(update={"caption_field": "poems", "captions": []})
    assert _run(nothing, tmp_path / "none", tiny_captioned, tiny_teachers)["texts"] == 0
    verify(str(tmp_path / "none"))


def test_wrong_sections_stop_before_anything_is_written(tiny_captioned, tiny_teachers, reinforce_config, tmp_path):
    for changes, error, match in (
        ({"teachers": []}, ConfigError, r"^reinforce\.teachers: got an empty list, want at least one teacher\.$"),
        ({"captions": ["blip"]}, DataError, r"^data: no column 'blip' in the manifest, it has \['coca'\]\.$"),
        ({"splits": []}, ConfigError, r"^reinforce\.splits: got \[\], the dataset has no shard of these splits\.$"),
        ({"teachers": [TeacherRef(model="trained:nobody")]}, DataError, r"^model: no checkpoint at '.*nobody'"),
        (
            {"teachers": [TeacherRef(model="ViT-B-99")]},
            ConfigError,
            r"^pretrained: got '' for model 'ViT-B-99', want one of \[\]\.$",
        ),
    ):
        with pytest.raises(error, match=match):
            _run(reinforce_config.model_copy(update=changes), tmp_path / "out", tiny_captioned, tiny_teachers)
    with pytest.raises(
        ConfigError, match=r"^model: got 'trained:first', but there is no input folder with trained models\.$"
    ):
        _run(reinforce_config, tmp_path / "out", tiny_captioned, "")
    assert not (tmp_path / "out").exists()
