"""Components: one per stage after the chain's table, thin, documented, and honest about what they hand over."""

import ast
import importlib
import inspect
import json

import pytest
from kfp import dsl

from components.images import IMAGE
from mobileclip.chain import CHAIN, step
from mobileclip.config import Prepare
from mobileclip.errors import ConfigError, IntegrityError, MobileClipError
from mobileclip.kubeflow.run import GENERATION
from mobileclip.lineage import code
from mobileclip.lineage import record as records
from tests.tiny_chain import params

COMMON = {"config", "root", "code", "generation"}
NAMES = [(row.stage, row.stage) for row in CHAIN] + [
    ("caption", "caption_group"), ("reinforce", "reinforce_group"), ("reuse", "reuse"), ("finish", "finish"),
    ("distill", "distill_nodes"), ("distill", "distill_variant"), ("compare", "compare"),
]  # fmt: skip


def load(module, name):
    return getattr(importlib.import_module(f"components.{module}"), name)


@pytest.fixture(autouse=True)
def no_tracking(monkeypatch):
    monkeypatch.setenv("MOBILECLIP_TRACKING", "off")


@pytest.mark.parametrize("stage", [row.stage for row in CHAIN])
def test_inputs_are_those_of_the_chain(stage):
    spec = load(stage, stage).component_spec
    row = step(stage)
    digests = {f"{name}_digest" for name in row.external}
    assert set(spec.inputs) - {"parts"} == COMMON | set(row.names) | digests
    artifacts = {name for name, value in spec.inputs.items() if "@" in value.type}
    assert artifacts - {"parts"} == set(row.inputs)
    assert {name for name in artifacts - {"parts"} if spec.inputs[name].optional} == set(row.optional) & artifacts
    assert {"out", "metrics"} <= set(spec.outputs)


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_thin_documented_and_in_the_projects_image(module, name):
    component = load(module, name)
    function = ast.parse(inspect.getsource(component.python_func)).body[0]
    body = function.body[1:]
    assert body[-1].end_lineno - body[0].lineno < 10
    container = component.component_spec.implementation.container
    assert container.image == IMAGE
    assert "pip install" not in " ".join([*container.command, *container.args])
    specs = {**(component.component_spec.inputs or {}), **(component.component_spec.outputs or {})}
    assert set(specs) == set(inspect.signature(component.python_func).parameters)
    assert [key for key, value in specs.items() if not value.description] == []


@pytest.fixture
def prepared(tiny_source, tmp_path):
    """Calls `prepare` as Kubeflow does; returns a function of its arguments, and the artifacts it fills."""
    (tmp_path / "artifacts").mkdir()

    def run(**changed):
        out = dsl.Dataset(uri=str(tmp_path / "artifacts" / "out"))
        metrics = dsl.Metrics(uri=str(tmp_path / "artifacts" / "metrics"))
        given = {
            "config": params()["prepare"], "root": str(tmp_path / "root"), "code": "", "generation": "",
            "source": str(tiny_source), "source_digest": "",
        }  # fmt: skip
        load("prepare", "prepare").python_func(**{**given, **changed}, out=out, metrics=metrics)
        return out, metrics

    return run


def test_hands_over_a_reference_and_metrics(prepared, tmp_path, tiny_source):
    out, metrics = prepared(code=code.package_digest(), source_digest=records.input_digest(str(tiny_source)))
    reference = json.loads((tmp_path / "artifacts" / "out").read_text())
    assert reference == {"uri": str(tmp_path / "root/prepare"), "digest": records.input_digest(reference["uri"])}
    assert out.metadata == {**reference, "stage": "prepare"}
    written = json.loads((tmp_path / "root/prepare/metrics.json").read_text())
    assert json.loads((tmp_path / "artifacts" / "metrics").read_text()) == written
    assert metrics.metadata == written
    assert written["samples/train"] == 32


def test_what_is_current_is_not_run_again_and_a_change_is(prepared, tmp_path):
    prepared()
    record = tmp_path / "root/prepare/record.json"
    first = record.stat().st_mtime_ns
    prepared()
    assert record.stat().st_mtime_ns == first
    prepared(config={**params()["prepare"], "shard_samples": 16})
    assert record.stat().st_mtime_ns > first


def test_numbers_come_back_from_kubeflow_as_floats(prepared, tmp_path):
    config = {key: float(v) if type(v) is int else v for key, v in params()["prepare"].items()}
    prepared()
    before = (tmp_path / "root/prepare/record.json").read_bytes()
    prepared(config=config)
    assert (tmp_path / "root/prepare/record.json").read_bytes() == before


def test_a_section_may_hold_only_what_differs(prepared, tmp_path):
    prepared(config=Prepare().model_dump(mode="json"))
    whole = (tmp_path / "root/prepare/record.json").read_bytes()
    prepared(config={})
    assert (tmp_path / "root/prepare/record.json").read_bytes() == whole


def test_refuses_what_the_run_was_not_submitted_for(prepared, tmp_path):
    with pytest.raises(ConfigError, match=r"^prepare\.shards: unknown key"):
        prepared(config={**params()["prepare"], "shards": 3})
    with pytest.raises(ConfigError, match=r"^code: the run was submitted for library code 0000"):
        prepared(code="0" * 64)
    assert not (tmp_path / "root" / "prepare").exists()  # only the notes of why
    with pytest.raises(IntegrityError, match=r"^prepare: input 'source' has digest .* changed since"):
        prepared(source_digest="0" * 64)


def test_refuses_a_root_that_another_run_has_taken_over(prepared, tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / GENERATION).write_text(json.dumps({"id": "later", "arguments": "x"}))
    with pytest.raises(MobileClipError, match=r"^root: .* was taken over by a later submission"):
        prepared(generation="earlier")
    prepared(generation="later")


def test_reuse_hands_over_an_earlier_result_only(prepared, tmp_path):
    prepared()
    root = str(tmp_path / "root")
    digest = records.input_digest(f"{root}/prepare")
    out = dsl.Artifact(uri=str(tmp_path / "artifacts" / "earlier"))
    reuse = load("reuse", "reuse").python_func
    reuse(stage="prepare", root=root, digest=digest, out=out)
    assert out.metadata == {"uri": f"{root}/prepare", "digest": digest, "stage": "prepare"}
    with pytest.raises(IntegrityError, match=r"^prepare: .* changed since"):
        reuse(stage="prepare", root=root, digest="0" * 64, out=out)
    with pytest.raises(MobileClipError, match=r"nothing finished at .*distill"):
        reuse(stage="distill", root=root, digest="", out=out)
