"""Three doors, one chain: plain CLI, `dvc repro` and the Kubeflow pipeline leave the same records, byte for byte."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mobileclip import __version__
from mobileclip.chain import CHAIN
from mobileclip.lineage.code import package_digest
from tests.tiny_chain import params, write_short_params

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
        (folder / SOURCE).chmod(0o755)  # containers read it as a user without rights
        (folder / TOWERS).mkdir()
        (folder / TOWERS / "README").write_text("no teacher of this chain starts from a pretrained tower\n")
        write_short_params(folder / "params.yaml")
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

    def kubeflow(self, runner: str = "--local", door: str = "kfp") -> str:
        """The Kubeflow pipeline on one of the SDK's local runners."""
        place = ["--root", f"runs/{door}", "--source", SOURCE, "--towers", TOWERS, "--groups", "2"]
        command = [sys.executable, "-m", "pipelines.run", runner, "--params", "params.yaml"]
        return self.run(*command, *place, door=door)

    def records(self, door: str) -> dict[str, bytes]:
        """Record of every stage that a door has finished."""
        return {stage: (self.folder / "runs" / door / stage / "record.json").read_bytes() for stage in STAGES}

    def times(self, door: str) -> dict[str, int]:
        """When each record was written."""
        files = {stage: self.folder / "runs" / door / stage / "record.json" for stage in STAGES}
        return {stage: file.stat().st_mtime_ns for stage, file in files.items()}


def executed(said):
    """Tasks that Kubeflow's runner started."""
    return [name.replace("-", "_") for name in re.findall(r"Executing task '(\S+)'", said)]


def served(said):
    """Tasks that it considered and served from its cache."""
    return {name.replace("-", "_") for name in re.findall(r"Task (\S+) cache hit", said)}


@pytest.fixture(scope="module")
def project(tiny_source, tmp_path_factory):
    return Project(tmp_path_factory.mktemp("project"), tiny_source)


@pytest.fixture(scope="module")
def by_processes(project):
    """The Kubeflow pipeline as processes of this machine; what it said."""
    return project.kubeflow()


@pytest.fixture(scope="module")
def said(project, by_processes):
    """Every door once; what each said."""
    return {"cli": project.cli(), "kfp": by_processes, "dvc": project.dvc()}


def test_all_doors_leave_the_same_records(project, said):
    records = {door: project.records(door) for door in said}
    differing = [s for s in STAGES if len({records[door][s] for door in records}) > 1]
    assert differing == []


@pytest.fixture(scope="module")
def image():
    """The project's image, of this very code; skipped where there is no engine, unless one is asked for."""
    name = os.environ.get("MOBILECLIP_IMAGE") or f"mobileclip-pipelines:{__version__}"
    probe = "from mobileclip.lineage.code import package_digest; print(package_digest())"
    try:
        found = subprocess.run(
            ["docker", "run", "--rm", name, "python3", "-c", probe], capture_output=True, text=True, check=False
        )
        why = "" if found.returncode == 0 else f"no image '{name}': {found.stderr.strip()[-200:]}"
    except FileNotFoundError:
        why = "no container engine"
    if why and os.environ.get("MOBILECLIP_REQUIRE_DOCKER"):
        pytest.fail(why)
    if why:
        pytest.skip(f"NOT TESTED IN CONTAINERS: {why}; run .ci/containers")
    assert found.stdout.strip() == package_digest(), f"image '{name}' holds other code, build it again"
    return name


def test_containers_leave_the_same_records(image, project, by_processes):
    project.kubeflow("--docker", "docker")
    owners = {path.stat().st_uid for path in (project.folder / "runs/docker").rglob("record.json")}
    assert owners == {os.getuid() or 10001}
    records, wanted = project.records("docker"), project.records("kfp")
    assert [stage for stage in STAGES if records[stage] != wanted[stage]] == []


def test_a_second_time_no_door_runs_anything(project, said):
    before = {door: project.times(door) for door in said}
    assert "all 11 stages are current" in project.cli()
    assert "up to date" in project.dvc()
    again = project.kubeflow()
    assert executed(again) == ["finish"]
    assert served(again) == {*STAGES, "caption_group", "reinforce_group"}
    assert {door: project.times(door) for door in said} == before


def test_a_sweep_trains_its_students_from_the_same_dataset(project, by_processes):
    before = project.times("kfp")
    (project.folder / "students.yaml").write_text("longer: {training: {steps: 3}}\nplain: {control: false}\n")
    command = [sys.executable, "-m", "pipelines.run", "sweep", "--local", "--params", "params.yaml"]
    told = project.run(*command, "--root", "runs/kfp", "--students", "students.yaml", door="kfp")
    assert project.times("kfp") == before
    ran = executed(told)
    assert {name: ran.count(name) for name in set(ran)} == {
        "distill_variant": 2, "evaluate": 2, "export": 2, "compare": 1, "reuse": 1, "reuse_2": 1, "finish": 1,
    }  # fmt: skip
    folder = project.folder / "runs/kfp/sweep"
    steps = {}
    for name in ("longer", "plain"):
        steps[name] = json.loads((folder / name / "distill/config.json").read_text())["training"]["steps"]
        assert (folder / name / "distill/control").exists() == (name == "longer")
    assert steps == {"longer": 3, "plain": 2}
    found = json.loads((folder / "pareto.json").read_text())
    assert [row["name"] for row in found["students"]] == ["longer", "plain"]
    assert found["front"]
    # What `reuse` hands on is a new artifact each time, so every task starts again; each finds its record current.
    written = {file: file.stat().st_mtime_ns for file in folder.rglob("record.json")}
    assert len(written) == 6
    project.run(*command, "--root", "runs/kfp", "--students", "students.yaml", door="kfp")
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("record.json")} == written


def test_a_changed_section_runs_its_stage_and_what_depends_on_the_result(project, said):
    """Promotion alone reads the section that changes; the Kubeflow run starts every task, and all others only look."""
    before = {door: project.times(door) for door in said}
    values = params()
    values["promote"]["why"] = "another reason"
    write_short_params(project.folder / "params.yaml", values)
    project.cli()
    again = project.kubeflow()
    project.dvc()
    # Another submission for the same root: nothing is taken from Kubeflow's cache, the records decide.
    assert {*STAGES, "finish"} <= set(executed(again))
    assert served(again) == set()
    for door in said:
        after = project.times(door)
        assert [stage for stage in STAGES if after[stage] != before[door][stage]] == ["promote"]
    assert len({project.records(door)["promote"] for door in said}) == 1
