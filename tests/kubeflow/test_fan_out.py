"""A stage's groups as one Indexed Job: the object, and the launcher against a stand-in of the Job controller."""

import json
import logging
import os
import subprocess
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from kfp import dsl
from kubernetes import client

from mobileclip.errors import ConfigError, MobileClipError
from mobileclip.kubeflow import cluster, fan_out, group_worker, jobs, journal
from mobileclip.kubeflow import run as kubeflow_run
from mobileclip.kubeflow.jobs import INDEX_FORMS, RUN_LABEL, render
from tests.cluster.jobs import SETTINGS
from tests.tiny_chain import params

PODS = {"image": "registry/mobileclip@sha256:1", "parallel": 8.0, "retries": 2.0}
OWNER = {"kind": "Workflow", "name": "w", "uid": "u", "apiVersion": "argoproj.io/v1alpha1"}


def make(count=3, **changed):
    return replace(fan_out.job("caption", "{}", count, PODS, SETTINGS), **changed)


def test_one_index_a_group_with_what_the_task_was_given(monkeypatch):
    monkeypatch.setenv("KFP_RUN_ID", "run-1")
    body = render(make(64), owner=OWNER)
    assert body["metadata"]["ownerReferences"] == [OWNER]
    assert body["metadata"]["labels"][RUN_LABEL] == "run-1"
    spec = body["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 64, 8)
    assert spec["backoffLimitPerIndex"] == 2
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["nodeSelector"] == {"pool": "gpu"}
    (container,) = pod["containers"]
    assert container["resources"] == SETTINGS["resources"]
    assert {"name": "KFP_RUN_ID", "value": "run-1"} in container["env"]
    assert container["command"][:4] == ["python", "-m", "mobileclip.kubeflow.group_worker", "64"]
    assert render(make(4, parallel=0))["spec"]["parallelism"] == 4


@pytest.mark.parametrize("form", INDEX_FORMS)
def test_the_clients_own_model_takes_every_field(form):
    """Kubernetes' models refuse fields that they do not know, and wrong types of lists."""
    body = render(make(5), form=form)
    api = client.ApiClient()
    response = type("Response", (), {"data": json.dumps(body)})
    read = api.deserialize(response, "V1Job")
    assert api.sanitize_for_serialization(read) == body


def test_evictions_are_not_counted_and_bad_input_ends_the_job_where_the_server_can():
    rules = render(make())["spec"]["podFailurePolicy"]["rules"]
    assert rules[0] == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert rules[1]["onExitCodes"]["values"] == [ConfigError.exit_code]
    older = render(make(5), form="completionMode")["spec"]
    assert older["backoffLimit"] == 10
    assert not {"podFailurePolicy", "backoffLimitPerIndex"} & set(older)


def test_progress_is_told_in_groups():
    job = make(64)
    assert jobs.progress(job, {"succeeded": 37, "failed": 2}) == "37 of 64 groups, 2 retried"
    assert jobs.progress(job, {}) == "0 of 64 groups"
    assert jobs.progress(job, {"succeeded": 3, "failed": 3, "failedIndexes": "7"}).endswith("groups 7 lost")


@pytest.mark.parametrize(("groups", "count"), [(["all/1024"], 1024), (["0/2", "1/2"], 2), (["0/1"], 1)])
def test_groups_are_counted(groups, count):
    assert kubeflow_run.count_groups(groups) == count


@pytest.mark.parametrize("groups", [["0/2"], ["all/0"], ["all/x"], []])
def test_wrong_groups_are_refused(groups):
    with pytest.raises(ConfigError, match=r"^groups: got"):
        kubeflow_run.count_groups(groups)


class Controller:
    """A stand-in of API server and Job controller: it runs each index's command as a process, with its retries."""

    def __init__(self, *, drops=(), fails=()):
        self.jobs, self.drops, self.fails = {}, drops, dict(fails)
        self.created, self.tried, self.logs = 0, {}, {}
        self.gate = threading.Event()
        self.gate.set()

    def create(self, body, *, dry):
        for name in self.drops:
            body["spec"].pop(name, None)
        if not dry:
            self.created += 1
            body["status"] = {}
            self.jobs[body["metadata"]["name"]] = body
            threading.Thread(target=self._work, args=(body,), daemon=True).start()
        return body

    def _work(self, body):
        self.gate.wait(60)
        spec, status = body["spec"], {"succeeded": 0, "failed": 0}
        for index in range(spec["completions"]):
            if not self._index(body["metadata"]["name"], spec, index, status):
                lost = {"failedIndexes": str(index)}
                condition = {"type": "Failed", "status": "True", "reason": "FailedIndexes", "message": "an index"}
                body["status"] = {**status, **lost, "conditions": [condition]}
                return
            status["succeeded"] += 1
            body["status"] = dict(status)
        body["status"] = {**status, "conditions": [{"type": "Complete", "status": "True"}]}

    def _index(self, job, spec, index, status):
        for attempt in range(spec.get("backoffLimitPerIndex", 0) + 1):
            name = f"{job}-{index}-{attempt}"
            environment = {**os.environ, "JOB_COMPLETION_INDEX": str(index), "FAIL": str(self.fails.get(index, 0))}
            command = spec["template"]["spec"]["containers"][0]["command"]
            done = subprocess.run(
                command, env={**environment, "ATTEMPT": str(attempt)}, capture_output=True, text=True, check=False
            )
            self.logs[name] = (done.stdout + done.stderr, done.returncode, index)
            self.tried[index] = attempt + 1
            if done.returncode == 0:
                return True
            status["failed"] += 1
            if done.returncode == 2:
                return False
        return False

    def pods(self):
        rows = []
        for name, (_, code, index) in list(self.logs.items()):
            ended = {"exitCode": code, "reason": "Error" if code else "Completed", "finishedAt": "2026-01-01T00:00:00Z"}
            status = {"name": "group", "image": "i", "imageID": "", "ready": False, "restartCount": 0}
            labels = {"batch.kubernetes.io/job-completion-index": str(index)}
            rows.append({
                "metadata": {"name": name, "labels": labels},
                "status": {"phase": "Failed" if code else "Succeeded",
                           "containerStatuses": [{**status, "state": {"terminated": ended}}]},
            })  # fmt: skip
        return {"items": rows}


@pytest.fixture
def serve():
    """Starts a controller; gives it and a connection to it."""
    servers = []

    def start(**settings):
        controller = Controller(**settings)
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(controller))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        configuration = client.Configuration(host=f"http://127.0.0.1:{server.server_port}")
        configuration.retries = 0
        return controller, cluster.Cluster(client.ApiClient(configuration), "team", poll=0.02)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def _handler(controller):
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def _send(self, value, status=200):
            data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if isinstance(value, str) else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._send(controller.create(body, dry="dryRun=All" in self.path), 201)

        def do_GET(self):
            path = self.path.partition("?")[0].split("/")
            if path[-1] == "log":
                self._send("".join(f"2026-01-01T00:00:00Z {x}\n" for x in controller.logs[path[-2]][0].splitlines()))
            elif path[-1] == "pods":
                self._send(controller.pods())
            elif path[-1] in controller.jobs:
                self._send(controller.jobs[path[-1]])
            else:
                self._send({"code": 404, "reason": "NotFound"}, 404)

        def do_DELETE(self):
            found = controller.jobs.pop(self.path.partition("?")[0].split("/")[-1], None)
            self._send({"status": "Success"}, 200 if found else 404)

    return Handler


