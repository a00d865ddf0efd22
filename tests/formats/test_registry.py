"""The table of formats: complete, and a sentence with the install line for what is missing."""

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args

import pytest

from mobileclip.config import Export
from mobileclip.errors import DataError
from mobileclip.formats import registry

ROOT = Path(__file__).parents[2]


def test_every_row_has_its_modules_and_its_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for row in registry.FORMATS.values():
        assert callable(importlib.import_module(f"mobileclip.formats.{row.name}.writer").write)
        assert callable(importlib.import_module(f"mobileclip.formats.{row.name}.runtime").open_program)
        assert row.extra in extras


def test_configuration_knows_every_format_and_precision():
    fields = Export.model_fields
    formats = get_args(get_args(fields["formats"].annotation)[0])
    precisions = set(get_args(get_args(fields["precisions"].annotation)[0]))
    assert set(formats) == set(registry.FORMATS)
    assert precisions == {p for row in registry.FORMATS.values() for some in row.precisions.values() for p in some}


def test_missing_package_is_reported_with_the_install_line():
    # An interpreter without the extra: the package's finder is told that it is not there.
    script = (
        "import importlib.util, sys; find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'coremltools' else find(name, *rest)\n"
        "from mobileclip.formats import registry\n"
        "from mobileclip.errors import ConfigError\n"
        "try:\n    registry.require('coreml')\n"
        "except ConfigError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == (
        "export.formats: 'coreml' needs the package 'coremltools', which is not installed; "
        "install it with: pip install 'mobileclip-pipelines[coreml]'."
    )


def test_unknown_suffix():
    known = r"\.aimodel, \.coreml\.pte, \.mlpackage, \.onnx, \.pte, \.tflite"
    with pytest.raises(DataError, match=rf"'x\.exe' is of no known format, want {known}"):
        registry.opener(Path("x.exe"))


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("text.float16.coreml.pte", "executorch_coreml"), ("text.float16.pte", "executorch"),
        ("coreml.pte", "executorch"), ("text.coreml.onnx", "onnx"),
        ("text.float16.mlpackage", "coreml"),
    ],
)  # fmt: skip
def test_longest_suffix_counts(name, folder):
    assert registry.opener(Path("folder.coreml.pte") / name).__name__ == f"mobileclip.formats.{folder}.runtime"


def test_reading_the_table_loads_nothing_heavy():
    heavy = {"torch", "onnx", "onnxruntime", "coremltools", "executorch", "ai_edge_litert"}
    script = f"import sys; import mobileclip.formats.registry; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_require_gives_the_row():
    assert registry.require("onnx").suffix == ".onnx"
    with pytest.raises(KeyError):
        registry.require("tflow")
