"""What is packed with a student must stand on its own."""

import ast
from pathlib import Path

import pytest

import mobileclip

PACKAGE = Path(mobileclip.__file__).parent


@pytest.mark.parametrize("path", ["promotion/student_pyfunc.py", "models/architectures.py"])
def test_packed_code_imports_nothing_of_this_package(path):
    tree = ast.parse((PACKAGE / path).read_text())
    imported = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imported += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert [name for name in imported if name.split(".")[0] == "mobileclip"] == []
