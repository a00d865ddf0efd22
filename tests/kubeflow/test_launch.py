"""Stages on several processes: what a job is made of, and real processes on this machine."""

import json
from dataclasses import replace

import pytest
from kfp import dsl

from mobileclip import entry
from mobileclip.errors import ConfigError, MobileClipError
from mobileclip.kubeflow import launch
from mobileclip.kubeflow import run as kubeflow_run
from mobileclip.kubeflow import torchrun_worker as node
from mobileclip.kubeflow.jobs import RUN_LABEL, outcome, render
from mobileclip.kubeflow.launch import Nodes
from mobileclip.lineage import code
from tests.tiny_chain import params

NODES = Nodes(count=2, processes=8, image="registry/mobileclip@sha256:1")


def make(**settings):
    return launch.job("distill", "{}", NODES, settings)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.setenv("MOBILECLIP_TRACKING", "off")
    for name in ("KFP_RUN_ID", "MOBILECLIP_PARENT_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_equal_work_has_an_equal_name_and_other_work_another():
    job = make(env=[{"name": "A", "value": "1"}])
    assert job.name == make(env=[{"name": "A", "value": "1"}]).name
    assert job.name.startswith("distill-")
    assert len(job.name) <= 63
    others = [
        make(env=[{"name": "A", "value": "2"}]),
        replace(job, command=("torchrun", "-m", "mobileclip.kubeflow.torchrun_worker", "{ }")),
        replace(job, image="registry/mobileclip@sha256:2"),
        replace(job, nodes=3),
        replace(job, kind="PyTorchJob"),
    ]
    assert len({job.name, *(other.name for other in others)}) == 6
    assert replace(job, labels={"team": "x"}).name == job.name


def test_nodes_get_what_the_task_was_given_and_the_run_they_belong_to(monkeypatch):
    monkeypatch.setenv("KFP_RUN_ID", "run-1")
    monkeypatch.setenv("MOBILECLIP_PARENT_KEY", "run-1")
    label = {"name": "KFP_RUN_ID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['pipeline/runid']"}}}
    job = make(env=[{"name": "A", "value": "1"}, label], resources={"limits": {"cpu": "4"}}, affinity=None)
    body = render(job, owner={"kind": "Workflow", "name": "w", "uid": "u", "apiVersion": "argoproj.io/v1alpha1"})
    assert body["metadata"]["labels"][RUN_LABEL] == "run-1"
    assert body["metadata"]["ownerReferences"][0]["name"] == "w"
    trainer = body["spec"]["trainer"]
    assert trainer["env"] == [
        {"name": "A", "value": "1"},
        {"name": "MOBILECLIP_PARENT_KEY", "value": "run-1"},
        {"name": "KFP_RUN_ID", "value": "run-1"},
    ]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 8)
    assert trainer["resourcesPerNode"] == {"limits": {"cpu": "4"}}
    assert "activeDeadlineSeconds" not in body["spec"]


def test_kubeflows_empty_task_config_is_this_machine():
    empty = dsl.TaskConfig()
    assert not launch.job("distill", "{}", NODES, vars(empty)).resources


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"count": 2, "processes": 8}, "nodes.image: missing"),
        ({"count": 2, "processes": 8, "image": "i", "gpus": 1}, "nodes.gpus: unknown key"),
        ({"count": 0, "processes": 8, "image": "i"}, "nodes.count: got 0"),
        ({"count": 2, "processes": 8, "image": "i", "kind": "MPIJob"}, "nodes.kind: got 'MPIJob'"),
    ],
)
def test_wrong_nodes_are_named(given, sentence):
    with pytest.raises(ConfigError, match=f"^{sentence}"):
        launch.read_nodes(given)


def test_kubeflow_brings_whole_numbers_as_floats():
    given = {"count": 2.0, "processes": 8.0, "image": NODES.image}
    assert launch.read_nodes(given) == NODES
    assert isinstance(launch.read_nodes(given).count, int)


@pytest.mark.parametrize(
    ("conditions", "state"),
    [
        ([], "running"),
        ([{"type": "Created", "status": "True"}, {"type": "Running", "status": "True"}], "running"),
        ([{"type": "Suspended", "status": "True"}], "suspended"),
        ([{"type": "Suspended", "status": "False"}], "running"),
        ([{"type": "Complete", "status": "True"}], "succeeded"),
        ([{"type": "Running", "status": "False"}, {"type": "Succeeded", "status": "True"}], "succeeded"),
        ([{"type": "Suspended", "status": "True"}, {"type": "Failed", "status": "True"}], "failed"),
    ],
)
def test_conditions_say_how_a_job_stands(conditions, state):
    assert outcome({"conditions": conditions})[0] == state


def test_processes_of_this_machine_leave_the_record_of_any_other_door(tiny_source, tmp_path):
    config = params()["prepare"]
    where = kubeflow_run.Run(str(tmp_path / "root"), code.package_digest())
    one = Nodes(count=1, processes=1, image="none")
    done = launch.run("prepare", config, where, nodes=one, task=dsl.TaskConfig(), source=str(tiny_source))
    entry.run_stage("prepare", config, out=str(tmp_path / "plain"), source=str(tiny_source))
    record = (tmp_path / "root/prepare/record.json").read_bytes()
    assert record == (tmp_path / "plain/record.json").read_bytes()
    assert done.metrics["samples/train"] == 32
    written = tmp_path / "root/prepare/record.json"
    before = written.stat().st_mtime_ns
    launch.run("prepare", config, where, nodes=one, source=str(tiny_source))
    assert written.stat().st_mtime_ns == before


def test_only_the_first_of_several_processes_describes_what_all_have_done(tiny_source, tmp_path, monkeypatch):
    where, config = kubeflow_run.Run(str(tmp_path / "root")), params()["prepare"]
    monkeypatch.setenv("RANK", "1")
    kubeflow_run.take_part("prepare", config, where, source=str(tiny_source))
    assert not (tmp_path / "root/prepare/record.json").exists()
    monkeypatch.setenv("RANK", "0")
    kubeflow_run.take_part("prepare", config, where, source=str(tiny_source))
    record = tmp_path / "root/prepare/record.json"
    before = record.stat().st_mtime_ns
    monkeypatch.setenv("RANK", "1")
    kubeflow_run.take_part("prepare", {**config, "shard_samples": 16}, where, source=str(tiny_source))
    assert record.stat().st_mtime_ns == before


def test_a_process_that_fails_fails_the_stage(tmp_path):
    source = tmp_path / "empty"
    source.mkdir()
    where = kubeflow_run.Run(str(tmp_path / "root"))
    one = Nodes(count=1, processes=1, image="none")
    with pytest.raises(MobileClipError, match=r"^prepare: a process ended with exit code 1"):
        launch.run("prepare", params()["prepare"], where, nodes=one, source=str(source))


@pytest.mark.parametrize("argument", ["", "[]", "{}", json.dumps({"stage": "prepare"})])
def test_a_process_refuses_what_is_no_work(argument, capsys):
    assert node.main([argument]) == 2
    assert capsys.readouterr().err.startswith("error: work: want")
