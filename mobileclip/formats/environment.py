"""Run an exporter whose pins conflict with this project's in an environment of its own.

An environment is a folder made of a locked requirements file beside this module (`environments/NAME.txt`) by
`mobileclip environment NAME`. A worker is a script beside this module that imports nothing of the project; it gets a
folder with `request.json` and its inputs, and leaves its outputs there. Only files cross: arrays as `.npz`, traced
programs as `.pt2`, which the worker reads and this process has just written.
"""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO, cast

from mobileclip.errors import ConfigError, ExportError

_HERE = Path(__file__).parent
_READY = "ready"
_KEPT_VARIABLES = ("PATH", "HOME", "LANG", "TMPDIR", "SSL_CERT_FILE", "OMP_NUM_THREADS")


def names() -> list[str]:
    """The environments there are requirements of."""
    return sorted(path.stem for path in (_HERE / "environments").glob("*.txt"))


def requirements(name: str) -> Path:
    """The locked requirements of an environment.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in names():
        raise ConfigError(f"environment: got '{name}', want one of {', '.join(names())}.")
    return _HERE / "environments" / f"{name}.txt"


def pins(name: str, *packages: str) -> dict[str, str]:
    """Versions that an environment's requirements lock, of these packages."""
    lines = requirements(name).read_text(encoding="utf-8").splitlines()
    locked = dict(line.split()[0].split("==") for line in lines if "==" in line.split(" ")[0])
    return {package: locked[package] for package in packages}


def folder(name: str) -> Path:
    """Where an environment lies: one folder for each content of the requirements, below MOBILECLIP_ENVIRONMENTS."""
    digest = hashlib.sha256(requirements(name).read_bytes()).hexdigest()[:12]
    root = os.environ.get("MOBILECLIP_ENVIRONMENTS") or Path.home() / ".cache" / "mobileclip" / "environments"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return Path(root) / f"{name}-{digest}-py{version}"


def python(name: str) -> Path:
    """The environment's interpreter.

    Raises:
        ConfigError: The environment was not made.
    """
    place = folder(name)
    if not (place / _READY).is_file():
        raise ConfigError(
            f"export.formats: '{name}' needs an environment of its own, which is not made yet; "
            f"make it with: mobileclip environment {name}."
        )
    return place / "bin" / "python"


def make(name: str) -> Path:
    """Make an environment, or do nothing where it is there.

    Raises:
        ConfigError: There is none of that name.
        ExportError: Its packages cannot be installed.
    """
    place = folder(name)
    if (place / _READY).is_file():
        return place
    shutil.rmtree(place, ignore_errors=True)
    venv.create(place, with_pip=shutil.which("uv") is None, symlinks=True)
    interpreter = place / "bin" / "python"
    lines = ["-r", str(requirements(name))]
    uv = shutil.which("uv")
    # A locked package says that newer Pythons have no need of it, and its dependents want it all the same. uv regards
    # no such upper bounds; pip does, unless told.
    command = [uv, "pip", "install", "--quiet", "--python", str(interpreter), *lines] if uv else [
        str(interpreter), "-m", "pip", "install", "--quiet", "--ignore-requires-python", *lines
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ExportError(f"environment: {name} cannot be installed: {_last_line(done.stderr)}")
    (place / _READY).touch()
    return place


def run(name: str, script: Path, request: dict[str, Any], exchange: Path) -> dict[str, Any]:
    """Run a worker.

    Args:
        name: Its environment.
        script: The worker, called with the exchange folder.
        request: What it is to do.
        exchange: Folder with its inputs.

    Returns:
        The worker's `reply.json`.

    Raises:
        ConfigError: The environment was not made.
        ExportError: The worker failed.
    """
    (exchange / "request.json").write_text(json.dumps(request), encoding="utf-8")
    done = subprocess.run(
        _command(name, script, exchange), capture_output=True, text=True, env=_variables(), check=False
    )  # fmt: skip
    reply = exchange / "reply.json"
    if done.returncode or not reply.is_file():
        raise _failed(script, done.stderr)
    return dict(json.loads(reply.read_text(encoding="utf-8")))


@contextlib.contextmanager
def session(name: str, script: Path, exchange: Path) -> Iterator[Callable[[dict[str, Any]], dict[str, Any]]]:
    """Run a worker that answers one request after the other: its start costs more than most of them.

    The worker reads requests as lines of JSON and writes a line for each; it ends with its input.

    Args:
        name: Its environment.
        script: The worker, called with the exchange folder.
        exchange: Folder with its inputs.

    Yields:
        A function that takes a request and gives the worker's reply; it raises ExportError where the worker failed.

    Raises:
        ConfigError: The environment was not made.
    """
    errors = exchange / "errors.txt"
    with errors.open("w", encoding="utf-8") as stream, subprocess.Popen(
        _command(name, script, exchange), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream, text=True,
        env=_variables(),
    ) as worker:  # fmt: skip
        requests, replies = cast("TextIO", worker.stdin), cast("TextIO", worker.stdout)

        def ask(request: dict[str, Any]) -> dict[str, Any]:
            with contextlib.suppress(BrokenPipeError):  # it has ended: there is no line to read either
                requests.write(json.dumps(request) + "\n")
                requests.flush()
            line = replies.readline()
            if not line:
                worker.wait()
                raise _failed(script, errors.read_text(encoding="utf-8", errors="replace"))
            return dict(json.loads(line))

        try:
            yield ask
        except BaseException:
            worker.kill()  # it may be in the middle of long work
            raise
        finally:
            with contextlib.suppress(BrokenPipeError):  # of a request that a dead worker never read
                requests.close()


def _command(name: str, script: Path, exchange: Path) -> list[str]:
    return [str(python(name)), "-I", str(script), str(exchange)]


def _variables() -> dict[str, str]:
    """Few: the worker must not find this environment's packages, nor see credentials."""
    return {key: os.environ[key] for key in _KEPT_VARIABLES if key in os.environ}


def _failed(script: Path, errors: str) -> ExportError:
    return ExportError(f"{script.stem}: failed in its environment: {_last_line(errors)}")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[-1] if lines else "no message")[:300]
