"""The part of the Kubeflow Pipelines v2beta1 REST API that the client uses, in memory; uploads are parsed strictly."""

import email
import email.policy
import json
import re
import ssl
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
    """What the server holds, and how it behaves.

    Attributes:
        outcome: State in which every run ends.
        outcomes: States in which the next runs end, before `outcome` holds.
        history: States that a run goes through before it ends.
        faults: How the next requests fail: HTTP status, `cut` (no answer), or the body of a page with status 200.
        wanted: Headers that every request must have; another one is answered by 401.
        requests: Method and path of every request.
    """

    pipelines: dict = field(default_factory=dict)
    versions: dict = field(default_factory=dict)
    experiments: dict = field(default_factory=dict)
    runs: dict = field(default_factory=dict)
    recurring: dict = field(default_factory=dict)
    outcome: str = "SUCCEEDED"
    outcomes: list = field(default_factory=list)
    history: tuple = ("PENDING", "RUNNING")
    faults: list = field(default_factory=list)
    wanted: dict = field(default_factory=dict)
    requests: list = field(default_factory=list)


class RefusedError(Exception):
    """An answer with an error code; `code` is gRPC's, `upload` the form that uploads have."""

    def __init__(self, status, message, *, code=2, upload=False):
        super().__init__(message)
        stack = "\n".join(f"github.com/kubeflow/pipelines/backend/src/apiserver/frame.go:{i}" for i in range(40))
        plain = {"error": message, "code": code, "message": message, "details": []}
        details = {"error_message": message, "error_details": f"{message}\n{stack}"}
        self.status, self.body = status, details if upload else plain


@contextmanager
def serve(certificate=None):
    """A server and its store; yields (url, store). With a certificate (file, key file) it speaks HTTPS."""
    store = Store()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(store))
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}", store
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
            body = self._body()
            store.requests.append((self.command, path))
            missing = [name for name, value in store.wanted.items() if self.headers.get(name) != value]
            if path != "/healthz" and store.faults:
                self._fail(store.faults.pop(0))
            elif missing:
                self._send(401, b'{"error":"no identity","code":16,"message":"no identity"}')
            else:
                self._send(*_answer_of(store, self.command, path, query, body))

        def _fail(self, fault):
            if fault == "cut":
                self.close_connection = True
                self.connection.close()
            elif isinstance(fault, int):
                self._send(fault, b"upstream connect error", "text/plain")
            else:
                self._send(200, fault.encode(), "text/html")

        def _send(self, status, data, kind="application/json"):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PATCH = do_DELETE = _answer  # noqa: N815 - names of the base class

        def _body(self):
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return _parse(raw, self.headers.get("Content-Type", ""))

    return Handler


def _parse(raw, kind):
    if not kind.startswith("multipart/"):
        return json.loads(raw) if raw else {}
    head = f"Content-Type: {kind}\r\n\r\n".encode()
    message = email.message_from_bytes(head + raw, policy=email.policy.HTTP)
    names = {p.get_param("name", header="content-disposition"): p for p in message.iter_parts()}
    return names["uploadfile"].get_payload(decode=True)


def _answer_of(store, method, path, query, body):
    try:
        return 200, json.dumps(route(store, method, path, query, body)).encode()
    except RefusedError as error:
        return error.status, json.dumps(error.body).encode()


def route(store, method, path, query, body):
    """Answer one request."""
    for wanted, pattern, answer in ROUTES:
        if wanted == method and (match := re.fullmatch(pattern, path)):
            return answer(store, query, body, *match.groups())
    raise RefusedError(404, "Not Found", code=5)


def _upload(store, query, body):
    """A pipeline and its first version, which bears the pipeline's names and not one of its own."""
    name = query["name"]
    pipeline = _create_pipeline(store, query, {"name": name, "display_name": query.get("display_name")}, upload=True)
    names = {"name": pipeline["name"], "display_name": pipeline["display_name"]}
    _add_version(store, {"pipelineid": pipeline["pipeline_id"], **names}, body)
    return pipeline


def _create_pipeline(store, _query, body, *, upload=False):
    name = body.get("name") or body.get("display_name")
    if any(x["name"] == name for x in store.pipelines.values()):
        raise RefusedError(409, "Failed to create a pipeline and a pipeline version", code=6, upload=upload)
    identifier = str(uuid.uuid4())
    store.pipelines[identifier] = {
        "pipeline_id": identifier, "name": name, "display_name": body.get("display_name") or name, "created_at": _now(),
    }  # fmt: skip
    return store.pipelines[identifier]


def _add_version(store, query, package):
    pipeline = _get(store.pipelines, query["pipelineid"])["pipeline_id"]
    name = query.get("name") or query["display_name"]
    if any(v["name"] == name and v["pipeline_id"] == pipeline for v in store.versions.values()):
        raise RefusedError(409, "Failed to create a pipeline version", code=6, upload=True)
    documents = list(yaml.safe_load_all(package))
    try:
        json_format.ParseDict(documents[0], pipeline_spec_pb2.PipelineSpec())
        for document in documents[1:]:
            json_format.ParseDict(document, pipeline_spec_pb2.PlatformSpec())
    except json_format.ParseError as error:
        raise RefusedError(400, f"not a pipeline: {error}", code=3, upload=True) from None
    spec = documents[0] if len(documents) == 1 else {"pipeline_spec": documents[0], "platform_spec": documents[1]}
    identifier = str(uuid.uuid4())
    store.versions[identifier] = version = {
        "pipeline_id": pipeline, "pipeline_version_id": identifier, "name": name,
        "display_name": query.get("display_name") or name, "created_at": _now(), "pipeline_spec": spec,
    }  # fmt: skip
    return version


