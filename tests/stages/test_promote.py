"""Promotion against a real MLflow server, with real students, evaluations and programs."""

import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from mobileclip import config, entry, manifest
from mobileclip.data import images
from mobileclip.data.preprocess import image_tensor
from mobileclip.data.shards import read_samples
from mobileclip.errors import DataError
from mobileclip.lineage import record as records
from mobileclip.models import zoo
from mobileclip.promotion import log, registry
from mobileclip.tracking import runs as tracking
from tests import mlflow_server, students
from tests.evaluation import chromium

ROOT = Path(__file__).parents[2]
METRIC = "student/zero_shot/group/top1"


@pytest.fixture(autouse=True)
def _clean(monkeypatch, tmp_path):
    mlflow_server.forget_settings(monkeypatch)
    mlflow_server.start()
    students.world()
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    monkeypatch.setenv("MOBILECLIP_ACTOR", "tester")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url())


def promote(name: str, which: str, out: Path, *, why: str = "", evaluation: Path | None = None, **gate) -> dict:
    inputs = students.world().folders(which)
    if evaluation is not None:
        inputs["evaluation"] = evaluation
    section = config.Promote(model_name=name, why=why, gate=config.Gate(metric=METRIC, **gate))
    metrics = entry.run_stage("promote", section, out=out, **inputs)
    verdicts = {v["gate"]: v for v in json.loads((out / "verdicts.json").read_text())}
    return {"metrics": metrics, "verdicts": verdicts, "registry": json.loads((out / "registry.json").read_text())}


