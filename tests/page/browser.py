"""A real Chromium, driven through its debugging pipe: files into inputs, answers out, pictures of the page."""

import base64
import io
import itertools
import json
import os
import select
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

BROWSER = Path("/usr/bin/chromium")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1", "--remote-debugging-pipe",
)  # fmt: skip


class Browser:
    """One tab."""

    def __init__(self, send, receive):
        self._send, self._receive, self._buffer = send, receive, b""
        self._ids = itertools.count(1)
        self.session = None
        self.requests, self.console = [], []

    def call(self, method, *, timeout=60.0, **params):
        """Send a command and wait for its answer; raises what the browser says."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + timeout
        while True:
            answer = self._next(deadline, method)
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer.get('error')}"
                return answer["result"]
            self._note(answer)

    def open(self, url):
        """Open a tab and wait until it has loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Network", "Runtime", "Log", "Page", "DOM"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def evaluate(self, script, *, timeout=60.0):
        """The value of an expression; promises are awaited."""
        got = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, timeout=timeout
        )  # fmt: skip
        details = got.get("exceptionDetails")
        assert not details, details.get("exception", {}).get("description", details)
        return got["result"].get("value")

    def wait(self, script, *, seconds=90.0):
        """Wait until an expression is true."""
        deadline = time.monotonic() + seconds
        while not self.evaluate(script):
            assert time.monotonic() < deadline, f"never true: {script}; console {self.console}"
            time.sleep(0.1)

    def put_files(self, selector, paths):
        """Choose files in an input."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    def size(self, width, height, *, dark=False, scale=1):
        """Width and height of the window [CSS pixels], colors, pixels per CSS pixel."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale,
            mobile=width < 600,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path=None):
        """Pixels [height, width, 3]."""
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        if path is not None:
            path.write_bytes(data)
        return np.array(Image.open(io.BytesIO(data)).convert("RGB"))

    def _note(self, message):
        params = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif message.get("method") == "Runtime.consoleAPICalled" and params["type"] in {"error", "warning"}:
            self.console.append(" ".join(str(a.get("value", a.get("description"))) for a in params["args"]))
        elif message.get("method") == "Runtime.exceptionThrown":
            self.console.append(str(params["exceptionDetails"].get("exception", params)))
        elif message.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.console.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")

    def _next(self, deadline, method):
        while b"\0" not in self._buffer:
            left = deadline - time.monotonic()
            assert left > 0, f"no answer to {method}"
            if select.select([self._receive], [], [], left)[0]:
                part = os.read(self._receive, 1 << 20)
                assert part, "the browser has ended"
                self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


@contextmanager
def chromium(folder, *flags):
    """A browser with a fresh profile in `folder`; ended afterwards."""
    assert BROWSER.is_file(), f"no {BROWSER}: the page's tests need a real browser (Debian package `chromium`)"
    to_read, send = os.pipe()
    receive, to_write = os.pipe()
    script = f'exec "$@" 3<&{to_read} 4>&{to_write}'
    command = ["bash", "-c", script, "bash", str(BROWSER), *FLAGS, f"--user-data-dir={folder}", *flags]
    process = subprocess.Popen(command, pass_fds=(to_read, to_write), stderr=subprocess.DEVNULL)
    os.close(to_read)
    os.close(to_write)
    browser = Browser(send, receive)
    try:
        yield browser
    finally:
        browser.session = None
        os.write(send, json.dumps({"id": 0, "method": "Browser.close"}).encode() + b"\0")
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(send)
        os.close(receive)
