"""Latency from phones: recorded with the version whose programs were measured, refused for any other."""

import json

import pytest

from mobileclip import config, entry
from mobileclip.errors import DataError, IntegrityError
from mobileclip.formats import contract
from mobileclip.formats.measure import device_results
from mobileclip.formats.measure.device_results import Device, Measurement
from mobileclip.promotion import devices, registry
from tests import mlflow_server, students

METRIC = "student/zero_shot/group/top1"


@pytest.fixture(autouse=True)
def _server(monkeypatch, tmp_path):
    mlflow_server.forget_settings(monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url())
    monkeypatch.chdir(tmp_path)


def measured(which, device="Pixel 9 (Pro)", *, towers=("image", "text"), times=(4.0, 3.0)):
    """What the kit would bring back from a device that ran each program on two backends."""
    agreed = contract.read(students.world().folders(which)["programs"])
    rows = [
        Measurement(
            program=program.path, sha256=program.sha256, tower=program.tower, format=program.format,
            precision=program.precision, backend=backend, runs=10, p50_ms=ms, mean_ms=ms, tool="test",
        )
        for program in agreed.programs if program.tower in towers
        for backend, ms in zip(("cpu", "gpu"), times, strict=True)
    ]  # fmt: skip
    return device_results.merge(Device(name=device, system="1"), agreed.lineage.student_sha256, rows)


def promote(out):
    section = config.Promote(model_name="phones", gate=config.Gate(metric=METRIC))
    entry.run_stage("promote", section, out=out, **students.world().folders("good"))


def test_the_fastest_pair_of_towers_counts():
    assert devices.tags([measured("good")]) == {"latency.device/Pixel 9 -Pro-": "6.000"}
    assert devices.tags([measured("good", towers=("image",))]) == {}


def test_they_go_to_the_version_and_into_the_next_release_report(tmp_path):
    promote(tmp_path / "out")
    file = tmp_path / "pixel.device.json"
    file.write_bytes(measured("good").to_bytes())
    assert devices.attach("phones", tmp_path) == {"latency.device/Pixel 9 -Pro-": "6.000"}
    assert registry.connect("phones").version(1).tags["latency.device/Pixel 9 -Pro-"] == "6.000"
    promote(tmp_path / "again")
    page = (tmp_path / "again" / "release.html").read_text()
    assert "v1, Pixel 9 -Pro-" in page
    assert "Dots that name a device" in page


def test_results_of_other_programs_are_refused(tmp_path):
    promote(tmp_path / "out")
    before = registry.connect("phones").version(1).tags
    foreign = tmp_path / "foreign.device.json"
    foreign.write_bytes(measured("bad").to_bytes())
    with pytest.raises(DataError, match=r"'foreign\.device\.json' is of student"):
        devices.attach("phones", foreign)
    raw = json.loads(measured("good").to_bytes())
    raw["measurements"][0]["sha256"] = "0" * 64
    other = tmp_path / "other.device.json"
    other.write_text(json.dumps(raw))
    with pytest.raises(IntegrityError, match="that is another file"):
        devices.attach("phones", other)
    with pytest.raises(DataError, match="no version '7'"):
        devices.attach("phones", foreign, version="7")
    assert registry.connect("phones").version(1).tags == before