@pytest.mark.usefixtures("server")
class TestPromotion:
    def test_promotes_refuses_rolls_back_and_remembers(self, tmp_path):
        first = promote("story", "bad", tmp_path / "1", why="the first one")
        assert first["metrics"]["promoted"] == 1.0
        better = promote("story", "good", tmp_path / "2", lineage="files", commercial_use=True, minimum=0.5)
        assert better["metrics"]["promoted"] == 1.0
        assert all(verdict["passed"] for verdict in better["verdicts"].values())
        where = registry.connect("story")
        assert where.aliases() == {"champion": 2, "challenger": 2}

        worse = promote("story", "bad", tmp_path / "3", minimum=0.5, maximums={"export/onnx/text/float32/bytes": 1e6})
        assert worse["metrics"]["promoted"] == 0.0
        failed = {gate: verdict["reason"] for gate, verdict in worse["verdicts"].items() if not verdict["passed"]}
        assert set(failed) == {
            f"minimum {METRIC}", "champion", "maximum export/onnx/text/float32/bytes",
        }  # fmt: skip
        page = (tmp_path / "3" / "release.html").read_text()
        assert "Run report of story, version 1: refused<" in page
        assert "Version 1 of story was refused: 3 of" in page
        assert "Version 2, the champion, and this student on the same 48 samples" in page
        assert '<span class="verdict worse">worse</span>' in page
        assert page.index('id="decision"') < page.index('id="programs"') < page.index('id="results"')
        assert "version 2: all gates passed<" in (tmp_path / "2" / "release.html").read_text()
        _look_at(tmp_path / "3" / "release.html", tmp_path)
        runs = where.client.search_runs([tracking.experiment_id(where.client)], "tags.`mobileclip.stage` = 'promote'")
        kept = {file.path for file in where.client.list_artifacts(runs[0].info.run_id)}
        assert kept >= {"verdicts.json", "model_card.md", "release.html"}
        assert "release.html" not in json.loads((tmp_path / "3" / "record.json").read_text())["files"]
        assert "Against version 2 on the same 48 samples" in failed["champion"]
        assert failed["champion"].endswith("worse.")
        assert where.aliases() == {"champion": 2, "challenger": 1}
        assert "REFUSED: got 0.125, want >= 0.5" in where.version(1).tags[f"gate.minimum {METRIC}"]

        back = log.rollback("story", why="it fails on trains")
        assert (back["version"], back["previous"], back["outcome"]) == (1, 2, "in force")
        assert where.alias("champion") == 1
        with pytest.raises(DataError, match="has had 1 champion"):
            log.rollback("story", why="once more")
        with pytest.raises(DataError, match="reason"):
            log.rollback("story", why=" ")

        rows = log.history("story")
        assert [(r["kind"], r["version"], r["previous"]) for r in rows] == [
            ("promoted", 1, 0), ("promoted", 2, 1), ("refused", 1, 2), ("rolled back", 1, 2),
        ]  # fmt: skip
        assert [r["why"] for r in rows[::3]] == ["the first one", "it fails on trains"]
        assert {r["by"] for r in rows} == {"tester"}
        assert rows[0]["evidence"] == where.version(1).tags["evidence"]

    def test_the_same_evidence_is_one_version_and_one_event(self, tmp_path):
        for turn in range(2):
            again = promote("twice", "good", tmp_path / str(turn))
            assert again["metrics"]["promoted"] == 1.0
            assert again["registry"]["version"] == 1
        assert len(log.history("twice")) == 1
        first, second = ((tmp_path / str(turn) / "lineage.json").read_bytes() for turn in range(2))
        assert first == second

    def test_a_version_tells_what_it_is_made_of(self, tmp_path):
        promote("facts", "good", tmp_path / "out")
        version = registry.connect("facts").version("champion")
        inputs = students.world().folders("good")
        assert version.tags["record.student"] == records.input_digest(str(inputs["student"]))
        assert version.tags["record.programs"] == records.input_digest(str(inputs["programs"]))
        assert version.tags["dataset"] == manifest.read(str(students.world().data)).digest()
        assert version.tags["license.terms"] == "permissive"
        explained = log.explain("facts")
        assert {row["gate"] for row in explained["verdicts"]} >= {"champion", "export proof", "lineage"}
        assert [row["kind"] for row in explained["events"]] == ["promoted"]
        with pytest.raises(DataError, match="no version '9'"):
            log.explain("facts", 9)
        with pytest.raises(DataError, match="no promotion history"):
            log.history("nobody")

    def test_refuses_an_evaluation_of_another_student(self, tmp_path):
        other = students.world().folders("good")["evaluation"]
        found = promote("mixed", "bad", tmp_path / "out", evaluation=other)
        assert found["metrics"]["promoted"] == 0.0
        assert not found["verdicts"]["same student"]["passed"]

    def test_refuses_a_result_that_was_edited(self, tmp_path):
        edited = tmp_path / "evaluate"
        shutil.copytree(students.world().folders("good")["evaluation"], edited)
        numbers = json.loads((edited / "metrics.json").read_text())
        (edited / "metrics.json").write_text(json.dumps({**numbers, METRIC: 0.99}))
        found = promote("edited", "good", tmp_path / "out", evaluation=edited)
        assert found["metrics"]["promoted"] == 0.0
        assert "'metrics.json' has another sha256" in found["verdicts"]["lineage"]["reason"]

    def test_a_folder_of_another_stage_is_one_sentence(self, tmp_path):
        with pytest.raises(DataError, match=r"results\.json"):
            promote("wrong", "good", tmp_path / "out", evaluation=students.world().folders("good")["programs"])


