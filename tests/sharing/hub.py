"""A stand-in for the Hugging Face hub: the calls that making a repository and committing files to it take."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Json(BaseHTTPRequestHandler):
    def _answer(self, value, code=200):
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        """Say nothing."""


@contextmanager
def serving(*, status=200):
    """Its address, the repositories that were asked for, and the files that were committed."""
    repositories, files = [], {}

    class Hub(_Json):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if status != 200:
                return self._answer({"error": "no"}, status)
            if self.path == "/api/repos/create":
                repositories.append(json.loads(body))
                return self._answer({"url": f"{address}/{repositories[-1]['organization']}/{repositories[-1]['name']}"})
            if "/preupload/" in self.path:
                asked = [file["path"] for file in json.loads(body)["files"]]
                rows = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in asked]
                return self._answer({"files": rows})
            if "/commit/" in self.path:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                return self._answer({"commitUrl": f"{address}/owner/name/commit/1", "commitOid": "1"})
            return self._answer({"errors": [], "warnings": []})

        def do_GET(self):
            self._answer({"id": "owner/name", "sha": "0", "siblings": []}, status)

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield address, repositories, files
        finally:
            server.shutdown()
            thread.join()
