"""Layers: who may import what, over the whole import graph, and what stays free of torch."""

import ast
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
# A library and the only modules of `mobileclip` that may import it; a package stands for all that is in it.
ONLY = {
    "mlflow": ("mobileclip.tracking", "mobileclip.promotion.student_pyfunc"),
    "boto3": ("mobileclip.storage",),
    "botocore": ("mobileclip.storage",),
    "kubernetes": ("mobileclip.kubeflow",),
    "kubeflow": ("mobileclip.kubeflow",),
    "kfp": (),
    "dvc": (),
}
# From the bottom up: a package imports those before it, never those behind it.
LAYERS = (
    "errors", "stopping", "storage", "config", "parallel", "chain", "manifest", "lineage", "data", "convert", "models",
    "tracking", "evaluation", "planning", "training", "formats", "promotion", "reports", "search", "sharing",
    "preflight", "stages", "entry", "kubeflow", "cli",
    "__main__",
)  # fmt: skip
# Root modules: the door, and what all rooms share.
ROOT_MODULES = {"__init__", "__main__", "chain", "entry", "errors", "manifest", "parallel", "stopping"}
LIGHT = (
    "config", "errors", "entry", "__main__", "manifest", "chain", "storage",
    "cli.app", "cli.registry", "cli.chain", "cli.data", "cli.share", "cli.use",
    "cli.folder", "cli.plan", "cli.programs", "cli.scores", "cli.stage", "cli.versions",
    "config.params_file", "parallel", "tracking.protocol", "lineage.record", "data.images",
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


def _room(module: str) -> str:
    return module.split(".")[1]


@pytest.fixture(scope="module")
def arrows(graph) -> dict[tuple[str, str], list[str]]:
    """Every pair of rooms of which the first imports the second, with the imports, those within functions included."""
    found: dict[tuple[str, str], list[str]] = {}
    for module in graph.modules:
        if not module.startswith("mobileclip."):
            continue
        for imported in graph.find_modules_directly_imported_by(module):
            if imported.startswith("mobileclip.") and _room(module) != _room(imported):
                found.setdefault((_room(module), _room(imported)), []).append(f"{module} -> {imported}")
    return found


@pytest.mark.parametrize("library", ONLY)
def test_only_its_package_imports_a_library(graph, library):
    importers = graph.find_modules_that_directly_import(library) if library in graph.modules else set()
    strangers = {name for name in importers if not any(f"{name}.".startswith(f"{place}.") for place in ONLY[library])}
    assert not strangers


def test_the_root_holds_the_door_and_what_all_share():
    assert {path.stem for path in (ROOT / "mobileclip").glob("*.py")} == ROOT_MODULES


def test_every_room_has_its_layer(graph):
    assert {_room(name) for name in graph.modules if name.startswith("mobileclip.")} == set(LAYERS)


def test_rooms_import_only_what_lies_below_them(arrows):
    upward = {pair: imports for pair, imports in arrows.items() if LAYERS.index(pair[0]) < LAYERS.index(pair[1])}
    assert upward == {}


def test_no_two_rooms_import_each_other(arrows):
    assert not [pair for pair in arrows if pair[::-1] in arrows]


def test_there_is_no_circle_of_imports(graph):
    """Between any two modules, imports within functions included."""
    below = {name for name in graph.modules if name.startswith("mobileclip")}
    for module in sorted(below):
        for imported in graph.find_modules_directly_imported_by(module) & below:
            back = graph.find_shortest_chain(imported, module)
            assert back is None, (module, back)


def test_every_format_has_the_same_files():
    from mobileclip.formats.registry import FORMATS

    for name in FORMATS:
        assert {"writer", "runtime"} <= {path.stem for path in (ROOT / "mobileclip" / "formats" / name).glob("*.py")}, (
            name
        )


def test_stages_never_import_each_other(graph):
    stages = graph.find_children("mobileclip.stages")
    assert len(stages) == 11
    for stage in stages:
        assert not graph.find_modules_directly_imported_by(stage) & (stages - {stage})


def test_only_promote_knows_tracking_of_the_stages(graph):
    for stage in graph.find_children("mobileclip.stages") - {"mobileclip.stages.promote"}:
        imported = graph.find_modules_directly_imported_by(stage)
        assert not {name for name in imported if name.startswith("mobileclip.tracking")} - {
            "mobileclip.tracking.protocol"
        }


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
