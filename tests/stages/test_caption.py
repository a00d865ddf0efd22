"""The caption stage on small pictures: coverage, determinism, resume, fan-out, limits."""

import json
from pathlib import Path

import pytest
import torch

from mobileclip import manifest
from mobileclip.config import Caption
from mobileclip.data.columns import ColumnReader, read_captions
from mobileclip.entry import run_stage
from mobileclip.errors import ConfigError, MobileClipError
from mobileclip.evaluation.captions import fault
from mobileclip.models import zoo
from mobileclip.stages import caption
from mobileclip.tracking.protocol import LogTracker
from tests.stages import shapes

# Random weights write nonsense: what they write is not the point here, that every caption has its place is.
CONFIG = Caption(num_captions=3, max_tokens=8, min_tokens=3, batch_size=8, max_degenerate_share=1.0, score_samples=20)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return shapes.make(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="module")
def captioner(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("captioner"))
    torch.manual_seed(0)
    zoo.save(folder, zoo.create("tiny-coca"), license="MIT", card={})
    return folder


@pytest.fixture(scope="module")
def finished(data, captioner, tmp_path_factory) -> tuple[str, dict[str, float]]:
    out = str(tmp_path_factory.mktemp("caption"))
    return out, caption.run(CONFIG, out=out, tracker=LogTracker(), data=data, captioner=captioner)


def _columns(out: str) -> dict[str, str]:
    return {name: part.sha256 for name, part in manifest.read(out).column("coca").parts.items()}


def test_every_sample_of_the_split_has_its_captions(finished, data):
    out, metrics = finished
    content = manifest.read(out)
    column = content.column("coca")
    assert column.kind == "caption"
    assert column.license == "MIT"
    assert [(a.kind, a.name, a.license) for a in column.attributions] == [("captioner", "coca", "MIT")]
    assert set(column.parts) == {shard.name for shard in content.split("train")}
    assert len(column.parts) > 1
    seen = []
    for shard in content.split("train"):
        rows = read_captions(out, column, shard)
        flags = ColumnReader(out, column, shard).all("degenerate")
        assert flags.dtype == torch.uint8
        assert flags.tolist() == [[int(bool(fault(text))) for text in row] for row in rows]
        assert [len(row) for row in rows] == [3] * shard.samples
        seen += rows
    assert metrics["images"] == len(seen) == 40
    assert metrics["captions"] == 120
    assert len({text for row in seen for text in row}) > 60
    assert [s.sha256 for s in content.shards] == [s.sha256 for s in manifest.read(data).shards]


def test_off_hands_the_dataset_on_without_a_column(data, tmp_path):
    out = str(tmp_path / "off")
    config = CONFIG.model_copy(update={"enabled": False})
    assert caption.run(config, out=out, tracker=LogTracker(), data=data, group=1, num_groups=2) == {}
    assert not (tmp_path / "off").exists()
    assert caption.run(config, out=out, tracker=LogTracker(), data=data, num_groups=2, merge=True) == {}
    assert manifest.read(out) == manifest.read(data).moved(data, out)


def test_report_and_figure(finished):
    out, metrics = finished
    report = json.loads((Path(out) / "quality.json").read_text())
    assert report["metrics"] == metrics
    assert -1 <= metrics["clip_score"] <= 1
    assert sum(report["lengths"].values()) == 120
    assert report["samples"][0]["captions"]
    assert (Path(out) / "lengths.png").read_bytes().startswith(b"\x89PNG")
    assert str(Path(out).parent) not in (Path(out) / "manifest.json").read_text()
    assert json.loads((Path(out) / "timings.json").read_text())["images"] == 40


def test_batch_size_and_order_of_work_change_no_byte(finished, data, captioner, tmp_path):
    out = str(tmp_path / "small")
    config = CONFIG.model_copy(update={"batch_size": 3})
    caption.run(config, out=out, tracker=LogTracker(), data=data, captioner=captioner)
    assert _columns(out) == _columns(finished[0])


