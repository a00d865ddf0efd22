"""Three doors, one chain: plain CLI, `dvc repro` and the Kubeflow pipeline leave the same records, byte for byte."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mobileclip.chain import CHAIN
from tests.tiny_chain import params, write_params

ROOT = Path(__file__).parents[1]
STAGES = [row.stage for row in CHAIN]
SOURCE, TOWERS = "data/raw/shapes", "data/raw/shapes/towers"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


class Project:
    """A copy of the project in a git repository of its own, with a small dataset."""

    def __init__(self, folder: Path, source: Path) -> None:
        self.folder = folder
        for package in ("mobileclip", "components", "pipelines"):
            shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(source, folder / SOURCE)
        (folder / TOWERS).mkdir()
        (folder / TOWERS / "README").write_text("no teacher of this chain starts from a pretrained tower\n")
        write_params(folder / "params.yaml")
        file = yaml.safe_load((ROOT / "dvc.yaml").read_text())
        file["vars"] = [{"params": "params.yaml", "source": SOURCE, "towers": TOWERS, "root": "runs/dvc"}]
        (folder / "dvc.yaml").write_text(yaml.safe_dump(file, sort_keys=False))
        for name in (".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore"):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
        self.run("git", "init", "-q")

    def run(self, *command: str, door: str = "none") -> str:
        """Run a command with this copy of the library and a registry per door; return what it says."""
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.folder),
            "PYTHONDONTWRITEBYTECODE": "1",
            "MOBILECLIP_PROCESSES": "1",
            "MOBILECLIP_TRACKING": "off",
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.folder / door}.db",
        }
        done = subprocess.run(
            command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-6000:]}"
        return re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)

    def cli(self) -> str:
        """The plain command line."""
        place = ["--root", "runs/cli", "--source", SOURCE, "--towers", TOWERS]
        return self.run(sys.executable, "-m", "mobileclip", "run", "--params", "params.yaml", *place, door="cli")

    def dvc(self) -> str:
        """`dvc repro`."""
        return self.run("dvc", "repro", door="dvc")

    def kubeflow(self) -> str:
        """The Kubeflow pipeline on the SDK's local runner."""
        place = ["--root", "runs/kfp", "--source", SOURCE, "--towers", TOWERS, "--groups", "2"]
        command = [sys.executable, "-m", "pipelines.run", "--local", "--params", "params.yaml"]
        return self.run(*command, *place, door="kfp")

    def records(self, door: str) -> dict[str, bytes]:
        """Record of every stage that a door has finished."""
        return {stage: (self.folder / "runs" / door / stage / "record.json").read_bytes() for stage in STAGES}

    def times(self, door: str) -> dict[str, int]:
        """When each record was written."""
        files = {stage: self.folder / "runs" / door / stage / "record.json" for stage in STAGES}
        return {stage: file.stat().st_mtime_ns for stage, file in files.items()}


@pytest.fixture(scope="module")
def project(tiny_source, tmp_path_factory):
    return Project(tmp_path_factory.mktemp("project"), tiny_source)


@pytest.fixture(scope="module")
def said(project):
    """Every door once; what each said."""
    return {"cli": project.cli(), "kfp": project.kubeflow(), "dvc": project.dvc()}


def test_all_doors_leave_the_same_records(project, said):
    records = {door: project.records(door) for door in said}
    differing = [s for s in STAGES if len({records[door][s] for door in records}) > 1]
    assert differing == []


def test_a_second_time_no_door_runs_anything(project, said):
    before = {door: project.times(door) for door in said}
    assert "all 11 stages are current" in project.cli()
    assert "up to date" in project.dvc()
    again = project.kubeflow()
    assert re.findall(r"Executing task '(\S+)'", again) == ["finish"]
    assert again.count("cache hit") == len(STAGES) + 4
    assert {door: project.times(door) for door in said} == before


def test_a_changed_section_runs_its_stage_and_what_depends_on_the_result(project, said):
    """Promotion alone reads the section that changes; the Kubeflow run starts every task, and all others only look."""
    before = {door: project.times(door) for door in said}
    values = params()
    values["promote"]["why"] = "another reason"
    write_params(project.folder / "params.yaml", values)
    project.cli()
    project.kubeflow()
    project.dvc()
    for door in said:
        after = project.times(door)
        assert [stage for stage in STAGES if after[stage] != before[door][stage]] == ["promote"]
    assert len({project.records(door)["promote"] for door in said}) == 1
