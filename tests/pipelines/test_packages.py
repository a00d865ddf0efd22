"""Compiled packages: strictly valid, deterministic, wired as the chain's table says, within the platform's limits."""

import difflib
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

from components.images import IMAGE
from mobileclip.chain import CHAIN
from mobileclip.config import STAGES
from mobileclip.kubeflow import launch
from pipelines import arguments, defaults, resources, sizes
from pipelines.catalog import PIPELINES
from pipelines.compile import compile_manifests, compile_package
from pipelines.release import EARLIER
from pipelines.resources import PROFILES, TABLE
from pipelines.wiring import FAN_OUT
from tests.pipelines import golden

ROOT = Path(__file__).parents[2]
CASES = sorted({(name, "gpu") for name in PIPELINES} | {("train", profile) for profile in PROFILES} | set(golden.CASES))


@pytest.fixture(scope="session")
def packages(texts):
    """Every package of every profile, as parsed documents."""
    return {case: list(yaml.load_all(text, yaml.CSafeLoader)) for case, text in texts.items()}


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """Every package of every profile."""
    sections, folder = defaults.read(), tmp_path_factory.mktemp("packages")
    return {
        (name, profile): compile_package(name, sections, folder / f"{name}.{profile}.yaml", profile=profile).read_text()
        for name, profile in CASES
    }


def chain_of(document):
    """The DAG inside the exit handler."""
    return document["components"]["comp-exit-handler-1"]["dag"]["tasks"]


def stage_edges(document):
    """Edges between stages, as (input, from, to)."""
    tasks, edges = chain_of(document), set()
    for task in tasks.values():
        for key, value in task.get("inputs", {}).get("artifacts", {}).items():
            if key != "parts" and task["taskInfo"]["name"] in STAGES:
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


@pytest.mark.parametrize(("name", "profile"), [("train", "gpu"), ("reinforce", "gpu"), ("train", "small")])
def test_stages_that_fan_out_are_one_task_that_starts_a_job(packages, name, profile):
    document = packages[name, profile][0]
    assert not any("parameterIterator" in task for task in chain_of(document).values())
    for stage in FAN_OUT:
        (task,) = (task for task in chain_of(document).values() if task["taskInfo"]["name"] == stage)
        component = document["components"][task["componentRef"]["name"]]
        pods = task["inputs"]["parameters"]["pods"]["runtimeValue"]["constant"]
        assert pods == {"image": IMAGE, "parallel": 32, "retries": TABLE[profile][stage].retries}
        assert task["inputs"]["parameters"]["groups"] == {"componentInputParameter": "groups"} or task["inputs"][
            "parameters"
        ]["groups"]["componentInputParameter"].endswith("groups")
        assert {row["field"] for row in component["taskConfigPassthroughs"]} >= {"RESOURCES", "KUBERNETES_VOLUMES"}


def test_a_small_profile_asks_for_less_than_it_may_use(packages):
    document = packages["train", "small"][0]
    asked = [e["container"]["resources"] for e in document["deploymentSpec"]["executors"].values()]
    for row in asked:
        assert row["resourceCpuRequest"] in {"250m", "50m"}
        assert row["resourceCpuLimit"] in {"4", "1"}
        assert "accelerator" not in row


