"""A program that lies alone is traced by its bytes, through a real registry, back to the data."""

import hashlib
import json
import shutil

import pytest

from mobileclip import config, entry
from mobileclip.__main__ import main
from mobileclip.errors import DataError
from mobileclip.formats.bundle import archive as bundle
from mobileclip.lineage import record as records
from mobileclip.promotion.registered import trace
from tests import mlflow_server, students


@pytest.fixture(scope="module")
def promoted(tmp_path_factory):
    """A registry with a good and a bad student, both versions of one model."""
    with pytest.MonkeyPatch.context() as patch:
        mlflow_server.forget_settings(patch)
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url())
        patch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
        root = tmp_path_factory.mktemp("promoted")
        patch.chdir(root)
        for which in ("bad", "good"):
            section = config.Promote(model_name="phones-back", gate=config.Gate(metric="student/zero_shot/group/top1"))
            entry.run_stage("promote", section, out=root / which, **students.world().folders(which))
        yield root


@pytest.fixture(autouse=True)
def _server(monkeypatch, tmp_path):
    mlflow_server.forget_settings(monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url())
    monkeypatch.chdir(tmp_path)


def programs(which):
    return students.world().folders(which)["programs"]


@pytest.mark.usefixtures("promoted")
class TestLoneFile:
    @pytest.mark.parametrize(("which", "number"), [("bad", 1), ("good", 2)])
    def test_leads_to_its_version_and_to_the_data(self, which, number, tmp_path, capsys):
        shutil.copy(programs(which) / "text.float32.onnx", tmp_path / "from-the-phone.onnx")
        found = trace(str(tmp_path / "from-the-phone.onnx"))
        assert found.target.endswith(f"(version {number} of phones-back)")
        assert [node.stage for node in found.nodes] == ["export", "prepare", "distill"]
        assert found.problems == []
        assert found.nodes[0].digest == records.input_digest(str(programs(which)))
        assert found.nodes[2].digest == records.input_digest(str(students.world().folders(which)["student"]))
        assert {use.license for use in found.uses} == {"CC0-1.0"}
        assert main(["trace", str(tmp_path / "from-the-phone.onnx")]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "program text.float32.onnx" in said
        assert "data shards" in said

    def test_a_program_that_versions_share_leads_to_the_newest_and_says_so(self):
        """Both students see through the same image tower; their texts differ."""
        found = trace(str(shutil.copy(programs("bad") / "image.float32.onnx", "shared.onnx")))
        assert found.target == "shared.onnx (version 2 of phones-back, the newest of 2 with these bytes)"
        assert found.problems == []

    def test_a_bundle_is_opened_and_every_program_of_it_must_be_the_versions(self, tmp_path):
        whole = bundle.write(programs("good"), tmp_path)
        found = trace(str(whole))
        assert found.problems == []
        assert found.target.endswith("(version 2 of phones-back)")
        mixed = tmp_path / "mixed"
        shutil.copytree(programs("good"), mixed)
        changed = (mixed / "text.float32.onnx").read_bytes() + b"\0"
        (mixed / "text.float32.onnx").write_bytes(changed)
        agreed = json.loads((mixed / "contract.json").read_text())
        for row in agreed["programs"]:
            if row["path"] == "text.float32.onnx":
                row |= {"sha256": hashlib.sha256(changed).hexdigest(), "bytes": len(changed)}
        (mixed / "contract.json").write_text(json.dumps(agreed))
        (problem,) = trace(str(bundle.write(mixed, tmp_path / "forged"))).problems
        assert problem.startswith("export: 'text.float32.onnx'")
        assert problem.endswith("is no program of version 2")

    def test_bytes_that_nobody_registered_are_one_sentence(self, tmp_path, capsys):
        (tmp_path / "other.onnx").write_bytes(b"other")
        with pytest.raises(DataError, match=r"no record\.json at or above '.*other\.onnx' and no registered version"):
            trace(str(tmp_path / "other.onnx"))
        with pytest.raises(DataError, match=r"no record\.json at or above '.*none\.onnx', want something"):
            trace(str(tmp_path / "none.onnx"))
        assert main(["trace", str(tmp_path / "other.onnx")]) == 2
        assert capsys.readouterr().err.startswith("error: trace: no record.json")


def test_without_a_registry_it_says_where_it_would_look(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (tmp_path / "alone.onnx").write_bytes(b"x")
    with pytest.raises(DataError, match=r"no registry to look it up in.*MLFLOW_TRACKING_URI"):
        trace(str(tmp_path / "alone.onnx"))
