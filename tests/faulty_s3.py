"""An HTTP proxy before a real S3 API that fails as stores and networks fail, by a plan the test gives."""

import http.client
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

# What the proxy may do to a request; "" lets it pass.
STATUS = {
    "500": "InternalError", "503": "SlowDown", "429": "TooManyRequests", "403": "AccessDenied", "501": "NotImplemented",
    "304": "NotModified",
}  # fmt: skip
FAULTS = (*STATUS, "reset", "lost", "truncated", "cut", "early", "fewer", "shifted", "flipped", "silent")
_SILENCE_SECONDS = 3.0
_HOP = {"connection", "transfer-encoding", "content-length", "date", "server"}

Plan = Callable[[str, str, int], str]
"""(method, path with query, number of this request) to a fault."""


class FaultyS3:
    """The proxy: `plan` decides what happens to each request, `seen` lists them as "METHOD path".

    Attributes:
        headers: Of the requests in `seen`, by name in lower case.
        capitalized: Whether metadata come back as `X-Amz-Meta-Name`.
        unconditional: Status of the answer to If-None-Match; empty for a store that knows it.
    """

    def __init__(self, target: str) -> None:
        self.target = urlsplit(target).netloc
        self.plan: Plan = lambda *_: ""
        self.seen: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.capitalized = False
        self.unconditional = ""
        self.lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def fails(self, fault: str, times: int, *, method: str = "") -> None:
        """Let the next requests (of this method) fail, the ones after them pass."""
        left = [times]

        def plan(asked: str, _path: str, _number: int) -> str:
            if left[0] <= 0 or (method and asked != method):
                return ""
            left[0] -= 1
            return fault

        self.seen.clear()
        self.plan = plan

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that hung up is what the tests are about."""


class _Handler(BaseHTTPRequestHandler):
    proxy: FaultyS3
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.proxy.lock:
            self.proxy.seen.append(f"{self.command} {self.path}")
            self.proxy.headers.append({name.lower(): value for name, value in self.headers.items()})
            fault = self.proxy.plan(self.command, self.path, len(self.proxy.seen))
        if self.proxy.unconditional and self.headers.get("If-None-Match"):
            fault = self.proxy.unconditional
        if fault == "reset":
            self.close_connection = True
            return
        if fault == "silent":
            time.sleep(_SILENCE_SECONDS)
            self.close_connection = True
            return
        if fault in STATUS:
            self._refuse(fault)
            return
        status, headers, data = self._forward(body)
        if fault == "lost":
            self._refuse("500")
        else:
            self._answer(status, headers, data, fault)

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.proxy.target, timeout=60)
        connection.request(self.command, self.path, body, dict(self.headers.items()))
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        headers = [(k, v) for k, v in answer.getheaders() if k.lower() not in _HOP]
        if self.command == "HEAD":
            headers.append(("Content-Length", answer.getheader("Content-Length") or "0"))
        return answer.status, headers, data

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, fault: str) -> None:
        if self.proxy.capitalized:
            headers = [("-".join(part.capitalize() for part in name.split("-")), value) for name, value in headers]
        if fault in {"fewer", "shifted"}:
            headers, data = _other_range(headers, data, shifted=fault == "shifted")
        if fault in {"cut", "early"}:
            data = data[: len(data) // 2]
        if fault == "flipped" and data:
            data = bytes([data[0] ^ 1]) + data[1:]
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if fault == "early":  # the end of the connection is that of the body
            self.close_connection = True
            self.send_header("Connection", "close")
        elif self.command != "HEAD":
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if fault == "truncated":
            data = data[: len(data) // 2]
            self.close_connection = True
        self.wfile.write(data)

    def _refuse(self, fault: str) -> None:
        text = f"<Error><Code>{STATUS[fault]}</Code><Message>refused</Message></Error>".encode()
        self._answer(int(fault), [("Content-Type", "application/xml")], b"" if self.command == "HEAD" else text, "")

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815 - http.server's names

    def log_message(self, *_: object) -> None:
        """Stay silent."""


def _other_range(headers: list[tuple[str, str]], data: bytes, *, shifted: bool) -> tuple[list[tuple[str, str]], bytes]:
    """The answer of a store that gives other bytes of the object than it was asked for, and says so."""
    for index, (name, value) in enumerate(headers):
        if name.lower() == "content-range":
            first, total = int(value.split()[1].split("-")[0]), value.split("/")[1]
            data, first = (data[1:], first + 1) if shifted else (data[: len(data) // 2], first)
            headers[index] = (name, f"bytes {first}-{first + len(data) - 1}/{total}")
    return headers, data