SCRIPT = """
echo group $JOB_COMPLETION_INDEX
[ "$ATTEMPT" -ge "$FAIL" ] || { echo out of memory; exit 137; }
"""


def shell(script=SCRIPT, **changed):
    return make(command=("sh", "-c", script), **changed)


def test_every_group_runs_and_one_that_is_killed_runs_again(serve, caplog):
    caplog.set_level(logging.INFO, logger="mobileclip")
    controller, place = serve(fails={1: 2})
    cluster.run(place, shell())
    assert controller.tried == {0: 1, 1: 3, 2: 1}
    assert "3 of 3 groups, 2 retried" in caplog.text


def test_a_group_that_fails_for_good_fails_the_stage_with_its_words(serve):
    _, place = serve(fails={1: 9})
    with pytest.raises(MobileClipError, match=r"(?s)^caption: Job 'caption-.*' failed \(FailedIndexes.*exit code 137"):
        cluster.run(place, shell())


def test_bad_input_is_not_tried_again(serve):
    controller, place = serve()
    with pytest.raises(MobileClipError, match=r"(?s)exit code 2 .*caption\.model: wrong"):
        cluster.run(place, shell("echo caption.model: wrong; exit 2"))
    assert controller.tried == {0: 1}


def test_a_launcher_that_died_is_followed_by_another_on_the_same_job(serve):
    controller, place = serve()
    controller.gate.clear()
    assert cluster.start(place, shell()) == "created"
    assert cluster.start(place, shell()) == "found"
    controller.gate.set()
    cluster.follow(place, shell())
    assert controller.created == 1
    assert controller.tried == {0: 1, 1: 1, 2: 1}


