"""The door: records without place or time, staleness, wrong inputs, groups."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mobileclip import manifest
from mobileclip.config import Filter, Prepare, Reinforce, TeacherRef, Views
from mobileclip.entry import run_stage
from mobileclip.errors import ConfigError, DataError, MobileClipError
from mobileclip.lineage.record import input_digest, is_current
from mobileclip.storage import digest_file

ROOT = Path(__file__).parents[1]
CONFIG = Prepare(shard_samples=16)


@pytest.fixture(autouse=True)
def _no_tracking(monkeypatch):
    monkeypatch.setenv("MOBILECLIP_TRACKING", "off")


def _files(folder) -> dict[str, bytes]:
    """All that equal inputs give equal bytes of: everything but how long it took."""
    files = [p for p in Path(folder).rglob("*") if p.is_file() and not p.name.startswith("timings")]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


@pytest.fixture
def prepared(tiny_source, tmp_path) -> Path:
    run_stage("prepare", CONFIG, out=tmp_path / "prepare", source=tiny_source)
    return tmp_path / "prepare"


class TestRecord:
    def test_config_metrics_and_record_lie_beside_the_output(self, prepared, tiny_source):
        record = json.loads((prepared / "record.json").read_text())
        assert json.loads((prepared / "config.json").read_text()) == CONFIG.model_dump(mode="json")
        assert json.loads((prepared / "metrics.json").read_text())["samples/train"] == 32
        assert record["stage"] == "prepare"
        assert record["inputs"] == {"source": input_digest(str(tiny_source))}
        assert record["files"] == {
            n: digest_file(prepared / n) for n in ("manifest.json", "config.json", "metrics.json")
        }

    def test_holds_no_place_time_or_host(self, prepared, tiny_source, tmp_path):
        shutil.copytree(tiny_source, tmp_path / "elsewhere" / "raw")
        os.utime(tmp_path / "elsewhere" / "raw" / "captions.jsonl", (1, 1))
        out = tmp_path / "elsewhere" / "out"
        run_stage("prepare", CONFIG.model_dump(mode="json"), out=str(out), source=str(tmp_path / "elsewhere" / "raw"))
        assert _files(out) == _files(prepared)

    def test_lists_every_file_where_there_is_no_manifest(self, prepared, tmp_path):
        from mobileclip.config import TrainTeacher

        run_stage("train_teacher", TrainTeacher(), out=tmp_path / "t", data=prepared)
        record = json.loads((tmp_path / "t" / "record.json").read_text())
        assert set(record["files"]) == {"config.json", "metrics.json", "history.jsonl"}
        assert (tmp_path / "t" / "timings.json").exists()


class TestCurrent:
    def _ask(self, out, source, config=CONFIG):
        return is_current("prepare", config, str(out), {"source": str(source)})

    def test_until_something_changes(self, prepared, tiny_source, tmp_path):
        assert self._ask(prepared, tiny_source)
        assert not self._ask(prepared, tiny_source, CONFIG.model_copy(update={"shard_samples": 8}))
        assert not self._ask(tmp_path / "nothing", tiny_source)
        assert not self._ask(prepared, tmp_path / "no source")
        changed = tmp_path / "changed"
        shutil.copytree(tiny_source, changed)
        assert self._ask(prepared, changed)
        (changed / ".DS_Store").write_bytes(b"x")
        assert self._ask(prepared, changed)
        (changed / "captions.jsonl").write_text((changed / "captions.jsonl").read_text().replace("red", "rad", 1))
        assert not self._ask(prepared, changed)

    @pytest.mark.parametrize("name", ["manifest.json", "config.json", "metrics.json"])
    def test_not_when_its_files_changed_or_went(self, prepared, tiny_source, name):
        whole = (prepared / name).read_bytes()
        (prepared / name).write_bytes(whole + b" ")
        assert not self._ask(prepared, tiny_source)
        (prepared / name).unlink()
        assert not self._ask(prepared, tiny_source)
        (prepared / name).write_bytes(whole)
        assert self._ask(prepared, tiny_source)

    @pytest.mark.parametrize("text", ["", "{}", "[]", '{"stage": "prepare"}'])
    def test_a_damaged_record_means_not_done(self, prepared, tiny_source, text):
        (prepared / "record.json").write_text(text)
        assert not self._ask(prepared, tiny_source)

    def test_an_old_record_does_not_survive_a_run_that_failed_half_way(self, prepared, tiny_source, tmp_path):
        """Else a return to the old section would take mixed files for its own."""
        broken = tmp_path / "broken"
        shutil.copytree(tiny_source, broken)
        (broken / "captions.jsonl").write_text('{"image": "gone.png", "caption": "x"}\n')
        with pytest.raises(DataError):
            run_stage("prepare", CONFIG, out=prepared, source=broken)
        assert not self._ask(prepared, tiny_source)

    def test_bad_input_leaves_a_finished_stage_alone(self, prepared, tiny_source):
        before = _files(prepared)
        with pytest.raises(ConfigError):
            run_stage("prepare", {"shards": 4}, out=prepared, source=tiny_source)
        with pytest.raises(DataError):
            run_stage("prepare", CONFIG, out=prepared, source="/nowhere")
        assert _files(prepared) == before
        assert self._ask(prepared, tiny_source)


class TestInputs:
    @pytest.mark.parametrize(
        ("stage", "inputs", "error", "sentence"),
        [
            ("nothing", {}, ConfigError, "stage: got 'nothing', want one of prepare, "),
            ("prepare", {}, ConfigError, "prepare: input 'source' is missing, want a folder or URI."),
            ("prepare", {"source": ""}, ConfigError, "prepare: input 'source' is missing, want a folder or URI."),
            ("prepare", {"data": "x"}, ConfigError, "prepare: unknown input 'data', want source."),
            ("prepare", {"source": "/x"}, DataError, "prepare: input 'source' is '/x', there is no such file or fold"),
        ],
    )  # fmt: skip
    def test_wrong_ones_get_a_sentence_and_write_nothing(self, tmp_path, stage, inputs, error, sentence):
        with pytest.raises(error) as caught:
            run_stage(stage, CONFIG, out=tmp_path / "out", **inputs)
        assert str(caught.value).startswith(sentence)
        assert not (tmp_path / "out").exists()

    def test_digests(self, prepared, tiny_source):
        assert input_digest(str(prepared)) == digest_file(prepared / "record.json")
        (prepared / "record.json").unlink()
        assert input_digest(str(prepared)) == digest_file(prepared / "manifest.json")
        assert input_digest(str(tiny_source / "captions.jsonl")) == digest_file(tiny_source / "captions.jsonl")
        with pytest.raises(
            DataError, match=r"^data: nothing at '/nowhere', want a folder or the output of an earlier stage\.$"
        ):
            input_digest("/nowhere")


REINFORCE = Reinforce(
    views=Views(num_views=1), teachers=[TeacherRef(name="first", model="trained:first")], captions=[], batch_size=16
)


class TestGroups:
    def test_only_the_merge_completes_the_stage_and_its_record_is_that_of_one_run(
        self, prepared, tiny_teachers, tmp_path
    ):
        inputs = {"data": prepared, "teachers": tiny_teachers}
        for group in range(2):
            assert (
                run_stage(
                    "reinforce", REINFORCE, out=tmp_path / "groups", options={"group": group, "num_groups": 2}, **inputs
                )
                == {}
            )
        assert not (tmp_path / "groups" / "record.json").exists()
        run_stage("reinforce", REINFORCE, out=tmp_path / "groups", options={"num_groups": 2, "merge": True}, **inputs)
        run_stage("reinforce", REINFORCE, out=tmp_path / "whole", **inputs)
        assert _files(tmp_path / "groups") == _files(tmp_path / "whole")

    def test_wrong_ones_get_a_sentence(self, prepared, tiny_teachers, tmp_path):
        for stage, options, match in (
            ("reinforce", {"group": 2, "num_groups": 2}, r"^reinforce: group is 2, want 0 to 1\.$"),
            ("reinforce", {"group": -1, "num_groups": 2}, r"^reinforce: group is -1, want 0 to 1\.$"),
            (
                "filter",
                {"group": 0, "num_groups": 2},
                r"^filter: does not fan out over groups, only caption and reinforce do\.$",
            ),
        ):
            config = REINFORCE if stage == "reinforce" else Filter()
            with pytest.raises(ConfigError, match=match):
                run_stage(stage, config, out=tmp_path / "out", options=options, data=prepared, teachers=tiny_teachers)
        assert not (tmp_path / "out").exists()


KILLED = """
import sys
from tests.test_entry import REINFORCE
from mobileclip.entry import run_stage
print("ready", flush=True)
run_stage("reinforce", REINFORCE, out=sys.argv[1], data=sys.argv[2], teachers=sys.argv[3])
"""


def test_kill_minus_nine_then_again_gives_the_same_files(prepared, tiny_teachers, tmp_path):
    """The process is killed as soon as it wrote something; the next run goes on from there."""
    out = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(out), str(prepared), tiny_teachers],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    while not out.exists() and process.poll() is None:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "record.json").exists()
    run_stage("reinforce", REINFORCE, out=out, data=prepared, teachers=tiny_teachers)
    run_stage("reinforce", REINFORCE, out=tmp_path / "whole", data=prepared, teachers=tiny_teachers)
    assert {n: d for n, d in _files(out).items() if not n.endswith(".tmp")} == _files(tmp_path / "whole")


def test_a_damaged_shard_stops_a_stage_with_bad_input(prepared, tiny_teachers, tmp_path):
    shard = prepared / manifest.read(str(prepared)).shards[0].path
    shard.write_bytes(shard.read_bytes()[:3000])
    with pytest.raises(MobileClipError, match=r"^shard 'train-00000': ") as caught:
        run_stage("filter", Filter(model="trained:first"), out=tmp_path / "out", data=prepared, teachers=tiny_teachers)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "out" / "manifest.json").exists()
