"""The code of a stage: what it reaches counts, what it does not reach leaves its record alone."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

import mobileclip
from mobileclip import manifest
from mobileclip.config import STAGES
from mobileclip.lineage import code
from mobileclip.storage import digest_file

PACKAGE = Path(mobileclip.__file__).parent


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_holds_every_module_that_its_names_come_from(stage):
    """Against the import graph of another reader; a package that hands a name on counts as where the name is from."""
    graph = grimp.build_graph("mobileclip", cache_dir=None)
    found = {Path(name) for name in code.code_files(stage)}
    waiting, reached = [f"mobileclip.stages.{stage}"], set()
    while waiting:
        module = waiting.pop()
        if module in reached:
            continue
        reached.add(module)
        path = PACKAGE.parent.joinpath(*module.split("."))
        if path.is_dir():
            continue  # a package: those of its modules that are imported from stand for themselves
        assert path.with_suffix(".py").relative_to(PACKAGE.parent) in found
        waiting += sorted(graph.find_modules_directly_imported_by(module))


def test_the_page_concerns_export_and_its_reader_alone():
    page = "mobileclip/formats/bundle/page/view.js"
    assert {stage for stage in STAGES if page in code.code_files(stage)} == {"export", "promote"}
    assert PACKAGE.parent.joinpath(page).is_file()


def test_the_losses_concern_what_trains():
    losses = {stage for stage in STAGES if "mobileclip/training/losses.py" in code.code_files(stage)}
    assert {"distill", "train_teacher"} <= losses
    assert not losses & {"prepare", "filter", "caption", "reinforce"}


def test_style_sheets_and_configurations_count_where_they_are_read():
    assert "mobileclip/reports/report.css" in code.code_files("evaluate")
    assert "mobileclip/reports/report.css" not in code.code_files("distill")
    assert "mobileclip/models/configs/tiny-mci.json" in code.code_files("distill")
    assert "mobileclip/formats/environments/litert.txt" in code.code_files("export")


def test_what_is_loaded_by_a_made_up_name_is_listed():
    """Every place that loads a module or script by a name made at run time has its row, or runs the stages."""
    loads = re.compile(r"import_module\(|with_name\(\"\w+\.py\"\)")
    found = {p.relative_to(PACKAGE.parent) for p in PACKAGE.rglob("*.py") if loads.search(p.read_text())}
    listed = {Path(*name.split(".")).with_suffix(".py") for name in code._LOADED}
    # Commands lie above the stages, the door starts from the stage itself, the served model loads the copies that lie
    # beside it, and what open_clip's support loads is imported by name in models/building.py.
    names = (
        "cli/app", "cli/kubeflow", "entry", "lineage/code", "models/open_clip_support", "promotion/student_pyfunc",
    )  # fmt: skip
    others = {Path("mobileclip", name).with_suffix(".py") for name in names}
    assert found - others == listed


def test_an_edit_changes_the_digest_of_the_stages_that_reach_it(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "mobileclip", ignore=shutil.ignore_patterns("__pycache__"))
    script = "from mobileclip.lineage.code import code_digest as d; print(d('prepare'), d('distill'))"

    def digests() -> list[str]:
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={"PATH": ""}, check=True)
        return done.stdout.split()

    before = digests()
    assert before == [code.code_digest("prepare"), code.code_digest("distill")]
    path = tmp_path / "mobileclip/training/losses.py"
    path.write_text(path.read_text() + "\n# changed\n")
    assert [old == new for old, new in zip(before, digests(), strict=True)] == [True, False]


def test_the_package_digest_is_that_of_all_its_files():
    suffixes = {".py", ".json", ".html", ".css", ".js", ".svg", ".yaml", ".in", ".txt"}
    files = {
        p.relative_to(PACKAGE.parent).as_posix(): digest_file(p) for p in PACKAGE.rglob("*") if p.suffix in suffixes
    }
    assert code.package_digest() == manifest.spec_digest(files)
