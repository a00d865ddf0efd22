"""The DVC revision in a trace, against DVC itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mobileclip import config, entry
from mobileclip.__main__ import main
from mobileclip.lineage.dvc import revision, revisions
from mobileclip.promotion.registered import trace
from mobileclip.storage.dvc_remote import folder_digest
from tests import students


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A repository whose raw pictures `dvc add` knows, and whose `prepare` is a stage that `dvc repro` ran."""
    root = tmp_path_factory.mktemp("project")
    students.draw(root / "raw", count=16)

    def run(*command):
        program = [str(Path(sys.executable).with_name("dvc")), *command] if command[0] != "git" else list(command)
        environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "MOBILECLIP_TRACKING": "off"}
        done = subprocess.run(program, cwd=root, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    run("git", "init", "-q")
    run("init", "-q")
    run("add", "-q", "raw")
    (root / "copy.py").write_text("import shutil; shutil.copytree('made', 'runs/prepare')\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOBILECLIP_TRACKING", "off")
        entry.run_stage("prepare", config.Prepare(), out=root / "made", source=root / "raw")
    stages = {"prepare": {"cmd": f"{sys.executable} copy.py", "deps": ["raw"], "outs": ["runs/prepare"]}}
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    (root / "runs").mkdir()
    run("repro", "-q")
    return root


def test_it_is_dvcs_own_digest_computed_anew(project):
    lock = yaml.safe_load((project / "dvc.lock").read_text())
    wanted = lock["stages"]["prepare"]["outs"][0]["md5"]
    assert revision(str(project / "runs" / "prepare")) == wanted == folder_digest(str(project / "runs" / "prepare"))
    pointer = yaml.safe_load((project / "raw.dvc").read_text())
    assert revision(str(project / "raw")) == pointer["outs"][0]["md5"]
    assert revision(str(project / "made")) == revision("s3://bucket/made") == ""


def test_a_trace_names_it_for_stages_and_raw_data(project, capsys, monkeypatch):
    monkeypatch.setenv("MOBILECLIP_TRACKING", "off")
    found = trace(str(project / "runs" / "prepare"), roots=[str(project / "raw")])
    known = revisions(found)
    assert known[found.nodes[0].digest] == {"dvc": revision(str(project / "runs" / "prepare"))}
    assert known[found.outside[0][2]] == {"dvc": revision(str(project / "raw"))}
    assert main(["trace", str(project / "runs" / "prepare"), "--root", str(project / "raw")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for folder in ("runs/prepare", "raw"):
        assert f"dvc {revision(str(project / folder))[:16]}" in said


def test_a_folder_that_changed_since_says_so(project):
    note = project / "runs" / "prepare" / "note.txt"
    note.write_text("later")
    try:
        assert revision(str(project / "runs" / "prepare")).endswith(".dir (the folder has changed since)")
    finally:
        note.unlink()


def test_files_that_only_look_like_dvcs_are_passed_over(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a").write_text("a")
    for text in ("[", "- 1\n", "stages: 7\n", "outs: [{path: data}]\n", "\xff"):
        (tmp_path / "data.dvc").write_text(text, encoding="latin-1")
        assert revision(str(folder)) == ""
