"""reinforce: what is stored is what the teacher says of the stored views, in any number of groups, at any time."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mobileclip import manifest
from mobileclip.config import TeacherRef
from mobileclip.data.augment import apply_view, draw_views
from mobileclip.data.columns import ColumnPlan, ColumnReader, build_columns, collect, pack_texts, read_captions
from mobileclip.data.embeddings import decode_all
from mobileclip.data.images import decode
from mobileclip.data.shards import ShardReader
from mobileclip.errors import ConfigError, DataError, IntegrityError, MobileClipError
from mobileclip.lineage import attribution
from mobileclip.manifest import Attribution
from mobileclip.models import zoo
from mobileclip.models.replay import verify
from mobileclip.stages import reinforce
from mobileclip.tracking.protocol import LogTracker

SECOND = TeacherRef(name="second", model="trained:second")


def _run(config, out, data, teachers, **options):
    return reinforce.run(config, out=str(out), tracker=LogTracker(), data=data, teachers=teachers, **options)


def _files(folder) -> dict[str, bytes]:
    """All but how long it took."""
    files = (p for p in Path(folder).rglob("*") if p.is_file() and not p.name.startswith("timings"))
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


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


def test_a_caption_column_later_leaves_every_older_file_as_it_was(
    tiny_data, tiny_captioned, tiny_teachers, reinforce_config, tmp_path
):
    _run(reinforce_config.model_copy(update={"captions": []}), tmp_path / "a", tiny_data, tiny_teachers)
    before = _files(tmp_path / "a")
    _run(reinforce_config, tmp_path / "a", tiny_captioned, tiny_teachers)
    after = _files(tmp_path / "a")
    assert {n for n in before if before[n] != after[n]} == {"manifest.json"}
    assert {n.split("/")[0] for n in after.keys() - before.keys()} == {"first.coca"}
    verify(str(tmp_path / "a"), teachers=tiny_teachers, samples=1)


def test_several_captioners_are_several_columns(tiny_captioned, tiny_teachers, reinforce_config, tmp_path):
    content = manifest.read(tiny_captioned)
    other = ColumnPlan("blip", "caption", {"by": "another"})
    shards = content.split("train")
    build_columns(
        str(tmp_path / "two"), [other], shards, lambda shard, _: {"blip": pack_texts([["same words"]] * shard.samples)}
    )
    two = collect(str(tmp_path / "two"), [other], shards, content.moved(tiny_captioned, str(tmp_path / "two")))
    manifest.write(str(tmp_path / "two"), two)
    config = reinforce_config.model_copy(update={"captions": ["coca", "blip"]})
    metrics = _run(config, tmp_path / "out", str(tmp_path / "two"), tiny_teachers)
    assert metrics["caption_columns"] == 2
    features, counts = decode_all(_all(tmp_path / "out", "first.blip", shards[0]))
    assert counts.tolist() == list(range(shards[0].samples + 1))
    assert bool((features == features[0]).all())


def test_neither_threads_nor_processes_change_a_byte(
    tiny_reinforced, tiny_captioned, tiny_teachers, reinforce_config, tmp_path, monkeypatch
):
    expected = {n: d for n, d in _files(tiny_reinforced).items() if n != "manifest.json"}
    for workers, processes in ((0, "1"), (5, "2")):
        monkeypatch.setenv("MOBILECLIP_PROCESSES", processes)
        out = tmp_path / f"{workers}"
        _run(reinforce_config.model_copy(update={"workers": workers}), out, tiny_captioned, tiny_teachers)
        assert {n: d for n, d in _files(out).items() if n != "manifest.json"} == expected


def test_a_picture_is_decoded_once_and_a_text_embedded_once(
    tiny_captioned, tiny_teachers, reinforce_config, tmp_path, monkeypatch
):
    """Both teachers read 64 px, so they also share the rendered views."""
    decoded, rendered, texts = [], [], []
    plain_decode, plain_views, plain_text = reinforce.decode, reinforce.apply_views, zoo.Clip.encode_text
    monkeypatch.setattr(reinforce, "decode", lambda data: decoded.append(data) or plain_decode(data))
    monkeypatch.setattr(reinforce, "apply_views", lambda *a, **k: rendered.append(k) or plain_views(*a, **k))
    monkeypatch.setattr(zoo.Clip, "encode_text", lambda self, part: texts.extend(part) or plain_text(self, part))
    both = reinforce_config.model_copy(update={"teachers": [*reinforce_config.teachers, SECOND]})
    _run(both, tmp_path, tiny_captioned, tiny_teachers)
    assert len(decoded) == len(set(decoded)) == 32
    formats = {(k["size"], k["interpolation"]) for k in rendered}
    assert len(rendered) == 32 * len(formats)
    content = manifest.read(str(tmp_path))
    distinct = 0
    for shard in content.split("train"):
        reader = ShardReader(str(tmp_path), shard)
        distinct += len({text for row in range(len(reader)) for text in reader.sample(row).captions})
        distinct += len({text for row in read_captions(str(tmp_path), content.column("coca"), shard) for text in row})
    assert len(texts) == 2 * distinct < 2 * 128


def test_bfloat16_teachers_are_recorded_and_verify(tiny_captioned, tiny_teachers, reinforce_config, tmp_path):
    config = reinforce_config.model_copy(update={"precision": "bfloat16", "captions": [], "dtype": "float32"})
    _run(config, tmp_path, tiny_captioned, tiny_teachers)
    assert manifest.read(str(tmp_path)).column("first.views").spec["precision"] == "bfloat16"
    verify(str(tmp_path), teachers=tiny_teachers, samples=2)


def test_timings_lie_apart_and_count_what_was_done(tiny_captioned, tiny_teachers, reinforce_config, tmp_path):
    _run(reinforce_config, tmp_path, tiny_captioned, tiny_teachers, group=0, num_groups=2)
    assert json.loads((tmp_path / "timings-00000.json").read_text())["samples"] == 16
    _run(reinforce_config, tmp_path, tiny_captioned, tiny_teachers)
    times = json.loads((tmp_path / "timings.json").read_text())
    assert (times["samples"], times["views"], list(times["shards"])) == (16, 48, ["train-00001"])
    assert times["samples_per_second"] == pytest.approx(16 / times["seconds"], rel=0.05)


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
    with pytest.raises(DataError, match=r"caption_field: got 'poems', no sample has captions of that name\.$"):
        _run(nothing, tmp_path / "none", tiny_captioned, tiny_teachers)
    assert not (tmp_path / "none" / "manifest.json").exists()


def test_wrong_sections_stop_before_anything_is_written(tiny_captioned, tiny_teachers, reinforce_config, tmp_path):
    for changes, error, match in (
        ({"teachers": []}, ConfigError, r"^reinforce\.teachers: got an empty list, want at least one teacher\.$"),
        ({"captions": ["blip"]}, DataError, r"^data: no column 'blip' in the manifest, it has \['coca'\]\.$"),
        ({"splits": []}, ConfigError, r"^reinforce\.splits: got \[\], the dataset has no shard of these splits\.$"),
        ({"teachers": [TeacherRef(model="trained:nobody")]}, DataError, r"^model: no checkpoint at '.*nobody'"),
        (
            {"teachers": [TeacherRef(model="ViT-B-99")]},
            ConfigError,
            r"^pretrained: got '' for model 'ViT-B-99', want one of \[\] or a weights file\.$",
        ),
    ):
        with pytest.raises(error, match=match):
            _run(reinforce_config.model_copy(update=changes), tmp_path / "out", tiny_captioned, tiny_teachers)
    with pytest.raises(
        ConfigError, match=r"^model: got 'trained:first', but there is no input folder with trained models\.$"
    ):
        _run(reinforce_config, tmp_path / "out", tiny_captioned, "")
    assert not (tmp_path / "out").exists()


def test_what_a_teacher_was_made_from_is_kept_with_its_column(tiny_data, tiny_teachers, reinforce_config, tmp_path):
    tower = Attribution(kind="weights", name="tower", license="CC-BY-4.0", attribution="by T", url="https://t.example")
    clip = zoo.load("trained:first", trained=tiny_teachers)
    zoo.save(str(tmp_path / "teachers" / "first"), clip, license="MIT", card=attribution.to_card([tower]))
    config = reinforce_config.model_copy(update={"captions": []})
    _run(config, tmp_path / "out", tiny_data, str(tmp_path / "teachers"))
    content = manifest.read(str(tmp_path / "out"))
    own = Attribution(kind="teacher", name="first", license="MIT")
    assert attribution.of_column(content, "first.views", "teacher") == [own, tower]


@pytest.mark.parametrize(("tower", "what"), [("visual", "views"), ("text", "texts")])
def test_a_teacher_that_is_not_finite_is_refused_where_its_vectors_are_made(
    tiny_captioned, tiny_teachers, reinforce_config, tmp_path, monkeypatch, tower, what
):  # fmt: skip
    load = zoo.load

    def spoiled(*args, **options):
        clip = load(*args, **options)
        with torch.no_grad():
            next(p for p in getattr(clip.model, tower).parameters() if p.ndim > 1).view(-1)[0] = float("nan")
        return clip

    monkeypatch.setattr(zoo, "load", spoiled)
    wanted = rf"^teacher '\w+': \d+ of \d+ embeddings of {what} of shard '.+' are not finite; "
    with pytest.raises(IntegrityError, match=wanted):
        _run(reinforce_config, tmp_path / "out", tiny_captioned, tiny_teachers)