@pytest.mark.usefixtures("server")
class TestConcurrency:
    def test_of_eight_promotions_one_wins(self, tmp_path, monkeypatch):
        who = ("good", "bad") * 4
        for which in who[:2]:  # registers two versions, promotes none
            refused = promote("race", which, tmp_path / f"refused-{which}", minimum=2.0)
            assert refused["registry"]["outcome"] == "noted"
        start, read, first = threading.Barrier(8), log.read, threading.local()

        def read_together(where):
            found = read(where)
            if not getattr(first, "done", False):
                first.done = True
                start.wait(60)  # all eight know the same history before the first one decides
            return found

        monkeypatch.setattr(log, "read", read_together)
        monkeypatch.setenv("MOBILECLIP_TRACKING", "off")
        with ThreadPoolExecutor(8) as pool:  # `map` raises what a thread raised
            results = list(pool.map(lambda index: promote("race", who[index], tmp_path / f"out-{index}"), range(8)))
        winners = [result for result in results if result["metrics"]["promoted"]]
        assert len(winners) == 1
        for loser in results:
            assert loser["verdicts"].get("concurrency", {}).get("passed", True) == (loser is winners[0])
        monkeypatch.setattr(log, "read", read)
        rows = [row for row in log.history("race") if row["kind"] == "promoted"]
        assert [row["outcome"] for row in rows].count("in force") == 1
        assert [row["outcome"] for row in rows].count("void") == 7
        assert registry.connect("race").alias("champion") == winners[0]["registry"]["version"]

    def test_a_crash_before_the_alias_is_made_good(self, tmp_path):
        promote("crash", "bad", tmp_path / "1")
        where = registry.connect("crash")
        base = log.read(where)
        number = where.create("models:/crash/1", {"evidence": "x"})
        entry_, after = log.append(where, base, {"kind": log.PROMOTED, "version": number, "why": "then it crashed"})
        assert entry_.outcome == log.IN_FORCE
        assert after.champion == number
        assert where.alias("champion") == 1
        assert log.settle(where) == number
        assert where.alias("champion") == number

    def test_a_rollback_that_comes_too_late_is_void(self, tmp_path):
        promote("late", "bad", tmp_path / "1")
        promote("late", "good", tmp_path / "2")
        where = registry.connect("late")
        stale = log.read(where)
        log.rollback("late", why="first")
        lost, _ = log.append(where, stale, {"kind": log.ROLLED_BACK, "version": 1, "why": "second"})
        assert lost.outcome == log.VOID
        assert log.read(where).champions == [1]


@pytest.mark.usefixtures("server")
class TestHistoryIsAppendOnly:
    def test_a_changed_and_a_deleted_event_show(self, tmp_path):
        for turn, which in enumerate(("bad", "good", "bad")):
            promote("audit", which, tmp_path / str(turn))
        where = registry.connect("audit")
        assert log.read(where).problems == []
        ledger = registry.connect("audit" + log.LEDGER)
        text = ledger.version(1).tags["event"]
        ledger.tag(1, {"event": text.replace("tester", "nobody")})
        assert log.read(where).problems == [
            "an event before 2 was changed after event 2 was written",
            "an event before 3 was changed after event 3 was written",
        ]
        ledger.tag(1, {"event": text})
        assert log.read(where).problems == []
        ledger.client.delete_model_version(ledger.name, "2")
        assert "event 2 is missing" in log.read(where).problems


class TestPyfunc:
    @pytest.mark.usefixtures("server")
    def test_loads_without_this_package_and_embeds_like_the_student(self, tmp_path):
        for name in ("uv.lock", "pyproject.toml", ".python-version"):
            (tmp_path / name).write_text("[project]\nname = 'mine'\n")  # of no business of the model
        promote("serve", "good", tmp_path / "out")
        world = students.world()
        samples = list(read_samples(str(world.data), manifest.read(str(world.data)), "test"))[:9]
        clip = zoo.load("trained:student", trained=str(world.folders("good")["student"]))
        pixels = [images.resize(images.decode(s.image), clip.preprocess) for s in samples]
        wanted = {
            "image": clip.encode_image(image_tensor(torch.stack(pixels), clip.preprocess)).tolist(),
            "text": clip.encode_text([s.captions[0] for s in samples]).tolist(),
        }
        (tmp_path / "pictures").mkdir()
        for index, sample in enumerate(samples):
            (tmp_path / "pictures" / f"{index}.png").write_bytes(sample.image)
        (tmp_path / "texts.json").write_text(json.dumps([s.captions[0] for s in samples]))
        got = _predict_elsewhere(tmp_path)
        for kind in ("image", "text"):
            assert torch.allclose(torch.tensor(got[kind]), torch.tensor(wanted[kind]), atol=1e-5)
        for form in ("base64", "array"):
            assert torch.allclose(torch.tensor(got[form]), torch.tensor(wanted["image"]), atol=1e-5)
        assert got["mixed"] == [["image"], ["text"]]
        assert {"MLmodel", "requirements.txt"} <= set(got["files"])
        assert not {"uv.lock", "pyproject.toml"} & set(got["files"])
        assert [len(row) for row in got["probabilities"]] == [8] * 9
        assert all(abs(sum(row) - 1) < 1e-5 for row in got["probabilities"])
        best = [list(students.COLORS)[max(range(8), key=row.__getitem__)] for row in got["probabilities"]]
        hits = [answer == sample.metadata["group"] for answer, sample in zip(best, samples, strict=True)]
        assert sum(hits) >= 7

    def test_promotes_into_a_sqlite_file_too(self, tmp_path):
        found = promote("local", "good", tmp_path / "out")
        assert found["metrics"]["promoted"] == 1.0
        assert (tmp_path / "mlflow.db").is_file()
        assert registry.connect("local").aliases() == {"champion": 1, "challenger": 1}