def test_groups_and_merge_equal_one_run(finished, data, captioner, tmp_path):
    out = str(tmp_path / "groups")
    inputs = {"out": out, "tracker": LogTracker(), "data": data, "captioner": captioner, "num_groups": 2}
    assert caption.run(CONFIG, **inputs, group=1) == {}
    with pytest.raises(MobileClipError, match="train-00000' is not there yet"):
        caption.run(CONFIG, **inputs, merge=True)
    caption.run(CONFIG, **inputs, group=0)
    metrics = caption.run(CONFIG, **inputs, merge=True)
    assert metrics == finished[1]
    assert _columns(out) == _columns(finished[0])
    assert (Path(out) / "quality.json").read_bytes() == (Path(finished[0]) / "quality.json").read_bytes()


def test_resume_recomputes_only_what_is_missing(finished, data, captioner, tmp_path):
    out = tmp_path / "resume"
    caption.run(CONFIG, out=str(out), tracker=LogTracker(), data=data, captioner=captioner)
    kept, lost = sorted((out / "coca").glob("train-*.json"))[:2]
    before = kept.stat().st_mtime_ns
    lost.unlink()
    next((out / "coca").glob(f"{lost.name.split('.')[0]}-*.safetensors")).unlink()
    (out / "manifest.json").unlink()
    caption.run(CONFIG, out=str(out), tracker=LogTracker(), data=data, captioner=captioner)
    assert kept.stat().st_mtime_ns == before
    assert _columns(str(out)) == _columns(finished[0])


def test_seed_changes_the_captions_and_the_spec(finished, data, captioner, tmp_path):
    out = str(tmp_path / "seed")
    other = CONFIG.model_copy(update={"seed": 1, "score_samples": 0})
    metrics = caption.run(other, out=out, tracker=LogTracker(), data=data, captioner=captioner)
    assert "clip_score" not in metrics
    assert not set(_columns(out).values()) & set(_columns(finished[0]).values())
    assert manifest.read(out).column("coca").spec_sha256 != manifest.read(finished[0]).column("coca").spec_sha256


def test_beam_search_gives_different_captions(data, captioner, tmp_path):
    out = str(tmp_path / "beam")
    config = CONFIG.model_copy(update={"method": "beam", "num_beams": 3, "max_tokens": 6, "score_samples": 0})
    metrics = caption.run(config, out=out, tracker=LogTracker(), data=data, captioner=captioner)
    spec = manifest.read(out).column("coca").spec
    assert spec["num_beams"] == 3
    assert "seed" not in spec
    assert metrics["duplicates/image"] < 0.2  # token sequences all differ, their words nearly


def test_too_many_degenerate_captions_stop_the_stage(data, captioner, tmp_path):
    out = tmp_path / "degenerate"
    # Three tokens leave room for one word: every caption is too short.
    config = CONFIG.model_copy(update={"min_tokens": 1, "max_tokens": 3, "max_degenerate_share": 0.9})
    with pytest.raises(
        MobileClipError, match=r"^caption\.max_degenerate_share: [\d.]+% of 120 captions are empty, short or loop"
    ):
        caption.run(config, out=str(out), tracker=LogTracker(), data=data, captioner=captioner)
    assert not (out / "manifest.json").exists()
    assert json.loads((out / "quality.json").read_text())["degenerate"]


def test_wrong_captioners_are_refused_by_key(data, captioner, tmp_path):
    inputs = {"out": str(tmp_path / "x"), "tracker": LogTracker(), "data": data}
    with pytest.raises(ConfigError, match="there is no input folder with trained models"):
        caption.run(CONFIG, **inputs)
    with pytest.raises(ConfigError, match=r"^caption\.max_tokens: got 99, 'trained' takes at most \d+\.$"):
        caption.run(CONFIG.model_copy(update={"max_tokens": 99}), **inputs, captioner=captioner)
    folder = str(tmp_path / "student")
    zoo.save(folder, zoo.create("tiny-mci"), license="MIT", card={})
    with pytest.raises(ConfigError, match=r"^caption\.model: .* want a CoCa"):
        caption.run(CONFIG, **inputs, captioner=folder)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"min_tokens": 30}, "min_tokens is 30, want less than max_tokens"),
        ({"method": "greedy"}, "num_captions is 5, want 1: greedy"),
        ({"top_p": 0.0}, "caption.top_p: got 0.0"),
        ({"method": "beam", "num_beams": 4}, "num_captions is 5, want at most num_beams"),
        ({"method": "dream"}, "caption.method: got 'dream'"),
    ],
)
def test_wrong_settings_are_refused(data, tmp_path, changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        run_stage("caption", {**Caption().model_dump(), **changes}, out=tmp_path / "x", data=data)