@pytest.fixture(scope="module")
def loop(tmp_path_factory):
    """The package for accounts that may start no jobs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resources, "FAN_OUT", "ParallelFor")
        path = tmp_path_factory.mktemp("loop") / "train.yaml"
        return yaml.safe_load_all(compile_package("train", defaults.read(), path, profile="cpu").read_text())


def test_stages_that_fan_out_loop_over_groups_and_merge_where_jobs_are_not_allowed(loop):
    document = next(loop)
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
        assert len(found) == {"train": 11, "reinforce": 3, "release": 3, "sweep": 3}[name]
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
        assert set(rows) == {*STAGES, "reuse", "compare", "finish"}, profile


def test_only_what_must_run_each_time_is_not_cached(packages):
    for name in PIPELINES:
        document = packages[name, "gpu"][0]
        assert not document["root"]["dag"]["tasks"]["finish"]["cachingOptions"]
        for task in chain_of(document).values():
            reused = "earlier run" in task["taskInfo"]["name"]
            loops = "iteratorPolicy" in task
            assert loops or bool(task["cachingOptions"]) != reused


def test_training_on_several_nodes_is_a_launcher_whose_settings_go_to_the_nodes(packages):
    document, platform = packages["train", "multi-node"]
    (name,) = (name for name, task in chain_of(document).items() if task["taskInfo"]["name"] == "distill")
    component = document["components"][chain_of(document)[name]["componentRef"]["name"]]
    passed = {row["field"]: row.get("applyToTask", False) for row in component["taskConfigPassthroughs"]}
    assert passed == {
        "RESOURCES": False, "KUBERNETES_TOLERATIONS": False, "KUBERNETES_NODE_SELECTOR": False,
        "KUBERNETES_AFFINITY": False, "ENV": True, "KUBERNETES_VOLUMES": True,
    }  # fmt: skip
    nodes = chain_of(document)[name]["inputs"]["parameters"]["nodes"]["runtimeValue"]["constant"]
    assert launch.read_nodes(nodes) == launch.Nodes(count=2, processes=8, image=IMAGE)
    resources = document["deploymentSpec"]["executors"][component["executorLabel"]]["container"]["resources"]
    assert resources["accelerator"]["resourceCount"] == "8"
    settings = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][component["executorLabel"]]
    fields = {field["name"]: field["fieldPath"] for field in settings["fieldPathAsEnv"]}
    assert fields[launch.WORKFLOW] == "metadata.labels['workflows.argoproj.io/workflow']"


@pytest.mark.parametrize(("name", "profile"), golden.CASES)
def test_packages_are_those_that_were_reviewed(texts, name, profile):
    """After a change that is wanted: `python -m tests.pipelines.golden`, and look at the diff."""
    found = golden.render(texts[name, profile]).splitlines()
    wanted = golden.path(name, profile).read_text().splitlines()
    assert list(difflib.unified_diff(wanted, found, "reviewed", "compiled", lineterm="", n=1)) == []


def test_manifests_hold_the_packages(texts, tmp_path):
    path = compile_manifests("reinforce", defaults.read(), tmp_path / "m.yaml", profile="gpu", namespace="team")
    pipeline, version = yaml.safe_load_all(path.read_text())
    assert (pipeline["kind"], version["kind"]) == ("Pipeline", "PipelineVersion")
    for part in (pipeline, version):
        assert part["apiVersion"] == "pipelines.kubeflow.org/v2beta1"
        assert part["metadata"]["namespace"] == "team"
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", part["metadata"]["name"])
    assert version["spec"]["pipelineName"] == pipeline["metadata"]["name"] == "mobileclip-reinforce"
    held = [version["spec"]["pipelineSpec"], version["spec"]["platformSpec"]]
    assert held == list(yaml.safe_load_all(texts["reinforce", "gpu"]))


def test_sizes_are_printed_and_do_not_depend_on_the_number_of_shards(packages, texts, capsys):
    """The package is small, and 400 groups of 65 536 shards fit a run's parameters."""
    rows = {shards: sizes.measure("train", profile="gpu", shards=shards, groups=400) for shards in (400, 65_536)}
    assert rows[65_536] == replace(rows[400], shards=164)
    assert rows[400].package == len(texts["train", "gpu"])
    assert rows[400].parameters < arguments.MAX_BYTES
    assert sizes.main(["--shards", "65536", "--groups", "16"]) == 0
    assert sizes.main(["--shards", "65536", "--groups", "1024"]) == 0
    said = capsys.readouterr().out
    assert "65536 shards in 16 groups" in said
    assert all(name in said for name in PIPELINES)
    assert sizes.main(["--groups", "99999"]) == 2
    assert sizes.measure("train", profile="gpu", shards=65_536, groups=1024).workflow == rows[400].workflow

    for documents in packages.values():
        assert len(yaml.safe_dump_all(documents)) < 200_000
    most = arguments.groups(400)
    assert len(str(most)) < arguments.MAX_BYTES / 2
    assert sum(len(range(int(g.split("/")[0]), 65_536, 400)) for g in most) == 65_536


@pytest.mark.parametrize(("groups", "pods", "workflow"), [(4, 52, 358_000), (64, 412, 1_040_000)])
def test_sizes_are_those_that_a_real_backend_showed(groups, pods, workflow, monkeypatch):
    """KFP 2.17 with Argo 4.0: 52 pods with 4 groups; 64 groups met the limit of 1 MiB in the second loop."""
    monkeypatch.setattr(resources, "FAN_OUT", "ParallelFor")
    found = sizes.measure("train", profile="cpu", shards=1280, groups=groups)
    assert found.pods == pods
    # 11 stages and `finish` with a driver each, four graphs, three pods per group for caption and reinforce.
    assert found.pods == 2 * (len(CHAIN) + 1) + 4 + 2 * 3 * groups
    assert found.workflow == pytest.approx(workflow, rel=0.15)


def test_two_processes_write_the_same_bytes(tmp_path):
    for folder, seed in (("a", "1"), ("b", "2")):
        subprocess.run(
            [sys.executable, "-m", "pipelines.compile", "--out", str(tmp_path / folder)],
            cwd=ROOT, check=True, capture_output=True, env={**os.environ, "PYTHONHASHSEED": seed},
        )  # fmt: skip
    for name in PIPELINES:
        assert (tmp_path / "a" / f"{name}.yaml").read_bytes() == (tmp_path / "b" / f"{name}.yaml").read_bytes()
