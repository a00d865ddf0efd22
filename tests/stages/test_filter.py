"""filter: scores are the model's own cosines, the best share is kept, no shard is rewritten."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mobileclip import manifest
from mobileclip.config import Filter
from mobileclip.data.columns import ColumnReader
from mobileclip.data.images import decode
from mobileclip.data.shards import ShardReader
from mobileclip.errors import DataError, IntegrityError
from mobileclip.models import zoo
from mobileclip.models.replay import verify
from mobileclip.stages import filter as stage
from mobileclip.tracking.protocol import LogTracker

CONFIG = Filter(model="trained:first", keep_share=0.6, batch_size=8)


def _run(data, teachers, out, **changes):
    return stage.run(
        CONFIG.model_copy(update=changes), out=str(out), tracker=LogTracker(), data=data, teachers=teachers
    )


def _column(out, name, key):
    content = manifest.read(str(out))
    column = content.column(name)
    return torch.cat([ColumnReader(str(out), column, s).all(key) for s in content.split("train")])


@pytest.fixture(scope="module")
def finished(tiny_data, tiny_teachers, tmp_path_factory):
    out = tmp_path_factory.mktemp("filter")
    return out, _run(tiny_data, tiny_teachers, out)


def test_scores_are_the_cosines_of_picture_and_first_caption(finished, tiny_data, tiny_teachers):
    out, _ = finished
    clip = zoo.load("trained:first", trained=tiny_teachers)
    scores, expected = _column(out, "scores", "score"), []
    for shard in manifest.read(tiny_data).split("train"):
        reader = ShardReader(tiny_data, shard)
        for row in range(len(reader)):
            sample = reader.sample(row)
            image = torch.tensor(list(decode(sample.image).resize((64, 64), 2).get_flattened_data())).view(64, 64, 3)
            pixels = image.permute(2, 0, 1)[None].float() / 255
            with torch.no_grad():
                vectors = clip.model.encode_image(pixels), clip.model.encode_text(clip.tokenizer([sample.captions[0]]))
            expected.append(float(F.cosine_similarity(*vectors)))
    assert scores.tolist() == pytest.approx(expected, abs=2e-5)
    assert scores.std() > 1e-3


def test_the_best_share_is_kept_and_nothing_is_rewritten(finished, tiny_data):
    out, metrics = finished
    scores, keep = _column(out, "scores", "score"), _column(out, "selection", "keep").bool()
    assert metrics["pairs"] == 32
    assert metrics["kept"] == int(keep.sum()) == round(0.6 * 32)
    assert float(scores[keep].min()) == metrics["cut"] > float(scores[~keep].max())
    assert metrics["cosine/kept"] > metrics["cosine/dropped"]
    before, after = manifest.read(tiny_data), manifest.read(str(out))
    assert [s.sha256 for s in after.shards] == [s.sha256 for s in before.shards]
    assert not list(Path(out).glob("*.tar"))
    assert verify(str(out))["columns"] == {"scores": 2, "selection": 2}


def test_the_worst_pairs_are_listed(finished):
    out, _ = finished
    rows = json.loads((out / "worst.json").read_text())
    lowest = _column(out, "scores", "score").sort().values[:20].tolist()
    assert [row["cosine"] for row in rows] == pytest.approx(lowest)
    assert set(rows[0]) == {"uid", "caption", "cosine"}
    assert (out / "scores.png").read_bytes().startswith(b"\x89PNG")


def test_a_threshold_overrules_the_share(tiny_data, tiny_teachers, finished, tmp_path):
    scores = _column(finished[0], "scores", "score").sort().values
    threshold = float(scores[-4] + scores[-5]) / 2
    metrics = _run(tiny_data, tiny_teachers, tmp_path, min_score=threshold)
    assert metrics["kept"] == 4
    assert metrics["cut"] == threshold


def test_all_may_be_kept(tiny_data, tiny_teachers, tmp_path):
    metrics = _run(tiny_data, tiny_teachers, tmp_path, keep_share=1.0)
    assert (metrics["kept"], metrics["cosine/dropped"]) == (32, 0)


def test_a_run_that_keeps_nothing_is_refused(tiny_data, tiny_teachers, tmp_path):
    with pytest.raises(
        DataError, match=r"^filter\.min_score: got 1\.0, no pair scores as high, the best has -?0\.\d+\.$"
    ):
        _run(tiny_data, tiny_teachers, tmp_path, min_score=1.0)
    assert not (tmp_path / "manifest.json").exists()


def test_a_second_run_gives_the_same_bytes(finished, tiny_data, tiny_teachers):
    out, metrics = finished
    before = {p.name: p.read_bytes() for p in Path(out).rglob("*") if p.is_file()}
    assert _run(tiny_data, tiny_teachers, out) == metrics
    assert {p.name: p.read_bytes() for p in Path(out).rglob("*") if p.is_file()} == before


def test_no_such_teacher(tiny_data, tiny_teachers, tmp_path):
    with pytest.raises(
        DataError,
        match=r"^model: no checkpoint at '.*nobody', want a folder with open_clip_config\.json and open_clip_model",
    ):
        _run(tiny_data, tiny_teachers, tmp_path / "out", model="trained:nobody")
    assert not (tmp_path / "out").exists()


def test_off_keeps_every_pair_without_a_model(tiny_data, tmp_path):
    assert _run(tiny_data, "", tmp_path, enabled=False, model="nobody") == {}
    content = manifest.read(str(tmp_path))
    assert not content.columns
    assert [shard.sha256 for shard in content.shards] == [shard.sha256 for shard in manifest.read(tiny_data).shards]


def test_scores_that_are_not_finite_are_refused(tiny_data, tiny_teachers, tmp_path, monkeypatch):
    load = zoo.load

    def spoiled(*args, **options):
        clip = load(*args, **options)
        with torch.no_grad():
            next(p for p in clip.model.visual.parameters() if p.ndim > 1).view(-1)[0] = float("nan")
        return clip

    monkeypatch.setattr(zoo, "load", spoiled)
    with pytest.raises(IntegrityError, match=r"^filter model '.+': \d+ of \d+ embeddings of shard '.+' are not"):
        _run(tiny_data, tiny_teachers, tmp_path / "out")
