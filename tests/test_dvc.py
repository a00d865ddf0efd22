"""DVC as a user drives it: repro, experiments, metrics, plots, and a fresh clone that pulls everything from S3."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import s3
from tests.test_doors import SOURCE, STAGES, Project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


class Repository(Project):
    """The project in git, its raw data in DVC, its chain run once, its remote in S3."""

    def __init__(self, folder: Path, source: Path) -> None:
        super().__init__(folder, source)
        self.run("dvc", "remote", "add", "-d", "team", s3.bucket("team") + "/dvc")
        self.run("dvc", "remote", "modify", "team", "endpointurl", s3.endpoint())
        self.run("dvc", "add", SOURCE)
        self.commit("the project")
        self.first = self.dvc()
        self.commit("the results")

    def commit(self, message: str) -> None:
        """Commit whatever git does not ignore."""
        self.run("git", "add", "-A")
        self.run("git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", message)


@pytest.fixture(scope="module")
def repository(tiny_source, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**s3.environment(), "DVC_NO_ANALYTICS": "1"}.items():
            patch.setenv(name, value)
        yield Repository(tmp_path_factory.mktemp("repository") / "project", tiny_source)


def ran(said):
    """Stages that DVC started."""
    return re.findall(r"Running stage '(\w+)'", said)


def test_git_holds_pointers_and_no_data(repository):
    tracked = repository.run("git", "ls-files").split()
    assert {"dvc.lock", f"{SOURCE}.dvc", "params.yaml"} <= set(tracked)
    assert not [name for name in tracked if name.startswith("runs/") or name.endswith((".png", ".tar"))]


def test_a_second_repro_does_nothing(repository):
    assert ran(repository.first) == ["params", *STAGES]
    before = repository.times("dvc")
    said = repository.dvc()
    assert "up to date" in said
    assert ran(said) == []
    assert repository.times("dvc") == before


def test_a_fresh_clone_pulls_everything_and_is_clean(repository, tmp_path):
    repository.run("dvc", "push", "-q")
    clone = tmp_path / "clone"
    repository.run("git", "clone", "-q", str(repository.folder), str(clone))
    assert not (clone / "runs").exists()

    def there(*command: str) -> str:
        program = Path(sys.executable).with_name("dvc")
        done = subprocess.run([program, *command], cwd=clone, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    there("pull", "-q")
    assert "up to date" in there("status")
    assert "in sync" in there("status", "-c")
    for stage in STAGES:
        name = f"runs/dvc/{stage}/record.json"
        assert (clone / name).read_bytes() == (repository.folder / name).read_bytes()


def test_an_experiment_runs_what_depends_on_its_key_and_shows_in_the_diff(repository):
    """A key of export starts export and what follows; one of distill starts distill and all that reads its student.

    The second key is not in the short params file: the plus adds it, and the difference shows the default it had.
    """
    said = repository.run("dvc", "exp", "run", "-S", "export.samples=5", "--name", "five")
    assert ran(said) == ["params", "export", "promote"]
    assert re.search(r"params\.yaml\s+export\.samples\s+4\s+5", repository.run("dvc", "params", "diff", "HEAD"))
    said = repository.run("dvc", "exp", "run", "-S", "+distill.distill_weight=0.7", "--name", "weight")
    assert ran(said) == ["params", "distill", "evaluate", "export", "promote"]
    shown = repository.run("dvc", "params", "diff", "HEAD")
    assert re.search(r"runs/dvc/params\.yaml\s+distill\.distill_weight\s+1\.0\s+0\.7", shown)
    assert "runs/dvc/evaluate/metrics.json" in repository.run("dvc", "metrics", "diff", "HEAD")
    listed = repository.run("dvc", "exp", "list")
    assert "five" in listed
    assert "weight" in listed


def test_plots_open_without_a_network(repository):
    for command in (["show"], ["diff", "HEAD"]):
        repository.run("dvc", "plots", *command)
        page = repository.folder / "dvc_plots" / "index.html"
        text = page.read_text()
        assert not re.search(r"""(?:src|href)=["']https?:""", text)
        pictures = re.findall(r"""src=["']([^"']+\.png)""", text)
        names = {Path(picture).name for picture in pictures}
        assert any("scores.png" in name for name in names)
        assert any("results.png" in name for name in names)
        assert all((page.parent / picture).is_file() for picture in pictures)
