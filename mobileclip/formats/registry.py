"""The program formats: one row says what a format is called, needs and can hold, its folder writes and opens it.

Reading the table loads neither torch nor a runtime.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import PurePath
from types import ModuleType

from mobileclip.errors import ConfigError, DataError
from mobileclip.formats.contract import Tower
from mobileclip.formats.program_ports import Kind


@dataclass(frozen=True)
class Format:
    """One program format.

    Attributes:
        name: As in `export.formats`, and the folder below `mobileclip.formats` with the modules `writer`
            (`write(job)`) and `runtime` (`open_program(path, threads)`).
        suffix: Of its files, with the dot.
        extra: Extra of the project that installs it.
        packages: Import names that must be there, in writing and in running.
        precisions: What each tower can be written in.
        executed: Whether its own runtime runs it here; otherwise it is emulated operation by operation.
        any_rows: Whether a program can take any number of rows; otherwise every call takes as many as it was made for.
        pictures: Whether an image program of one row takes a picture instead of an array.
        environment: Name of the environment its exporter runs in; empty = this one.
    """

    name: str
    suffix: str
    extra: str
    packages: tuple[str, ...]
    precisions: Mapping[Tower, tuple[str, ...]]
    executed: bool = True
    any_rows: bool = False
    pictures: bool = False
    environment: str = ""

    def rows(self, batch: int) -> int:
        """Rows per call of its programs, where `export.batch` asks for `batch`; 0 = any."""
        return batch or (0 if self.any_rows else 1)

    def input_kind(self, tower: Tower, rows: int) -> Kind:
        """What a program of that tower takes; a runtime that takes pictures takes them one by one."""
        return "picture" if self.pictures and tower == "image" and rows == 1 else "array"


FORMATS: dict[str, Format] = {
    row.name: row
    for row in (
        Format(
            "onnx", ".onnx", "export", ("onnx", "onnxruntime", "onnxscript"),
            {"image": ("float32", "float16", "int8_static", "int8_weights"),
             "text": ("float32", "float16", "int8", "int8_weights", "int4_weights")},
            any_rows=True,
        ),
        Format(
            "executorch", ".pte", "executorch", ("executorch", "torchao"),
            # Half precision of the image tower is beyond its budget in this runtime's own kernels.
            {"image": ("float32", "int8_static"), "text": ("float32", "float16", "int8")},
        ),
        Format(
            # On the platforms where its Core ML backend is to be had, executorch itself asks for coremltools.
            "executorch_coreml", ".coreml.pte", "executorch",
            ("executorch", "torchao", "coremltools"),
            {"image": ("float32", "float16", "int8_weights"), "text": ("float32", "float16", "int8_weights")},
            executed=False,
        ),
        Format(
            "litert", ".tflite", "litert", ("ai_edge_litert",),
            {"image": ("float32", "float16", "int8_static", "int8_weights"),
             "text": ("float32", "float16", "int8", "int8_weights")},
            environment="litert",
        ),
        Format(
            "coreml", ".mlpackage", "coreml", ("coremltools",),
            {"image": ("float32", "float16", "int8_weights"), "text": ("float32", "float16", "int8_weights")},
            executed=False, pictures=True,
        ),
        Format(
            "coreai", ".aimodel", "train", (),
            {"image": ("float32", "float16"), "text": ("float32", "float16")},
            executed=False, environment="coreai",
        ),
    )
}  # fmt: skip


def is_installed(name: str) -> bool:
    """Whether a format's packages are all here."""
    return all(find_spec(package) is not None for package in FORMATS[name].packages)


def require(name: str) -> Format:
    """A format whose packages are all here.

    Raises:
        ConfigError: With the line that installs what is missing.
    """
    row = FORMATS[name]
    missing = [package for package in row.packages if find_spec(package) is None]
    if missing:
        raise ConfigError(
            f"export.formats: '{name}' needs the package '{missing[0]}', which is not installed; "
            f"install it with: pip install 'mobileclip-pipelines[{row.extra}]'."
        )
    return row


def writer(name: str) -> ModuleType:
    """The module that writes the format; heavy, so loaded when it is asked for.

    Raises:
        ConfigError: A package is missing.
    """
    return importlib.import_module(f"mobileclip.formats.{require(name).name}.writer")


def opener(path: PurePath) -> ModuleType:
    """The module that opens a program, by the longest suffix of its name: `.coreml.pte` before `.pte`.

    Raises:
        DataError: No format has that suffix.
        ConfigError: A package is missing.
    """
    found = [row for row in FORMATS.values() if path.name.endswith(row.suffix)]
    if found:
        row = require(max(found, key=lambda row: len(row.suffix)).name)
        return importlib.import_module(f"mobileclip.formats.{row.name}.runtime")
    known = ", ".join(sorted(row.suffix for row in FORMATS.values()))
    raise DataError(f"programs: '{path.name}' is of no known format, want {known}.")
