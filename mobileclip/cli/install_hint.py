"""Which extra of the package installs a module."""

import re
from collections import Counter
from importlib import metadata

_PACKAGE = "mobileclip-pipelines"
_DISTRIBUTIONS = {"open_clip": "open_clip_torch"}
"""Modules that are not called like the distribution they come from."""
_OF_EXTRA = re.compile(r"""^(?P<name>[\w.-]+).*\bextra\s*==\s*["'](?P<extra>[\w-]+)["']""")


def install_line(module: str) -> str:
    """The command that installs a missing module; empty where no extra of this package has it.

    Args:
        module: Name as `ModuleNotFoundError` gives it.
    """
    top = module.split(".", maxsplit=1)[0]
    wanted = _normal(_DISTRIBUTIONS.get(top, top))
    try:
        requirements = metadata.requires(_PACKAGE) or []
    except metadata.PackageNotFoundError:
        return ""
    pairs = [(_normal(m["name"]), m["extra"]) for m in map(_OF_EXTRA.match, requirements) if m]
    sizes = Counter(extra for _, extra in pairs)
    having = [extra for name, extra in pairs if name == wanted]
    # `all` has it, too: the smallest one is meant.
    return f"pip install '{_PACKAGE}[{min(having, key=lambda extra: sizes[extra])}]'" if having else ""


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
