"""A real MLflow server on SQLite for tests, started once per process, and a proxy that can fail in front of it."""

import atexit
import contextlib
import functools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

_PATIENCE_SECONDS = 180


@functools.cache
def start() -> tuple[str, "subprocess.Popen[bytes]"]:
    """Start the server without waiting for it."""
    folder = Path(tempfile.mkdtemp(prefix="mlflow-server-"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "MOBILECLIP_"))},
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    atexit.register(_stop, process, folder)
    return f"http://127.0.0.1:{port}", process


@functools.cache
def url() -> str:
    """Address of the server, once it answers."""
    address, process = start()
    end = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError("the MLflow server ended")
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5):
            return address
        time.sleep(0.3)
    raise RuntimeError("the MLflow server does not answer")


def forget_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no setting of the machine reach a test."""
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "MOBILECLIP_")) or name in {"RANK", "KFP_RUN_ID"}:
            monkeypatch.delenv(name)


def _stop(process: "subprocess.Popen[bytes]", folder: Path) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(20)
    process.kill()
    shutil.rmtree(folder, ignore_errors=True)


_FULL = b'{"error_code": "INTERNAL_ERROR", "message": "(sqlite3.OperationalError) database or disk is full"}'
_ANSWER = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"


class Proxy:
    """Passes TCP bytes on to the server until it is told to fail.

    Attributes:
        failing: Whether it does.
        how: `cut` (new connections are closed), `hang` (nothing is ever answered) or `full` (what a server answers
            whose disk is full).
    """

    def __init__(self, target: str) -> None:
        self._target = target.removeprefix("http://").split(":")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.failing = False
        self.how = "cut"
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def fail(self, how: str = "cut") -> None:
        """Cut every connection and treat new ones so."""
        self.failing, self.how = True, how
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Stop listening."""
        self.fail()
        self._listener.close()

    def _refuse(self, client: socket.socket) -> None:
        self._open.append(client)
        with contextlib.suppress(OSError):
            if self.how == "hang":
                while client.recv(65536):
                    pass
            if self.how == "full":
                client.recv(65536)
                client.sendall(_ANSWER % (b"500 INTERNAL SERVER ERROR", len(_FULL), _FULL))
            client.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.failing:
                    threading.Thread(target=self._refuse, args=(client,), daemon=True).start()
                    continue
                server = socket.create_connection((self._target[0], int(self._target[1])))
                self._open += [client, server]
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=_pump, args=pair, daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def proxy() -> Iterator[Proxy]:
    """A proxy in front of the server."""
    made = Proxy(url())
    try:
        yield made
    finally:
        made.close()
