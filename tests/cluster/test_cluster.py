"""Training jobs on a real API server: started once, followed, found again, cancelled; with the least rights."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from kubernetes import client

from mobileclip.errors import ConfigError, MobileClipError
from mobileclip.kubeflow import cluster, fan_out
from mobileclip.kubeflow import jobs as cluster_jobs
from mobileclip.kubeflow.jobs import PATCH_FORMS, Job
from tests.cluster import schemas
from tests.cluster.jobs import SETTINGS, make_job

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture
def place(server, namespace):
    """The test's namespace, as a launcher sees it that may do all."""
    return cluster.connect(kubeconfig=server["kubeconfig"], namespace=namespace, poll=0.1)


@pytest.fixture(scope="module")
def pytorch(operator):
    operator.install(schemas.pytorch_job())


@pytest.fixture
def lines(caplog):
    """What was logged so far, as a function."""
    caplog.set_level(logging.INFO, logger="mobileclip")
    return lambda: [record.getMessage() for record in caplog.records]


@contextlib.contextmanager
def at_work(work, *arguments):
    """Run a function beside the test; its error is raised at the end."""
    errors = []

    def call():
        try:
            work(*arguments)
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    yield errors
    thread.join(timeout=120)
    assert not thread.is_alive()


def wait_until(condition, *, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def test_says_what_a_cluster_lacks(place, operator):
    with pytest.raises(
        ConfigError, match=r"^cluster: no pytorchjobs\.kubeflow\.org here, install the training operator"
    ):
        cluster.start(place, make_job("PyTorchJob"))


def test_a_server_keeps_a_train_job_whole(place, operator, namespace):
    job = make_job()
    assert cluster.start(place, job) == "created"
    held = operator.job(namespace, job)
    assert held["spec"] == cluster_jobs.render(job)["spec"]
    assert held["metadata"]["annotations"] == {cluster_jobs.DIGEST: job.digest}
    names = [entry["name"] for entry in held["spec"]["trainer"]["env"]]
    assert names == ["PLAIN", "KEY"]  # the pod's own labels are not those of the nodes' pods


def test_a_server_keeps_a_pytorch_job_whole(place, operator, namespace, pytorch):
    job = make_job("PyTorchJob")
    assert cluster.start(place, job) == "created"
    spec = operator.job(namespace, job)["spec"]
    assert spec == cluster_jobs.render(job)["spec"]
    assert {name: row["replicas"] for name, row in spec["pytorchReplicaSpecs"].items()} == {"Master": 1, "Worker": 1}


@pytest.mark.parametrize("form", PATCH_FORMS[1:])
def test_an_older_trainer_gets_its_own_form(place, operator, namespace, form):
    operator.install(schemas.train_job(form))
    try:
        job = make_job(deadline=0)
        cluster.start(place, job)
        spec = operator.job(namespace, job)["spec"]
        assert spec == cluster_jobs.render(job, form=form)["spec"]
        assert "persistentVolumeClaim" in json.dumps(spec[form])
    finally:
        operator.install(schemas.train_job())


def test_a_trainer_that_would_drop_the_volumes_is_refused(place, operator, namespace):
    operator.install(schemas.train_job("somethingNew"))
    try:
        with pytest.raises(ConfigError, match=r"^cluster: this server's TrainJob has none of runtimePatches"):
            cluster.start(place, make_job(deadline=0))
    finally:
        operator.install(schemas.train_job())
    assert operator.jobs(namespace, make_job()) == []


def test_starting_twice_is_starting_once(place, operator, namespace):
    job = make_job()
    assert [cluster.start(place, job) for _ in range(3)] == ["created", "found", "found"]
    assert len(operator.jobs(namespace, job)) == 1
    other = make_job(nodes=4)
    assert cluster.start(place, other) == "created"
    assert other.name != job.name


def test_a_job_of_that_name_from_elsewhere_is_left_alone(place, operator, namespace):
    job = make_job()
    cluster.start(place, job)
    operator.objects.patch_namespaced_custom_object(
        job.api.group, job.api.version, namespace, job.api.plural, job.name,
        {"metadata": {"annotations": {cluster_jobs.DIGEST: "other"}}},
    )  # fmt: skip
    with pytest.raises(MobileClipError, match="is there that this version did not make"):
        cluster.start(place, job)


def test_shows_the_first_nodes_log_as_it_grows_and_why_pods_wait(place, operator, namespace, lines):
    job = make_job()
    with at_work(cluster.run, place, job) as errors:
        wait_until(lambda: operator.job(namespace, job))
        first, second = (operator.add_pod(namespace, job, index) for index in (0, 1))
        waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
        operator.set_pod(namespace, second, "Pending", waiting)
        wait_until(lambda: f"[{second}] waits: ImagePullBackOff: no such image" in lines())
        for name in (first, second):
            operator.run_pod(namespace, name)
        operator.say(second, "of no interest")
        for step in range(3):
            operator.say(first, f"step {step}", f"loss {step}")
            wait_until(lambda step=step: f"[{first}] loss {step}" in lines())
        operator.say(first, "the end")
        operator.end(namespace, job, "Complete", "AllJobsCompleted")
    assert errors == []
    shown = [line for line in lines() if line.startswith(f"[{first}]")]
    wanted = [f"{word} {step}" for step in range(3) for word in ("step", "loss")]
    assert shown == [f"[{first}] {text}" for text in [*wanted, "the end"]]
    assert not any("of no interest" in line for line in lines())


def test_a_failure_is_told_with_the_last_lines_of_the_pod_that_failed_first(place, operator, namespace):
    job = make_job()
    cluster.start(place, job)
    names = [operator.add_pod(namespace, job, index) for index in (0, 1)]
    operator.say(names[0], "waiting for peers")
    operator.say(names[1], *(f"line {index}" for index in range(50)), "RuntimeError: CUDA out of memory")
    for name, at, code in ((names[0], "10", 1), (names[1], "05", 137)):
        ended = {"exitCode": code, "reason": "Error", "finishedAt": f"2026-01-01T00:00:{at}Z"}
        operator.set_pod(namespace, name, "Failed", {"terminated": ended})
    operator.end(namespace, job, "Failed", "FailedJobs", "jobset failed")
    with pytest.raises(MobileClipError) as caught:
        cluster.follow(place, job)
    said = str(caught.value)
    assert said.startswith(f"distill: TrainJob '{job.name}' failed (FailedJobs: jobset failed). Pod '{names[1]}' ended")
    assert "exit code 137 (Error)" in said
    assert said.endswith("RuntimeError: CUDA out of memory")
    assert len(said.splitlines()) == 1 + 20


def test_a_job_that_has_failed_is_started_anew(place, operator, namespace):
    job = make_job()
    cluster.start(place, job)
    before = operator.job(namespace, job)["metadata"]["uid"]
    operator.end(namespace, job, "Failed")
    with at_work(cluster.start, place, job) as errors:
        wait_until(lambda: operator.job(namespace, job)["metadata"].get("deletionTimestamp"))
        operator.collect(namespace, job)
    assert errors == []
    assert operator.job(namespace, job)["metadata"]["uid"] != before


def test_a_job_that_someone_deletes_is_no_success(place, operator, namespace):
    job = make_job()
    cluster.start(place, job)
    cluster.cancel(place, job)
    operator.collect(namespace, job)
    cluster.cancel(place, job)  # a second time there is nothing to do
    with pytest.raises(MobileClipError, match="was deleted by someone else"):
        cluster.follow(place, job)


LAUNCHER = """
import logging, sys
from mobileclip import cluster
from tests.cluster.jobs import SETTINGS, make_job
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
config, namespace, workflow = sys.argv[1:]
cluster.run(cluster.connect(kubeconfig=config, namespace=namespace, workflow=workflow, poll=0.1), make_job())
"""


@contextlib.contextmanager
def launcher(server, namespace, log, workflow=""):
    """A launcher as a process of its own."""
    command = [sys.executable, "-c", LAUNCHER, server["kubeconfig"], namespace, workflow]
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def test_a_restarted_launcher_goes_on_with_the_job(server, operator, namespace, tmp_path):
    job, logs = make_job(), [tmp_path / "first.log", tmp_path / "second.log"]
    with launcher(server, namespace, logs[0]) as process:
        uid = wait_until(lambda: operator.job(namespace, job))["metadata"]["uid"]
        name = operator.add_pod(namespace, job)
        operator.run_pod(namespace, name)
        operator.say(name, "step 1")
        wait_until(lambda: "step 1" in logs[0].read_text())
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    with launcher(server, namespace, logs[1]) as process:
        wait_until(lambda: "going on with it" in logs[1].read_text())
        operator.say(name, "step 2")
        wait_until(lambda: "step 2" in logs[1].read_text())
        operator.end(namespace, job, "Complete")
        assert process.wait(timeout=120) == 0, logs[1].read_text()
    (held,) = operator.jobs(namespace, job)
    assert held["metadata"]["uid"] == uid


@pytest.mark.parametrize("spec", [{"activeDeadlineSeconds": 0}, {"shutdown": "Terminate"}])
def test_the_job_goes_with_the_run_and_only_with_it(server, operator, namespace, tmp_path, spec):
    """SIGTERM alone (a drained node) leaves the job; once Kubeflow or Argo has terminated the run, it is deleted."""
    job, log = make_job(), tmp_path / "launcher.log"
    flows = ("argoproj.io", "v1alpha1", namespace, "workflows")
    body = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": {"name": "run-1"}, "spec": {}}
    uid = operator.objects.create_namespaced_custom_object(*flows, body)["metadata"]["uid"]
    with launcher(server, namespace, log, "run-1") as process:
        held = wait_until(lambda: operator.job(namespace, job))
        assert held["metadata"]["ownerReferences"] == [
            {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "run-1", "uid": uid}
        ]
        wait_until(lambda: "running" in log.read_text())
        process.terminate()
        assert process.wait(timeout=120) == 128 + signal.SIGTERM
    assert "deletionTimestamp" not in operator.job(namespace, job)["metadata"]
    with launcher(server, namespace, log, "run-1") as process:
        wait_until(lambda: "running" in log.read_text())
        operator.objects.patch_namespaced_custom_object(*flows, "run-1", {"spec": spec})
        process.terminate()
        assert process.wait(timeout=120) == 128 + signal.SIGTERM
    assert "deletionTimestamp" in operator.job(namespace, job)["metadata"]
    assert "the run was cancelled" in log.read_text()


@pytest.fixture
def limited(operator, namespace):
    """A launcher with the rights of deploy/rbac.yaml."""
    for body in yaml.safe_load_all((ROOT / "deploy/rbac.yaml").read_text()):
        for subject in body.get("subjects", []):
            subject["namespace"] = namespace
        operator.apply([body], namespace)
    return cluster.Cluster(operator.token(namespace, "pipeline-runner"), namespace, poll=0.1)


def test_the_rights_of_the_manifest_are_enough(limited, operator, namespace, pytorch, lines):
    for kind in ("TrainJob", "PyTorchJob"):
        job = make_job(kind, stage=f"distill-{kind.lower()}")
        with at_work(cluster.run, limited, job) as errors:
            wait_until(lambda job=job: operator.job(namespace, job))
            name = operator.add_pod(namespace, job)
            operator.run_pod(namespace, name)
            operator.say(name, "step 1")
            wait_until(lambda name=name: f"[{name}] step 1" in lines())
            operator.end(namespace, job, "Succeeded" if kind == "PyTorchJob" else "Complete")
        assert errors == []
        cluster.cancel(limited, job)
    assert cluster.owner(replace(limited, workflow="none")) is None


def test_and_are_the_least(limited, operator, namespace):
    """Whatever the launcher does not do, its account may not do."""
    job = make_job()
    cluster.start(limited, job)
    name = operator.add_pod(namespace, job)
    core, place = limited.core, (job.api.group, job.api.version, namespace, job.api.plural)
    elsewhere = operator.add_namespace(f"{namespace}-other")
    refused = [
        lambda: core.list_namespaced_secret(namespace),
        lambda: core.list_namespaced_config_map(namespace),
        lambda: core.create_namespaced_pod(namespace, {"metadata": {"name": "p"}, "spec": {"containers": []}}),
        lambda: core.delete_namespaced_pod(name, namespace),
        lambda: core.connect_get_namespaced_pod_exec(name, namespace, command="sh"),
        core.list_node,
        lambda: limited.objects.list_namespaced_custom_object(*place),
        lambda: limited.objects.patch_namespaced_custom_object(*place, job.name, {"spec": {"suspend": True}}),
        lambda: limited.objects.delete_namespaced_custom_object("argoproj.io", "v1alpha1", namespace, "workflows", "w"),
        lambda: core.list_namespaced_pod(elsewhere),
        lambda: limited.objects.get_namespaced_custom_object(*place[:2], elsewhere, place[3], job.name),
    ]
    for attempt in refused:
        with pytest.raises(client.ApiException) as caught:
            attempt()
        assert caught.value.status == 403


def test_an_account_without_rights_is_told_what_to_apply(operator, namespace):
    place = cluster.Cluster(operator.token(namespace, "default"), namespace)
    with pytest.raises(ConfigError, match=r"may not use trainjobs\.trainer\.kubeflow\.org .* apply deploy/rbac\.yaml"):
        cluster.start(place, make_job())


def test_a_wrong_job_is_refused_in_the_servers_words(place):
    with pytest.raises(MobileClipError, match=r"^cluster: the server refuses TrainJob .*numNodes"):
        cluster.start(place, make_job(nodes="two"))


def test_without_a_cluster_there_is_one_sentence(tmp_path):
    assert "KUBERNETES_SERVICE_HOST" not in os.environ
    with pytest.raises(ConfigError, match=r"^cluster: no credentials of a Kubernetes cluster here"):
        cluster.connect()
    assert isinstance(make_job(), Job)


def test_a_server_without_indexed_jobs_is_told_apart_and_nothing_is_left_there(place, operator, namespace):
    """1.20 drops the completion mode without a word: the groups would all compute index 0."""
    job = fan_out.job("caption", "{}", 3, {"image": "registry/m@sha256:1", "parallel": 2, "retries": 1}, SETTINGS)
    with pytest.raises(ConfigError, match=r"^cluster: this server has no Indexed Jobs"):
        cluster.start(place, job)
    assert operator.jobs(namespace, job) == []


def test_the_real_server_takes_the_job_of_a_launcher_with_the_least_rights(place, operator, namespace):
    """What 1.20 does not know is dropped; all else passes its validation."""
    job = fan_out.job("caption", "{}", 3, {"image": "registry/m@sha256:1", "parallel": 2, "retries": 1}, SETTINGS)
    body = cluster_jobs.render(job, form="completionMode")
    held = client.BatchV1Api(operator.api).create_namespaced_job(namespace, body)
    assert (held.spec.completions, held.spec.parallelism, held.spec.backoff_limit) == (3, 2, 3)
    (container,) = held.spec.template.spec.containers
    assert container.resources.limits["nvidia.com/gpu"] == "8"
    assert held.spec.template.spec.security_context.run_as_non_root
    cluster.cancel(place, job)