def _list(rows, query, key):
    """One page; the filter `display_name` looks at names, as the server's does."""
    rows = list(rows)
    if query.get("filter"):
        (predicate,) = json.loads(query["filter"])["predicates"]
        rows = [row for row in rows if row.get("name", row["display_name"]) == predicate["stringValue"]]
    size, first = min(int(query.get("page_size") or 20), 200), int(query.get("page_token") or 0)
    more = {"next_page_token": str(first + size)} if first + size < len(rows) else {}
    return {key: rows[first : first + size], "total_size": len(rows), **more}


def _versions(store, query, _body, pipeline):
    _get(store.pipelines, pipeline)
    own = [version for version in store.versions.values() if version["pipeline_id"] == pipeline]
    return _list(own[::-1] if query.get("sort_by") == "created_at desc" else own, query, "pipeline_versions")


def _rename(store, _query, body, _pipeline, version):
    found = _get(store.versions, version)
    found |= {key: body[key] for key in ("display_name", "description") if body.get(key)}
    return found


def _create_experiment(store, _query, body):
    if any(row["display_name"] == body["display_name"] for row in store.experiments.values()):
        raise RefusedError(409, f"Already exist error: experiment {body['display_name']}", code=6)
    identifier = str(uuid.uuid4())
    store.experiments[identifier] = {**body, "experiment_id": identifier, "created_at": _now()}
    return store.experiments[identifier]


def _create_run(store, _query, body):
    _get(store.experiments, body["experiment_id"])
    _check_parameters(store, body)
    identifier = str(uuid.uuid4())
    ends = store.outcomes.pop(0) if store.outcomes else store.outcome
    states = [*store.history, *(("CANCELING", "FAILED") if ends == "CANCELED" else (ends,))]
    store.runs[identifier] = run = {**body, "run_id": identifier, "created_at": _now(), "state": states[0]}
    run["state_history"], run["_coming"] = [], states
    return _seen(run)


def _create_recurring_run(store, _query, body):
    _check_parameters(store, body)
    if not body.get("trigger", {}).get("cron_schedule", {}).get("cron"):
        raise RefusedError(400, "a trigger is required")
    _get(store.experiments, body["experiment_id"])
    if len(body["trigger"]["cron_schedule"]["cron"].split()) != 6:
        raise RefusedError(400, "Invalid input error: Schedule cron is not a supported format", code=3)
    identifier = str(uuid.uuid4())
    store.recurring[identifier] = {**body, "recurring_run_id": identifier, "created_at": _now(), "status": "ENABLED"}
    return store.recurring[identifier]


def _list_recurring_runs(store, query, _body):
    wanted = query.get("experiment_id")
    return _list([r for r in store.recurring.values() if r["experiment_id"] == wanted], query, "recurringRuns")


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
    run = _get(store.runs, identifier)
    state = run["_coming"].pop(0) if run["_coming"] else run["state"]
    if not run["state_history"] or run["state_history"][-1]["state"] != state:
        run["state_history"].append({"state": state, "update_time": _now()})
    run["state"] = state
    return _seen(run)


def _seen(run):
    return {key: value for key, value in run.items() if key != "_coming"}


def _get(table, identifier):
    if identifier not in table:
        raise RefusedError(404, f"ResourceNotFoundError: {identifier} not found.", code=5)
    return table[identifier]


def _now():
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


ROUTES = [
    ("GET", "/healthz", lambda *_: {"multi_user": False}),
    ("POST", "/pipelines/upload", _upload),
    ("POST", "/pipelines/upload_version", _add_version),
    ("POST", "/pipelines", _create_pipeline),
    ("GET", "/pipelines", lambda store, query, _: _list(store.pipelines.values(), query, "pipelines")),
    ("GET", "/pipelines/([^/]+)", lambda store, _q, _b, pipeline: _get(store.pipelines, pipeline)),
    ("GET", "/pipelines/([^/]+)/versions", _versions),
    ("GET", "/pipelines/([^/]+)/versions/([^/]+)", lambda store, _q, _b, _, version: _get(store.versions, version)),
    ("PATCH", "/pipelines/([^/]+)/versions/([^/]+)", _rename),
    ("POST", "/experiments", _create_experiment),
    ("GET", "/experiments", lambda store, query, _: _list(store.experiments.values(), query, "experiments")),
    ("GET", "/experiments/([^/]+)", lambda store, _q, _b, experiment: _get(store.experiments, experiment)),
    ("POST", "/runs", _create_run),
    ("GET", "/runs", lambda store, query, _: _list(map(_seen, store.runs.values()), query, "runs")),
    ("GET", "/runs/([^/]+)", _look_at_run),
    ("POST", "/recurringruns", _create_recurring_run),
    ("GET", "/recurringruns", _list_recurring_runs),
    ("DELETE", "/recurringruns/([^/]+)", _delete_recurring_run),
]
