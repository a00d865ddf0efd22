"""The code a stage runs: the files that its module can reach by import, and their digest.

A record holds the digest of these files alone, so an edit elsewhere leaves a finished stage current: a comment in the
page's JavaScript concerns `export`, never a training of days. Imports are read from the source, those within functions
included; what is loaded by a name that is put together at run time stands in `_LOADED`.
"""

import functools
import re
from collections.abc import Iterator
from pathlib import Path

from mobileclip import manifest, storage

_ROOT = Path(__file__).parents[1]
_DATA = frozenset({".json", ".html", ".css", ".js", ".svg", ".yaml", ".in", ".txt"})
_CODE = frozenset({".py"}) | _DATA
_IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+(?P<package>mobileclip[\w.]*)[ \t]+import[ \t]+(?P<names>\([^)]*\)|[^\n]*)"
    r"|import[ \t]+(?P<module>mobileclip[\w.]*))",
    re.MULTILINE,
)
# A module named whole in a string: `python -m`, a registry of names.
_NAMED = re.compile(r"""["'](mobileclip(?:\.\w+)+)["']""")
_READS_DATA = re.compile(r"\b__file__\b|\bimportlib\.resources\b|\bimport resources\b")
_LOADED = {
    "mobileclip.formats.registry": ("mobileclip/formats/*/*.py",),
    "mobileclip.formats.coreai.runtime": ("mobileclip/formats/coreai/worker.py",),
    "mobileclip.formats.litert.writer": ("mobileclip/formats/litert/worker.py",),
    "mobileclip.promotion.student_model": (
        "mobileclip/promotion/student_pyfunc.py",
        "mobileclip/models/architectures.py",
        "mobileclip/models/text_repmixer.py",
    ),
}
"""Modules that load others by a name made at run time, and what they load, as patterns of paths."""


def code_digest(stage: str) -> str:
    """Digest of the code that a stage can reach.

    Args:
        stage: A name of `mobileclip.config.STAGES`.
    """
    return module_digest(f"mobileclip.stages.{stage}")


def module_digest(module: str) -> str:
    """Digest of the code that a module can reach."""
    return manifest.spec_digest(_hashes(module))


def package_digest() -> str:
    """Digest of the whole installed package: a run in containers names the image's library by it."""
    return manifest.spec_digest({_name(path): _hash(path) for path in sorted(_ROOT.rglob("*")) if path.suffix in _CODE})


def code_files(stage: str) -> dict[str, str]:
    """sha256 of every file that a stage can reach, by its path below the package's parent folder.

    Args:
        stage: A name of `mobileclip.config.STAGES`.
    """
    return _hashes(f"mobileclip.stages.{stage}")


def _hashes(module: str) -> dict[str, str]:
    return {_name(path): _hash(path) for path in sorted(reachable(module))}


@functools.cache
def reachable(module: str) -> frozenset[Path]:
    """Files that a module can reach by import, itself and the data files beside modules that read some included."""
    found: set[Path] = set()
    waiting = [module]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        path = _file(name)
        if path is None:
            continue
        found.add(path)
        text = _text(path)
        if _READS_DATA.search(text):
            found.update(_data_files(path.parent))
        waiting += _imported(name, text)
    return frozenset(found)


def _imported(module: str, text: str) -> Iterator[str]:
    for match in _IMPORT.finditer(text):
        if match["module"]:
            yield match["module"]
            continue
        for name in re.findall(r"(\w+)(?:[ \t]+as[ \t]+\w+)?[ \t]*(?:,|\)|#|$)", match["names"], re.MULTILINE):
            yield _defining(match["package"], name)
    yield from _NAMED.findall(text)
    for pattern in _LOADED.get(module, ()):
        yield from (_module(path) for path in sorted(_ROOT.parent.glob(pattern)))


@functools.cache
def _defining(package: str, name: str) -> str:
    """The module that a name comes from: a submodule, or what a package's `__init__` takes it from, else `__init__`."""
    if _file(f"{package}.{name}"):
        return f"{package}.{name}"
    path = _file(package)
    if path is not None and path.name == "__init__.py":
        for match in _IMPORT.finditer(_text(path)):
            if match["package"] and re.search(rf"\b{name}\b", match["names"]):
                return _defining(match["package"], name)
    return package


@functools.cache
def _file(module: str) -> Path | None:
    base = _ROOT.parent.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def _module(path: Path) -> str:
    parts = path.relative_to(_ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _data_files(folder: Path) -> Iterator[Path]:
    """Data files of a package folder, those of its subfolders that are no packages included."""
    for path in folder.iterdir():
        if path.is_dir() and not (path / "__init__.py").exists():
            yield from _data_files(path)
        elif path.suffix in _DATA:
            yield path


def _name(path: Path) -> str:
    return path.relative_to(_ROOT.parent).as_posix()


@functools.cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@functools.cache
def _hash(path: Path) -> str:
    return storage.digest_file(path)
