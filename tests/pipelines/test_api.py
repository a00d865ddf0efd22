"""Talking to an API server: versions and their two names, logins, proxies, certificates, and servers that are away."""

import re
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests

from mobileclip.errors import ConfigError
from pipelines import api as rest
from pipelines import defaults, server, waiting
from pipelines.compile import compile_package
from tests.pipelines import kfp_api

PAGE = "<!doctype html><html><title>Log in</title></html>"


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    path = tmp_path_factory.mktemp("package") / "reinforce.yaml"
    return compile_package("reinforce", defaults.read(), path, profile="cpu")


@pytest.fixture
def served(monkeypatch):
    for name in (rest.CA, rest.TOKEN, rest.TOKEN_FILE, rest.COOKIE, "REQUESTS_CA_BUNDLE", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    with kfp_api.serve() as found:
        yield found


def start(url, package, name="train s3://b/one"):
    """A connection that asks again, and a run."""
    client = rest.connect(url)
    version = server.upload(client, package, "one")
    given = {"root": "s3://b/one", "source": "/data/raw"}
    return client, server.start(client, version, given, experiment="e", name=name)


def test_an_unchanged_package_is_one_version_however_often_it_is_submitted(served, package):
    url, store = served
    client = rest.connect(url)
    found = [server.upload(client, package, "one")["pipeline_version_id"] for _ in range(4)]
    assert len(set(found)) == len(store.versions) == len(store.pipelines) == 1
    (version,) = store.versions.values()
    assert version["name"] == version["display_name"] == "one"


def test_a_version_that_the_ui_made_with_its_pipeline_is_found_by_the_name_it_shows(served, package):
    """There version 1 bears the pipeline's name, and shows what it was renamed to."""
    url, store = served
    made = requests.post(
        f"{url}/apis/v2beta1/pipelines/upload",
        params={"name": "mobileclip-reinforce"}, files={"uploadfile": package.read_bytes()}, timeout=10,
    )  # fmt: skip
    assert made.status_code == 200
    (version,) = store.versions.values()
    version["display_name"] = "one"
    client = rest.connect(url)
    for _ in range(3):
        assert server.upload(client, package, "one")["pipeline_version_id"] == version["pipeline_version_id"]
    assert len(store.versions) == 1


def test_a_version_is_found_beyond_the_first_page(served, package):
    url, store = served
    client = rest.connect(url)
    first = server.upload(client, package, "first")
    for number in range(250):
        names = {"name": f"v{number}", "display_name": f"v{number}", "pipeline_version_id": f"{number}"}
        store.versions[f"{number}"] = {**first, **names, "pipeline_spec": {}}
    assert server.upload(client, package, "first")["pipeline_version_id"] == first["pipeline_version_id"]
    assert len(server.list_versions(client, "mobileclip-reinforce")) == 251


def test_of_several_versions_with_a_name_the_one_with_equal_documents_is_taken(served, package):
    url, store = served
    client = rest.connect(url)
    mine = server.upload(client, package, "one")
    store.versions["other"] = {**mine, "name": "x", "pipeline_version_id": "other", "pipeline_spec": {"root": {}}}
    assert server.upload(client, package, "one")["pipeline_version_id"] == mine["pipeline_version_id"]


def test_a_run_is_named_after_what_it_does(served, package):
    _, run = start(served[0], package)
    assert re.fullmatch(r"train s3://b/one \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", run["display_name"])


def test_what_the_server_refuses_is_one_sentence_without_its_stack(served, package, capsys):
    url, store = served
    client = rest.connect(url)
    pipeline = rest.ask(client, "POST", "/pipelines", body={"name": "p"})["pipeline_id"]
    query = {"pipelineid": pipeline, "name": "one"}

    def upload():
        rest.ask(client, "POST", "/pipelines/upload_version", query=query, file=package)
        return 0

    assert server.answered(upload) == 0
    assert server.answered(upload) == 1
    said = capsys.readouterr().err
    assert said == "error: the server answers 409: Failed to create a pipeline version.\n"
    store.faults = [500]
    assert server.answered(upload) == 6
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("fault", ["cut", 502, 503, 504, 429])
def test_one_question_that_is_not_answered_ends_no_waiting(served, package, fault):
    url, store = served
    client, run = start(url, package)
    store.faults = [fault]
    assert waiting.wait(client, run, root="/data/one", poll=0.01).outcome == "succeeded"


@pytest.mark.parametrize("fault", ["cut", 503])
def test_a_run_is_never_started_twice_where_the_answer_is_lost(served, package, fault):
    url, store = served
    client = rest.connect(url)
    version = server.upload(client, package, "one")
    given = {"root": "s3://b/one", "source": "/data/raw"}
    server.start(client, version, given, experiment="e", name="first")
    store.requests.clear()
    store.faults = [fault]
    with pytest.raises(rest.AwayError):
        rest.ask(client, "POST", "/runs", body={})
    assert store.requests.count(("POST", "/runs")) == 1


def test_a_login_page_is_told_from_an_answer(served, package):
    url, store = served
    store.faults = [PAGE]
    client = rest.connect(url)
    with pytest.raises(rest.LoginError, match=r"answers with a page .*; set KF_PIPELINES_TOKEN, .*KF_PIPELINES_COOKIE"):
        rest.ask(client, "GET", "/pipelines")
    client, run = start(url, package)
    store.faults = [PAGE]
    with pytest.raises(rest.AwayError, match=f"The run {run['run_id']} goes on") as raised:
        waiting.wait(client, run, root="/data/one", poll=0.01)
    assert raised.value.exit_code == 6


@pytest.fixture
def login_page():
    """A server that answers every request with a page."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(PAGE.encode())

        def log_message(self, *_):
            pass

    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{found.server_port}"
    found.shutdown()
    found.server_close()


def test_a_login_page_in_front_is_no_server(login_page):
    with pytest.raises(ConfigError, match=r"^host: 'http://127\.0\.0\.1:\d+/apis/v2beta1/healthz' answers with a page"):
        rest.connect(login_page)


def test_a_token_is_sent_and_read_again_from_its_file(served, package, tmp_path, monkeypatch):
    url, store = served
    store.wanted = {"Authorization": "Bearer first"}
    with pytest.raises(ConfigError, match=r"^host: .* answers 401 \(no identity\): no login, or one that has expired"):
        rest.connect(url)
    monkeypatch.setenv(rest.TOKEN, "first")
    rest.connect(url)
    token = tmp_path / "token"
    token.write_text("first\n")
    monkeypatch.setenv(rest.TOKEN_FILE, str(token))
    client, run = start(url, package)
    store.wanted = {"Authorization": "Bearer second"}
    with pytest.raises(rest.AwayError, match="expired"):
        waiting.wait(client, run, root="/data/one", poll=0.01)
    token.write_text("second\n")
    assert waiting.wait(client, run, root="/data/one", poll=0.01).outcome == "succeeded"
    monkeypatch.setenv(rest.TOKEN_FILE, str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"^KF_PIPELINES_TOKEN_FILE: cannot read"):
        rest.connect(url)


def test_a_session_cookie_is_sent(served, monkeypatch):
    url, store = served
    store.wanted = {"Cookie": "authservice_session=abc"}
    with pytest.raises(ConfigError, match="401"):
        rest.connect(url)
    monkeypatch.setenv(rest.COOKIE, "authservice_session=abc")
    assert rest.connect(url).host == url


def test_a_proxy_of_the_environment_is_used(served, monkeypatch):
    """The server stands for the proxy: it gets whole addresses."""
    url, store = served
    monkeypatch.setenv("http_proxy", url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert rest.connect("http://pipelines.example").host == "http://pipelines.example"
    assert ("GET", "/healthz") in store.requests


def test_a_companys_authority_is_trusted_where_its_file_is_named(tmp_path, monkeypatch):
    key, certificate = tmp_path / "key.pem", tmp_path / "ca.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    with kfp_api.serve((certificate, key)) as (url, _):
        with pytest.raises(ConfigError, match=r"is not trusted; KF_PIPELINES_CA names the file"):
            rest.connect(url)
        for name in ("REQUESTS_CA_BUNDLE", rest.CA):
            with monkeypatch.context() as patch:
                patch.setenv(name, str(certificate))
                assert rest.connect(url).host == url
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none.pem"))
        with pytest.raises(ConfigError, match=r"^REQUESTS_CA_BUNDLE: got .* no such file"):
            rest.connect(url)


def test_waiting_ends_when_its_time_is_over_and_the_run_goes_on(served, package):
    url, store = served
    store.history = ("RUNNING",) * 10_000
    client, run = start(url, package)
    with pytest.raises(waiting.StillRunningError, match="still runs") as raised:
        waiting.wait(client, run, root="/data/one", poll=0.001, timeout=0.01)
    assert raised.value.exit_code == 5


def test_a_server_that_stays_away_ends_waiting_with_a_code_of_its_own(served, package, monkeypatch):
    url, store = served
    monkeypatch.setattr(waiting, "_PATIENCE", 0.0)
    client, run = start(url, package)
    store.faults = [503] * 5
    with pytest.raises(rest.AwayError, match="goes on") as raised:
        waiting.wait(client, run, root="/data/one", poll=0.01)
    assert raised.value.exit_code == 6