def test_an_older_server_is_asked_for_what_it_knows(serve):
    controller, place = serve(drops=("backoffLimitPerIndex",))
    cluster.start(place, shell(parallel=1))
    (body,) = controller.jobs.values()
    assert body["spec"]["podFailurePolicy"]
    assert body["spec"]["backoffLimit"] == 6
    controller, place = serve(drops=("backoffLimitPerIndex", "podFailurePolicy"))
    cluster.start(place, shell())
    (body,) = controller.jobs.values()
    assert body["spec"]["completionMode"] == "Indexed"
    _, place = serve(drops=("backoffLimitPerIndex", "podFailurePolicy", "completionMode"))
    with pytest.raises(ConfigError, match=r"^cluster: this server has no Indexed Jobs"):
        cluster.start(place, shell())


def test_a_canceled_run_takes_its_job_along(serve):
    controller, place = serve()
    controller.gate.clear()
    cluster.start(place, shell())
    cluster.cancel(place, shell())
    assert not controller.jobs
    controller.gate.set()


@pytest.mark.parametrize(
    ("argv", "index", "code"), [(["3", "{}"], "0", 2), ([], "0", 2), (["3", "[]"], "0", 2), (["x", "{}"], "0", 2)]
)
def test_a_worker_refuses_what_is_no_work(argv, index, code, monkeypatch, capsys):
    monkeypatch.setenv(group_worker.INDEX, index)
    assert group_worker.main(argv) == code
    assert capsys.readouterr().err.startswith("error: work: want")


def test_wrong_pods_are_named():
    with pytest.raises(ConfigError, match=r"^pods: got image, want image, parallel, retries"):
        fan_out.job("caption", "{}", 2, {"image": "i"}, {})


def test_kubeflows_empty_task_config_is_this_machine():
    assert not fan_out.job("caption", "{}", 2, PODS, vars(dsl.TaskConfig())).resources


def test_a_launcher_without_a_cluster_leaves_its_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("KFP_RUN_ID", "run-1")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    task = dsl.TaskConfig(resources={"limits": {"cpu": "1"}})
    where = kubeflow_run.Run(str(tmp_path))
    with pytest.raises(ConfigError, match=r"^cluster: no credentials"):
        fan_out.run("caption", params()["caption"], where, groups=["all/2"], pods=PODS, task=task, data="nowhere")
    (note,) = journal.read(str(tmp_path), "run-1")
    assert (note.stage, note.outcome) == ("caption", "bad input")
    assert note.error.startswith("cluster: no credentials")
