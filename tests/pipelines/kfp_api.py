"""The part of the Kubeflow Pipelines v2beta1 REST API that the client uses, in memory; uploads are parsed strictly."""

import email
import email.policy
import json
import re
import threading
import urllib.parse
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

PREFIX = "/apis/v2beta1"
MAX_PARAMETER_BYTES = 10_000


@dataclass
class Store:
    """What the server holds.

    Attributes:
        outcome: State in which every run ends.
        outcomes: States in which the next runs end, before `outcome` counts.
        passing: Statuses that the next looks at a run get instead of an answer; 0 = the connection is cut.
        page: What every request gets instead, as from a login page; empty = the API's answers.
    """

    pipelines: dict = field(default_factory=dict)
    versions: dict = field(default_factory=dict)
    experiments: dict = field(default_factory=dict)
    runs: dict = field(default_factory=dict)
    recurring: dict = field(default_factory=dict)
    outcome: str = "SUCCEEDED"
    outcomes: list = field(default_factory=list)
    passing: list = field(default_factory=list)
    page: bytes = b""


class RefusedError(Exception):
    """An answer with an error code."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


@contextmanager
def serve():
    """A server and its store; yields (url, store)."""
    store = Store()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(store))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", store
    finally:
        server.shutdown()
        server.server_close()


def _handler(store):
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def _answer(self):
            url = urllib.parse.urlparse(self.path)
            query = dict(urllib.parse.parse_qsl(url.query))
            path = urllib.parse.unquote(url.path).removeprefix(PREFIX)
            try:
                status, found = 200, route(store, self.command, path, query, self._body())
            except RefusedError as error:
                status, found = error.status, _error_body(error)
            data = store.page or json.dumps(found).encode()
            if status == 0:
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PATCH = do_DELETE = _answer  # noqa: N815 - names of the base class

        def _body(self):
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            kind = self.headers.get("Content-Type", "")
            if not kind.startswith("multipart/"):
                return json.loads(raw) if raw else {}
            head = f"Content-Type: {kind}\r\n\r\n".encode()
            message = email.message_from_bytes(head + raw, policy=email.policy.HTTP)
            names = {p.get_param("name", header="content-disposition"): p for p in message.iter_parts()}
            return names["uploadfile"].get_payload(decode=True)

    return Handler


def _error_body(error):
    """A gRPC status with the server's own stack, as a real one answers."""
    stack = [f"github.com/kubeflow/pipelines/backend/src/apiserver/server.(*S).M{i}" for i in range(12)]
    message = f"InvalidInputError: {error}"
    return {
        "error": message,
        "code": {404: 5, 409: 6}.get(error.status, 3),
        "message": message,
        "details": [{"@type": "type.googleapis.com/google.rpc.Status", "message": "\n".join([message, *stack])}],
    }


def route(store, method, path, query, body):
    """Answer one request."""
    for wanted, pattern, answer in ROUTES:
        if wanted == method and (match := re.fullmatch(pattern, path)):
            return answer(store, query, body, *match.groups())
    raise RefusedError(404, f"no route {method} {path}")


def _upload(store, query, body):
    if any(x["display_name"] == query["name"] for x in store.pipelines.values()):
        raise RefusedError(409, f"Pipeline {query['name']} already exists")
    identifier = str(uuid.uuid4())
    pipeline = {"pipeline_id": identifier, "display_name": query["name"], "name": query["name"], "created_at": _now()}
    store.pipelines[identifier] = pipeline
    # As the real server does it: the first version is named like the pipeline, only its display name can be changed.
    _add_version(store, {"pipelineid": identifier, "name": query["name"]}, body)
    return pipeline


def _create_pipeline(store, _query, body):
    name = body.get("name") or body.get("display_name")
    if not name:
        raise RefusedError(400, "Pipeline name is empty")
    if any(name == x["name"] for x in store.pipelines.values()):
        raise RefusedError(409, f"Pipeline {name} already exists")
    identifier = str(uuid.uuid4())
    store.pipelines[identifier] = {
        "pipeline_id": identifier, "name": name, "display_name": body.get("display_name") or name, "created_at": _now(),
    }  # fmt: skip
    return store.pipelines[identifier]


def _add_version(store, query, package):
    pipeline, name = _get(store.pipelines, query["pipelineid"])["pipeline_id"], query["name"]
    if any(v["name"] == name and v["pipeline_id"] == pipeline for v in store.versions.values()):
        raise RefusedError(409, f"Failed to create pipeline version: a version with the name {name} already exists")
    documents = list(yaml.safe_load_all(package))
    try:
        json_format.ParseDict(documents[0], pipeline_spec_pb2.PipelineSpec())
        for document in documents[1:]:
            json_format.ParseDict(document, pipeline_spec_pb2.PlatformSpec())
    except json_format.ParseError as error:
        raise RefusedError(400, f"not a pipeline: {error}") from None
    spec = documents[0] if len(documents) == 1 else {"pipeline_spec": documents[0], "platform_spec": documents[1]}
    identifier = str(uuid.uuid4())
    store.versions[identifier] = version = {
        "pipeline_id": pipeline, "pipeline_version_id": identifier, "display_name": name, "name": name,
        "created_at": _now(), "pipeline_spec": spec,
    }  # fmt: skip
    return version


