"""What containers of a local run may see and do; tests/test_doors.py runs the chain in them."""

import os

import pytest

from mobileclip.errors import ConfigError
from pipelines import runners


@pytest.fixture
def place(tmp_path):
    source = tmp_path / "source"
    source.mkdir(mode=0o755)
    return tmp_path / "root", source


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "AWS_ACCESS_KEY_ID", "HOME_OF_SECRETS"):
        monkeypatch.delenv(name, raising=False)


def test_containers_have_no_rights_and_see_only_the_run(place):
    root, source = place
    options = runners.containers(root, [str(source), "", "s3://bucket/towers"]).container_run_args
    user, group = options["user"].split(":")
    assert int(user) != 0
    assert group == "0"
    assert options["cap_drop"] == ["ALL"]
    assert options["security_opt"] == ["no-new-privileges"]
    mounts = [(mount["Target"], mount["ReadOnly"]) for mount in options["mounts"]]
    assert mounts == [(str(root), False), (str(source), True)]
    assert root.stat().st_mode & 0o070 == 0o070


def test_the_environment_is_handed_over_by_name(place, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("HOME_OF_SECRETS", "other")
    found = runners.containers(place[0], []).container_run_args["environment"]
    assert found["AWS_ACCESS_KEY_ID"] == "key"
    assert "HOME_OF_SECRETS" not in found
    assert found["MOBILECLIP_TRACKING"] == "off"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    monkeypatch.delenv("MOBILECLIP_TRACKING", raising=False)
    found = runners.containers(place[0], []).container_run_args["environment"]
    assert found["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert "MOBILECLIP_TRACKING" not in found


@pytest.mark.skipif(os.getuid() != 0, reason="who is not root runs containers as himself")
def test_an_input_that_the_containers_cannot_read_is_named(place):
    root, source = place
    source.chmod(0o700)
    with pytest.raises(ConfigError, match=r"^docker: user 10001 of the containers may not read '.*source', want"):
        runners.containers(root, [str(source)])
