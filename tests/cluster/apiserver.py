"""A real etcd and kube-apiserver on loopback, with their own keys; and the one answer of a kubelet, a pod's log."""

import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

SERVER = "MOBILECLIP_KUBE_APISERVER"
"""Environment variable: path of the binary. `.ci/kube-apiserver` builds it and prints the path."""
REQUIRED = "MOBILECLIP_REQUIRE_CLUSTER"
"""Environment variable: where it is set, a missing server is a failure and not a skipped test."""


def find_binary() -> Path | None:
    """The server's binary, if it is here."""
    cached = (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mobileclip/kubernetes/bin/kube-apiserver"
    )
    found = Path(os.environ.get(SERVER) or cached)
    return found if found.is_file() and shutil.which("etcd") and shutil.which("openssl") else None


@dataclass
class Keys:
    """A certificate authority and what it signs."""

    folder: Path

    def make_authority(self):
        self._openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "sa.key")
        self._openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
            "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=test-authority",
        )  # fmt: skip

    def sign(self, name, subject, names):
        self._openssl(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", subject,
        )  # fmt: skip
        (self.folder / f"{name}.ext").write_text(f"subjectAltName={names}\nextendedKeyUsage=serverAuth,clientAuth\n")
        self._openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", "2", "-extfile", f"{name}.ext", "-out", f"{name}.crt",
        )  # fmt: skip

    def _openssl(self, *arguments):
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)


@contextmanager
def serve(folder: Path, binary: Path):
    """Start both servers; yields the path of an administrator's kubeconfig."""
    keys = Keys(folder)
    keys.make_authority()
    keys.sign("apiserver", "/CN=kube-apiserver", "DNS:localhost,DNS:kubernetes.default.svc,IP:127.0.0.1,IP:10.96.0.1")
    keys.sign("admin", "/O=system:masters/CN=admin", "DNS:admin")
    keys.sign("kubelet", "/O=system:nodes/CN=system:node:node", "IP:127.0.0.1")
    client_port, peer_port, port = (_free_port() for _ in range(3))
    etcd = f"http://127.0.0.1:{client_port}"
    commands = {
        "etcd": [
            "etcd", "--data-dir", "etcd", f"--listen-client-urls={etcd}", f"--advertise-client-urls={etcd}",
            f"--listen-peer-urls=http://127.0.0.1:{peer_port}", "--unsafe-no-fsync",
        ],
        "apiserver": [
            str(binary), f"--etcd-servers={etcd}", "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1",
            f"--secure-port={port}", "--insecure-port=0", "--tls-cert-file=apiserver.crt",
            "--tls-private-key-file=apiserver.key", "--client-ca-file=ca.crt", "--service-account-key-file=sa.key",
            "--service-account-signing-key-file=sa.key",
            "--service-account-issuer=https://kubernetes.default.svc", "--kubelet-client-certificate=admin.crt",
            "--kubelet-client-key=admin.key", "--kubelet-certificate-authority=ca.crt",
            "--service-cluster-ip-range=10.96.0.0/16", "--authorization-mode=Node,RBAC", "--allow-privileged=true",
            "--endpoint-reconciler-type=none", "--feature-gates=RootCAConfigMap=true",
        ],
    }  # fmt: skip
    running = []
    try:
        for name, command in commands.items():
            with (folder / f"{name}.log").open("w") as log:
                running.append(subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT))
        kubeconfig = _write_kubeconfig(folder, port)
        _wait_until_ready(folder, port, running)
        yield kubeconfig
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait(timeout=30)


def _write_kubeconfig(folder, port):
    cluster = {"server": f"https://127.0.0.1:{port}", "certificate-authority": str(folder / "ca.crt")}
    user = {"client-certificate": str(folder / "admin.crt"), "client-key": str(folder / "admin.key")}
    content = {
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{"name": "c", "cluster": cluster}], "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
    }  # fmt: skip
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(content))
    return path


def _wait_until_ready(folder, port, running):
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    context.load_cert_chain(folder / "admin.crt", folder / "admin.key")
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert all(process.poll() is None for process in running), (folder / "apiserver.log").read_text()[-3000:]
        try:
            with urllib.request.urlopen(f"https://127.0.0.1:{port}/readyz", context=context):
                return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError((folder / "apiserver.log").read_text()[-3000:])


def _free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def serve_logs(folder: Path):
    """Serve pods' logs as a kubelet does; yields (port, logs), where `logs[pod]` is a list of (seconds, text)."""
    logs: dict[str, list] = {}

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            url = urllib.parse.urlparse(self.path)
            query = dict(urllib.parse.parse_qsl(url.query))
            _, kind, _namespace, pod, _container = url.path.split("/")
            found = logs.get(pod) if kind == "containerLogs" else None
            data = "".join(_choose(found or [], query)).encode()
            self.send_response(200 if found is not None else 404)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "kubelet.crt", folder / "kubelet.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port, logs
    finally:
        server.shutdown()
        server.server_close()


def _choose(lines, query):
    since = time.time() - float(query["sinceSeconds"]) if "sinceSeconds" in query else 0.0
    kept = [(at, text) for at, text in lines if at >= since]
    if "tailLines" in query:
        kept = kept[-int(query["tailLines"]) :]
    stamped = json.loads(query.get("timestamps", "false"))
    return [f"{_stamp(at)} {text}\n" if stamped else f"{text}\n" for at, text in kept]


def _stamp(at):
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) + f".{round(at % 1 * 1e9):09d}Z"
