"""Compiled packages: strictly valid, deterministic, wired as the chain's table says, within the platform's limits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

from components.images import IMAGE
from mobileclip.chain import CHAIN
from mobileclip.config import STAGES
from pipelines import defaults
from pipelines.catalog import PIPELINES
from pipelines.compile import compile_package
from pipelines.release import EARLIER
from pipelines.resources import PROFILES, TABLE
from pipelines.wiring import FAN_OUT

ROOT = Path(__file__).parents[2]
CASES = [(name, profile) for name in PIPELINES for profile in PROFILES]


@pytest.fixture(scope="session")
def packages(tmp_path_factory):
    """Every package of every profile, as parsed documents."""
    sections, folder = defaults.read(), tmp_path_factory.mktemp("packages")
    found = {}
    for name, profile in CASES:
        path = compile_package(name, sections, folder / profile / f"{name}.yaml", profile=profile)
        found[name, profile] = list(yaml.safe_load_all(path.read_text()))
    return found


def chain_of(document):
    """The DAG inside the exit handler."""
    return document["components"]["comp-exit-handler-1"]["dag"]["tasks"]


def stage_edges(document):
    """Edges between stages, as (input, from, to)."""
    tasks, edges = chain_of(document), set()
    for name, task in tasks.items():
        for key, value in task.get("inputs", {}).get("artifacts", {}).items():
            if key != "parts" and name.replace("-", "_") in STAGES:
                producer = value["taskOutputArtifact"]["producerTask"]
                edges.add((key, tasks[producer]["taskInfo"]["name"], task["taskInfo"]["name"]))
    return edges


@pytest.mark.parametrize(("name", "profile"), CASES)
def test_strict_parse(packages, name, profile):
    documents = packages[name, profile]
    json_format.ParseDict(documents[0], pipeline_spec_pb2.PipelineSpec())
    assert len(documents) == (1 if profile == "local" else 2)
    for document in documents[1:]:
        platform = json_format.ParseDict(document, pipeline_spec_pb2.PlatformSpec())
        executors = platform.platforms["kubernetes"].deployment_spec.executors
        assert set(executors) == set(documents[0]["deploymentSpec"]["executors"])
        for settings in executors.values():
            plain = json_format.MessageToDict(settings)
            json_format.ParseDict(plain, kubernetes_executor_config_pb2.KubernetesExecutorConfig())


def test_train_has_the_edges_of_the_chain(packages):
    wanted = {(key, source, row.stage) for row in CHAIN for key, source in row.inputs.items()}
    for profile in PROFILES:
        assert stage_edges(packages["train", profile][0]) == wanted


def test_reinforce_takes_models_by_name(packages):
    found = stage_edges(packages["reinforce", "gpu"][0])
    assert found == {("data", "prepare", "caption"), ("data", "caption", "reinforce")}


def test_release_starts_from_an_earlier_run(packages):
    wanted = {
        (key, f"{source} of an earlier run" if source in EARLIER else source, row.stage)
        for row in CHAIN
        for key, source in row.inputs.items()
        if row.stage in {"evaluate", "export", "promote"}
    }
    assert stage_edges(packages["release", "gpu"][0]) == wanted


@pytest.mark.parametrize(("name", "profile"), [("train", "gpu"), ("reinforce", "cpu")])
def test_stages_that_fan_out_loop_over_groups_and_merge(packages, name, profile):
    document = packages[name, profile][0]
    tasks = chain_of(document)
    for stage in FAN_OUT:
        producer = tasks[stage]["inputs"]["artifacts"]["parts"]["taskOutputArtifact"]["producerTask"]
        loop = tasks[producer]
        assert loop["parameterIterator"]["items"] == {"inputParameter": "pipelinechannel--groups"}
        inner = document["components"][loop["componentRef"]["name"]]["dag"]["tasks"]
        assert list(inner) == [f"{stage}-group"]


def test_one_image_and_nothing_installed(packages):
    for documents in packages.values():
        for executor in documents[0]["deploymentSpec"]["executors"].values():
            assert executor["container"]["image"] == IMAGE
            assert "pip install" not in " ".join(executor["container"]["command"])


def test_parameters_are_the_sections_of_params_yaml(packages):
    sections = defaults.read()
    for name in PIPELINES:
        parameters = packages[name, "gpu"][0]["root"]["inputDefinitions"]["parameters"]
        found = {stage: parameters[stage]["defaultValue"] for stage in sections if stage in parameters}
        assert found == {stage: sections[stage] for stage in found}
        assert len(found) == {"train": 11, "reinforce": 3, "release": 3}[name]
        assert all(value.get("description") for value in parameters.values())


def test_resources_come_from_the_table(packages):
    document, platform = packages["train", "gpu"]
    distill = document["deploymentSpec"]["executors"]["exec-distill"]["container"]["resources"]
    assert distill["accelerator"]["resourceType"] == "nvidia.com/gpu"
    assert "accelerator" not in document["deploymentSpec"]["executors"]["exec-calibrate"]["container"]["resources"]
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert executors["exec-distill"]["emptyDirMounts"][0]["mountPath"] == "/dev/shm"
    for settings in executors.values():
        assert settings["pvcMount"][0]["mountPath"] == "/data"
        fields = {field["name"]: field["fieldPath"] for field in settings["fieldPathAsEnv"]}
        assert fields["MOBILECLIP_PARENT_KEY"] == "metadata.labels['pipeline/runid']"
    for profile, rows in TABLE.items():
        assert set(rows) == {*STAGES, "reuse", "finish"}, profile


def test_only_what_must_run_each_time_is_not_cached(packages):
    for name in PIPELINES:
        document = packages[name, "gpu"][0]
        assert not document["root"]["dag"]["tasks"]["finish"]["cachingOptions"]
        for task in chain_of(document).values():
            reused = "earlier run" in task["taskInfo"]["name"]
            loops = "iteratorPolicy" in task
            assert loops or bool(task["cachingOptions"]) != reused


def test_sizes_do_not_depend_on_the_number_of_shards(packages, tmp_path):
    """The package is small, and 400 groups of 65 536 shards fit a run's parameters."""
    from pipelines import arguments

    for documents in packages.values():
        assert len(yaml.safe_dump_all(documents)) < 200_000
    most = arguments.groups(400)
    assert len(str(most)) < arguments.MAX_BYTES / 2
    assert sum(len(range(int(g.split("/")[0]), 65_536, 400)) for g in most) == 65_536


def test_two_processes_write_the_same_bytes(tmp_path):
    for folder, seed in (("a", "1"), ("b", "2")):
        subprocess.run(
            [sys.executable, "-m", "pipelines.compile", "--out", str(tmp_path / folder)],
            cwd=ROOT, check=True, capture_output=True, env={**os.environ, "PYTHONHASHSEED": seed},
        )  # fmt: skip
    for name in PIPELINES:
        assert (tmp_path / "a" / f"{name}.yaml").read_bytes() == (tmp_path / "b" / f"{name}.yaml").read_bytes()
