"""Serve the page of a bundle or export on this machine: browsers run no modules from a file path."""

import functools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mobileclip.errors import ConfigError
from mobileclip.formats import contract
from mobileclip.formats.bundle import archive as bundle
from mobileclip.formats.bundle import web

_TYPES = {".mjs": "text/javascript", ".js": "text/javascript", ".wasm": "application/wasm", ".md": "text/markdown"}
# Isolation gives WebAssembly its threads, which browsers grant on https and localhost alone.
_HEADERS = {
    # The page's own policy once more: as a header it holds in its workers, too.
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob: data:; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


@contextmanager
def serving(path: Path, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[ThreadingHTTPServer]:
    """A server of a bundle or export folder; a folder without a page, or a bundle, gets this version's.

    Args:
        path: `mobileclip-STUDENT-VERSION.zip` or an export folder.
        host: Address to listen on; `0.0.0.0` lets phones of the same network in.
        port: Port; 0 = any free one.

    Yields:
        The server, not yet serving: call its `serve_forever`.

    Raises:
        ConfigError: Address or port cannot be had.
        DataError: There is no bundle or export.
        IntegrityError: The bundle is damaged.
    """
    folder = bundle.unpacked(path) if str(path).endswith(bundle.SUFFIX) else path
    contract.read(folder)
    with tempfile.TemporaryDirectory(prefix="mobileclip-page-") as name:
        page = folder / web.FOLDER
        if not (page / "index.html").is_file():
            web.write(Path(name))
            page = Path(name) / web.FOLDER
        handler = functools.partial(_Handler, directory=str(folder), page=page)
        try:
            server = ThreadingHTTPServer((host, port), handler)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"page: cannot listen on {host}:{port}: {error}.") from None
        server.daemon_threads = True
        with server:
            yield server


def address(server: ThreadingHTTPServer) -> str:
    """Where the page is."""
    host, port = server.server_address[:2]
    return f"http://{'localhost' if host in {'127.0.0.1', '0.0.0.0'} else host!s}:{port}/{web.FOLDER}/"


class _Handler(SimpleHTTPRequestHandler):
    """Files of one folder, and `page/` from another."""

    def __init__(self, *args: Any, page: Path, **kwargs: Any) -> None:
        self._page = page
        super().__init__(*args, **kwargs)

    extensions_map = SimpleHTTPRequestHandler.extensions_map | _TYPES

    def do_GET(self) -> None:
        """A file; the root leads to the page."""
        if urlsplit(self.path).path in {"/", f"/{web.FOLDER}"}:
            self.send_response(HTTPStatus.FOUND)
            self.send_header("Location", f"/{web.FOLDER}/")
            self.end_headers()
            return
        super().do_GET()

    def translate_path(self, path: str) -> str:
        """The file of a URL; nothing outside the two folders."""
        relative = unquote(urlsplit(path).path).lstrip("/").removesuffix("/") or "."
        if relative == web.FOLDER:
            relative = f"{web.FOLDER}/index.html"
        try:
            contract.inside(relative)
        except ValueError:
            return str(self._page / "nothing-here")
        first, _, rest = relative.partition("/")
        target = self._page / rest if first == web.FOLDER else Path(self.directory) / relative
        return str(target)

    def list_directory(self, path: Any) -> None:  # noqa: ARG002 - the base class's signature
        """No listings."""
        self.send_error(HTTPStatus.NOT_FOUND)

    def end_headers(self) -> None:
        """Add the headers that isolate the page."""
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a page asks for a dozen files."""
