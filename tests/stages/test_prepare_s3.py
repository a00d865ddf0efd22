"""prepare from a prefix of an object store: what a local folder gives, and nothing left on the disk."""

import json
from pathlib import Path

import pytest

from mobileclip import entry, storage
from mobileclip.config import Prepare
from mobileclip.errors import DataError
from mobileclip.lineage import record as records
from tests import s3
from tests.stages.preparing import read_back, write_table


@pytest.fixture
def bucket(tmp_path, monkeypatch) -> str:
    (tmp_path / "temporary").mkdir()
    s3.use(monkeypatch, MOBILECLIP_CACHE=str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    return s3.bucket(f"prepare-{tmp_path.parent.name}-{tmp_path.name}".replace("_", "-").lower()[:63].rstrip("-"))


def _upload(folder: Path, uri: str) -> None:
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        storage.write_bytes(storage.join(uri, path.relative_to(folder).as_posix()), path.read_bytes())


def test_gives_what_the_local_folder_gives(bucket, tmp_path):
    folder = write_table(tmp_path / "source", [{"captions": [f"picture {i}"]} for i in range(7)])
    _upload(folder, storage.join(bucket, "raw"))
    local, remote = tmp_path / "local", storage.join(bucket, "prepared")
    entry.run_stage("prepare", Prepare(), out=str(local), source=str(folder))
    entry.run_stage("prepare", Prepare(), out=remote, source=storage.join(bucket, "raw"))
    assert read_back(remote).keys() == read_back(local).keys()
    for name in ("manifest.json", "quarantine.jsonl"):
        assert storage.read_bytes(storage.join(remote, name)) == (local / name).read_bytes()
    inputs = [json.loads(storage.read_bytes(storage.join(out, "record.json")))["inputs"] for out in (local, remote)]
    assert inputs[0] == inputs[1]  # the same files are the same input, wherever they lie
    assert not list((tmp_path / "temporary").iterdir())


def test_a_changed_object_is_another_input(bucket, tmp_path):
    _upload(write_table(tmp_path / "source", [{"captions": ["one"]}]), bucket)
    before = records.input_digest(bucket)
    storage.write_bytes(storage.join(bucket, "0.png"), b"other")
    assert records.input_digest(bucket) != before
    with pytest.raises(DataError, match=r"^data: nothing at 's3://.*/none', want a folder"):
        records.input_digest(storage.join(bucket, "none"))
