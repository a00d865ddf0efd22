"""What the page is made of and how it is served: a pinned runtime, one sentence without network, no other files."""

import http.client
import json
import threading

import pytest

from mobileclip.errors import ConfigError, DataError
from mobileclip.formats import contract
from mobileclip.formats.bundle import serve, web
from tests.examples.test_on_device import agreed_contract


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root") / "export"
    folder.mkdir()
    agreed_contract(folder)
    (folder.parent / "secret.txt").write_text("secret")
    return folder


@pytest.fixture(scope="module")
def server(export):
    with serve.serving(export) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


def _get(server, path):
    connection = http.client.HTTPConnection(*server.server_address[:2])
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read()


def test_page_and_export_are_served(server, export):
    status, headers, body = _get(server, "/page/")
    assert (status, headers["Content-type"]) == (200, "text/html")
    assert b"<!doctype html>" in body
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert _get(server, "/contract.json")[2] == (export / contract.FILE_NAME).read_bytes()
    assert _get(server, "/page/app.js")[1]["Content-type"] == "text/javascript"
    status, headers, _ = _get(server, "/page/ort/ort-wasm-simd-threaded.wasm")
    assert (status, headers["Content-type"], headers["Content-Length"]) == (200, "application/wasm", "14239897")
    assert _get(server, "/")[1]["Location"] == "/page/"


@pytest.mark.parametrize(
    "path", ["/../secret.txt", "/%2e%2e/secret.txt", "/page/../../secret.txt", "//etc/passwd", "/page/ort/", "/nothing"]
)
def test_nothing_else_is_served(server, path):
    status, _, body = _get(server, path)
    assert status == 404
    assert b"secret" not in body


def test_taken_port(server, export):
    port = server.server_address[1]
    with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"), serve.serving(export, port=port):
        pass


def test_members_of_the_page():
    members = web.members()
    assert {"page/index.html", "page/engine.js", "page/cleaning.json", "page/ort/ort.webgpu.min.mjs"} <= set(members)
    assert all(name.startswith("page/") for name in members)
    tables = json.loads(members["page/cleaning.json"])
    assert tables["entities"]["eacute;"] == "é"
    assert tables["characters"]["\ufb03"] == "ffi"
    assert tables["characters"]["\x80"] == "€"


@pytest.mark.parametrize("cached", [None, b"damaged"])
def test_without_network(tmp_path, monkeypatch, cached):
    """npm itself runs and reaches no registry."""
    monkeypatch.setenv("MOBILECLIP_CACHE", str(tmp_path))
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm-cache"))
    path = tmp_path / "npm" / "onnxruntime-web-1.30.0.tgz"
    if cached is not None:
        path.parent.mkdir()
        path.write_bytes(cached)
    with pytest.raises(
        DataError, match=r"^page: onnxruntime-web 1\.30\.0 is not in the cache .* npm cannot get it; .*\.$"
    ):
        web.members()
    assert not path.exists() or path.read_bytes() == cached
