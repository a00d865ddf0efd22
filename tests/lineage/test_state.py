"""The state of a chain's stages and the reasons: keys, inputs, code, damage; and what a root remembers of its run."""

import json
import shutil
from pathlib import Path

import pytest

from mobileclip.chain import CHAIN
from mobileclip.config import Params, Prepare, TrainTeacher
from mobileclip.entry import run_stage
from mobileclip.lineage import state

PARAMS = Params(prepare=Prepare(shard_samples=16))


@pytest.fixture(scope="module")
def finished(tiny_source, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("root")
    patch = pytest.MonkeyPatch()
    patch.setenv("MOBILECLIP_TRACKING", "off")
    run_stage("prepare", PARAMS.prepare, out=root / "prepare", source=tiny_source)
    patch.undo()
    return root


@pytest.fixture
def root(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "root")


def _first(root: Path, source: Path, params: Params = PARAMS) -> state.State:
    return state.chain_states(params, str(root), source=str(source))[0]


def test_a_fresh_result_is_current_and_the_rest_is_missing(root, tiny_source):
    states = state.chain_states(PARAMS, str(root), source=str(tiny_source))
    assert [s.stage for s in states] == [row.stage for row in CHAIN]
    assert [s.kind for s in states] == ["current"] + ["missing"] * 10


def test_changed_keys_are_named_with_both_values(root, tiny_source):
    changed = Params(prepare=Prepare(shard_samples=7, near_duplicates=True))
    assert _first(root, tiny_source, changed) == state.State(
        "prepare", "changed", ("prepare.near_duplicates: false -> true", "prepare.shard_samples: 16 -> 7")
    )


def test_another_input_is_named(root, tiny_source, tmp_path):
    other = shutil.copytree(tiny_source, tmp_path / "other")
    assert _first(root, other).kind == "current"  # content decides, not the place
    (other / "captions.jsonl").write_bytes((other / "captions.jsonl").read_bytes() + b"\n")
    assert _first(root, other).why == ("input 'source' has other content",)


def test_changed_code_is_named_by_its_files(root, tiny_source):
    path = root / "prepare" / "record.json"
    record = json.loads(path.read_text())
    record["code_files"]["mobileclip/data/shards.py"] = "0" * 64
    record["code"] = "0" * 64
    path.write_text(json.dumps(record))
    assert _first(root, tiny_source).why == ("code: mobileclip/data/shards.py",)


def test_a_damaged_file_is_named(root, tiny_source):
    path = root / "prepare" / "metrics.json"
    path.write_bytes(path.read_bytes() + b" ")
    assert _first(root, tiny_source).why == ("metrics.json is damaged or missing",)


def test_what_reads_a_changed_stage_waits_for_it(root, tiny_source, monkeypatch):
    monkeypatch.setenv("MOBILECLIP_TRACKING", "off")
    none = {"train_teacher": TrainTeacher(teachers=[])}
    run_stage("train_teacher", none["train_teacher"], out=root / "train_teacher", data=root / "prepare")
    changed = Params(prepare=Prepare(shard_samples=7), **none)
    found = {s.stage: s for s in state.chain_states(changed, str(root), source=str(tiny_source))}
    assert found["train_teacher"] == state.State("train_teacher", "waits", ("prepare",))
    assert str(found["train_teacher"]) == "runs after prepare"
    assert found["caption"].kind == "missing"


def test_a_root_remembers_its_run(tmp_path):
    assert state.read_run(str(tmp_path)) is None
    state.write_run(str(tmp_path), PARAMS, source="images", towers="")
    assert state.read_run(str(tmp_path)) == (PARAMS, "images", "")
