"""A URI with a scheme that is not s3 is refused wherever one is taken; it never becomes a local folder."""

from pathlib import Path

import pytest

from mobileclip import entry, storage
from mobileclip.__main__ import main
from mobileclip.errors import ConfigError
from tests.tiny_chain import params

WRONG = ["gs://bucket/a", "minio://bucket/a", "S3://bucket/a", "file:///tmp/a", "https://host/a", "hdfs://a", "gs:/a"]
TAKES_A_URI = [
    storage.is_s3, storage.exists, storage.read_bytes, storage.open_stream, storage.delete, storage.delete_tree,
    storage.list_files, storage.list_names, storage.list_sizes, storage.join,
    lambda uri: storage.read_range(uri, 0, 1), lambda uri: storage.write_bytes(uri, b"x"),
    lambda uri: storage.put_if_absent(uri, b"x"),
    lambda uri: storage.join("runs", uri), lambda uri: storage.relative(uri, "runs"),
]  # fmt: skip


@pytest.mark.parametrize("uri", WRONG)
def test_nothing_takes_another_scheme_for_a_folder(uri, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for take in TAKES_A_URI:
        with pytest.raises(ConfigError, match=rf"^uri: got '{uri}', want "):
            take(uri)
        with pytest.raises(ConfigError):
            take(Path(uri))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("uri", ["C:/data/a", "a:b/c", "local-dir:/tmp/m", "hf-hub:/a/b", "/a/b", "a b/c", "s3://b/k"])
def test_paths_and_names_of_models_are_left_alone(uri):
    storage.check(uri, "uri")


def test_a_bucket_must_be_named():
    with pytest.raises(ConfigError, match=r"^root: got 's3:///a', want s3://BUCKET/KEY"):
        storage.check("s3:///a", "root")


def test_a_stage_names_the_input_and_its_output(tiny_source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^source: got 'gs://raw/a', want"):
        entry.run_stage("prepare", params()["prepare"], out=str(tmp_path / "out"), source="gs://raw/a")
    with pytest.raises(ConfigError, match=r"^out: got 'gs://runs/a', want"):
        entry.run_stage("prepare", params()["prepare"], out="gs://runs/a", source=str(tiny_source))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        ["run", "--root", "gs://bucket/one", "--source", "raw"],
        ["run", "--root", "minio://bucket/one", "--source", "raw"],
        ["status", "gs://bucket/one"],
        ["trace", "gs://bucket/one/distill"],
        ["verify", "gs://bucket/one/reinforce"],
    ],
)
def test_commands_refuse_it_and_write_nothing(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOBILECLIP_TRACKING", "off")
    params_file = Path(entry.__file__).parents[1] / "params" / "demo.yaml"
    assert main([*command, *(["--params", str(params_file)] if command[0] == "run" else [])]) == 2
    assert "://bucket/one" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
