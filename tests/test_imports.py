"""Layers: who may import what, over the whole import graph, and what stays free of torch."""

import ast
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
# A library and the only modules of `mobileclip` that may import it.
ONLY = {
    "mlflow": {"mobileclip.tracking", "mobileclip.student_pyfunc"},
    "boto3": {"mobileclip.storage.s3"},
    "botocore": {"mobileclip.storage.s3"},
    "kubernetes": {"mobileclip.cluster"},
    "kubeflow": {"mobileclip.cluster"},
    "kfp": set(),
    "dvc": set(),
}
LIGHT = (
    "config", "errors", "entry", "__main__", "manifest", "chain", "storage", "commands", "params_file", "parallel",
    "ranks", "report", "tools",
)  # fmt: skip
HEAVY = {
    "torch",
    "torchvision",
    "open_clip",
    "timm",
    "transformers",
    "mlflow",
    "onnx",
    "onnxruntime",
    "matplotlib",
    "boto3",
}


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("mobileclip", include_external_packages=True, cache_dir=None)


@pytest.mark.parametrize("library", ONLY)
def test_only_one_file_imports_it(graph, library):
    importers = graph.find_modules_that_directly_import(library) if library in graph.modules else set()
    assert importers <= ONLY[library]


def test_stages_never_import_each_other(graph):
    stages = graph.find_children("mobileclip.stages")
    assert len(stages) == 11
    for stage in stages:
        assert not graph.find_modules_directly_imported_by(stage) & (stages - {stage})


def test_the_work_knows_nothing_of_doors_and_stages(graph):
    above = {
        "mobileclip.entry",
        "mobileclip.commands",
        "mobileclip.tools",
        "mobileclip.__main__",
        "mobileclip.stages",
        "mobileclip.tracking",
    }
    for package in ("data", "models", "training", "evaluation", "formats"):
        for module in graph.find_descendants(f"mobileclip.{package}"):
            imported = graph.find_modules_directly_imported_by(module)
            assert not {name for name in imported if name in above or name.startswith("mobileclip.stages.")}, module


def test_stages_know_nothing_of_tracking_and_doors(graph):
    for stage in graph.find_children("mobileclip.stages") - {"mobileclip.stages.promote"}:
        imported = graph.find_modules_directly_imported_by(stage)
        assert not imported & {"mobileclip.tracking", "mobileclip.entry", "mobileclip.commands", "mobileclip.tools"}, (
            stage
        )


def test_there_is_no_circle_of_imports_between_packages(graph):
    """At module level: imports within functions may close one (the door opens tracking, tracking asks for digests)."""
    packages = ("data", "models", "training", "evaluation", "formats", "stages")
    for lower, upper in [
        ("models", "training"),
        ("models", "stages"),
        ("data", "training"),
        ("data", "stages"),
        ("training", "stages"),
    ]:
        assert lower in packages
        assert upper in packages
        chain = graph.find_shortest_chain(f"mobileclip.{lower}", f"mobileclip.{upper}", as_packages=True)
        assert chain is None, chain


@pytest.mark.parametrize("folder", ["components", "pipelines"])
def test_wrappers_alone_know_kubeflow_and_nothing_imports_dvc(folder):
    for path in (ROOT / folder).rglob("*.py"):
        names = {
            alias.name.partition(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        names |= {
            (node.module or "").partition(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom)
        }
        assert not names & {"dvc", "mlflow", "boto3"}, path


def test_light_modules_load_nothing_heavy():
    imports = "; ".join(f"import mobileclip.{name}" for name in LIGHT)
    script = f"import sys; {imports}; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_no_file_prints_and_none_is_too_long():
    for path in (ROOT / "mobileclip").rglob("*.py"):
        tree = ast.parse(path.read_text())
        calls = [
            n
            for n in ast.walk(tree)
            if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == "print"
        ]
        assert not calls, path


def test_nothing_unpickles():
    """`torch.load` may only be called with weights_only=True, and pickle is imported nowhere."""
    for path in (ROOT / "mobileclip").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not {a.name for a in node.names} & {"pickle", "dill", "cloudpickle", "joblib"}, path
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert "weights_only=True" in ast.unparse(node), path