def _look_at(page: Path, folder: Path) -> None:
    """The page in a browser, on a desk and on a phone, light and dark."""
    for width in (1280, 390):
        found = chromium.measure(page, folder, width=width)
        assert found["scroll"] == found["client"]  # nothing sticks out to the side
        assert found["images"] == found["decoded"]
        assert found["scripts"] == 0
    for dark, (low, high) in {False: (240, 255), True: (0, 40)}.items():
        pixels, console = chromium.screenshot(page, folder, width=390, height=1600, dark=dark)
        assert console == []
        assert low <= pixels[:, :4].mean() <= high
        assert (pixels.reshape(8, 200, 390, 3).astype(float).std(axis=(1, 2)).max(axis=1) > 2).all()


def _predict_elsewhere(folder: Path) -> dict:
    """Predictions of a process in which this package cannot be imported."""
    program = """
import base64, io, json, pathlib, sys
sys.modules["mobileclip"] = None
import mlflow, numpy, pandas
from PIL import Image
from tests_colors import COLORS
model = mlflow.pyfunc.load_model("models:/serve@champion")
pictures = [p.read_bytes() for p in sorted(pathlib.Path("pictures").iterdir())]
texts = json.loads(pathlib.Path("texts.json").read_text())
frame = pandas.DataFrame({"image": pictures, "text": texts})
both = model.predict(frame)
encoded = [base64.b64encode(p).decode() for p in pictures]
arrays = [numpy.asarray(Image.open(io.BytesIO(p)).convert("RGB")) for p in pictures]
mixed = model.predict(pandas.DataFrame({"image": [pictures[0], None], "text": [None, "a red square"]}))
json.dump({
    "image": list(both["image_embedding"]),
    "text": list(both["text_embedding"]),
    "base64": list(model.predict(pandas.DataFrame({"image": encoded}))["image_embedding"]),
    "array": list(model.predict(pandas.DataFrame({"image": arrays}))["image_embedding"]),
    "mixed": [[k for k, v in (("image", a), ("text", b)) if v is not None]
              for a, b in zip(mixed["image_embedding"], mixed["text_embedding"])],
    "files": [file.path.rpartition("/")[2] for file in mlflow.artifacts.list_artifacts("models:/serve@champion")],
    "probabilities": list(model.predict(frame[["image"]], params={
        "labels": COLORS, "template": "a {} square"})["probabilities"]),
}, open("got.json", "w"))
"""
    (folder / "tests_colors.py").write_text(f"COLORS = {list(students.COLORS)}")
    environment = {**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "PYTHONPATH": str(folder)}
    subprocess.run([sys.executable, "-c", program], cwd=folder, env=environment, check=True)
    return json.loads((folder / "got.json").read_text())