def _versions(store, query, _body, pipeline):
    own = [version for version in store.versions.values() if version["pipeline_id"] == pipeline]
    return {"pipeline_versions": _filtered(reversed(own), query)}


def _rename(store, _query, body, _pipeline, version):
    found = _get(store.versions, version)
    found |= {key: body[key] for key in ("display_name", "description") if body.get(key)}
    return found


def _create_experiment(store, _query, body):
    identifier = str(uuid.uuid4())
    store.experiments[identifier] = {**body, "experiment_id": identifier, "created_at": _now()}
    return store.experiments[identifier]


def _create_run(store, _query, body):
    _check_parameters(store, body)
    identifier = str(uuid.uuid4())
    store.runs[identifier] = {**body, "run_id": identifier, "created_at": _now(), "state": "PENDING"}
    return store.runs[identifier]


def _create_recurring_run(store, _query, body):
    _check_parameters(store, body)
    if not body.get("trigger", {}).get("cron_schedule", {}).get("cron"):
        raise RefusedError(400, "a trigger is required")
    _get(store.experiments, body["experiment_id"])
    identifier = str(uuid.uuid4())
    store.recurring[identifier] = {**body, "recurring_run_id": identifier, "created_at": _now(), "status": "ENABLED"}
    return store.recurring[identifier]


def _list_recurring_runs(store, query, _body):
    wanted = query.get("experiment_id")
    return {"recurringRuns": [run for run in store.recurring.values() if run["experiment_id"] == wanted]}


def _delete_recurring_run(store, _query, _body, identifier):
    _get(store.recurring, identifier)
    del store.recurring[identifier]
    return {}


def _check_parameters(store, body):
    """Refuses what the real server refuses: unknown or missing parameters, and too many bytes of them."""
    given = (body.get("runtime_config") or {}).get("parameters") or {}
    spec = _get(store.versions, body["pipeline_version_reference"]["pipeline_version_id"])["pipeline_spec"]
    known = spec.get("pipeline_spec", spec)["root"]["inputDefinitions"]["parameters"]
    if set(given) - set(known):
        raise RefusedError(400, f"unknown parameters {sorted(set(given) - set(known))}")
    missing = [k for k, v in known.items() if k not in given and not v.get("isOptional") and "defaultValue" not in v]
    if missing:
        raise RefusedError(400, f"missing parameters {missing}")
    if len(json.dumps(given)) > MAX_PARAMETER_BYTES:
        raise RefusedError(400, "the input parameter length exceed maximum size")


def _look_at_run(store, _query, _body, identifier):
    """Every look brings a run one state further."""
    if store.passing:
        raise RefusedError(store.passing.pop(0), "for now")
    run = _get(store.runs, identifier)
    seen = dict(run)
    if run["state"] == "RUNNING":
        run["state"] = store.outcomes.pop(0) if store.outcomes else store.outcome
    elif run["state"] == "PENDING":
        run["state"] = "RUNNING"
    return seen


def _get(table, identifier):
    if identifier not in table:
        raise RefusedError(404, f"{identifier} not found")
    return table[identifier]


def _filtered(rows, query):
    if not query.get("filter"):
        return list(rows)
    predicate = json.loads(query["filter"])["predicates"][0]
    wanted = predicate.get("stringValue") or predicate.get("string_value")
    return [row for row in rows if row[predicate["key"]] == wanted]


def _now():
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


ROUTES = [
    ("GET", "/healthz", lambda *_: {"multi_user": False}),
    ("POST", "/pipelines/upload", _upload),
    ("POST", "/pipelines/upload_version", _add_version),
    ("POST", "/pipelines", _create_pipeline),
    ("GET", "/pipelines", lambda store, query, _: {"pipelines": _filtered(store.pipelines.values(), query)}),
    ("GET", "/pipelines/([^/]+)", lambda store, _q, _b, pipeline: _get(store.pipelines, pipeline)),
    ("GET", "/pipelines/([^/]+)/versions", _versions),
    ("GET", "/pipelines/([^/]+)/versions/([^/]+)", lambda store, _q, _b, _, version: _get(store.versions, version)),
    ("PATCH", "/pipelines/([^/]+)/versions/([^/]+)", _rename),
    ("POST", "/experiments", _create_experiment),
    ("GET", "/experiments", lambda store, query, _: {"experiments": _filtered(store.experiments.values(), query)}),
    ("GET", "/experiments/([^/]+)", lambda store, _q, _b, experiment: _get(store.experiments, experiment)),
    ("POST", "/runs", _create_run),
    ("GET", "/runs", lambda store, *_: {"runs": list(store.runs.values())}),
    ("GET", "/runs/([^/]+)", _look_at_run),
    ("POST", "/recurringruns", _create_recurring_run),
    ("GET", "/recurringruns", _list_recurring_runs),
    ("DELETE", "/recurringruns/([^/]+)", _delete_recurring_run),
]
