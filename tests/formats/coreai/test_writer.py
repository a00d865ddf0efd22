"""Core AI assets: converted in the converter's own environment, computed there by the engine it brings along."""

import json

import numpy as np
import pytest

from mobileclip.config import Export
from mobileclip.errors import ConfigError, DataError
from mobileclip.formats import environment, programs
from mobileclip.formats.coreai import runtime as coreai_runtime
from mobileclip.formats.coreai import writer as coreai
from mobileclip.formats.proof import relative_error
from mobileclip.formats.runtime import load_program
from tests.formats import fixed_batch

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("coreai")


@pytest.fixture(scope="module")
def written(towers, reference, folder):
    environment.make("coreai")
    section = Export(formats=["coreai"], precisions=["float16"])
    return {program.path: program for program in programs.build(section, towers, reference, folder)}


def test_assets_compute_the_student(written):
    assert set(written) == {"image.float16.aimodel", "text.float16.aimodel"}
    for program in written.values():
        assert 1e-5 < program.figures["error"] < 0.03  # half precision leaves a trace
        assert program.figures["operations"] > 100
        assert not program.executed


def test_rows_are_told_apart_and_computed_once(written, folder, reference, monkeypatch):
    encode = load_program(folder / "text.float16.aimodel")
    first = encode(reference.tokens[:2])
    assert relative_error(first, reference.text_features[:2]) < 0.1
    monkeypatch.setattr(coreai_runtime, "WORKER", folder / "none.py")
    np.testing.assert_array_equal(encode(reference.tokens[[1, 0, 1]]), first[[1, 0, 1]])


def test_float32_computes_the_student(towers, reference, tmp_path):
    item = programs.Plan("image", "coreai", "float32")
    programs.write(item, Export(), towers, reference=reference, folder=tmp_path, calibrate=lambda: reference)
    got = load_program(tmp_path / item.file_name)(reference.pixels)
    assert relative_error(got, reference.image_features) < 1e-5


def test_asset_names_no_machine_and_no_time(written, folder):
    for path in (folder / "image.float16.aimodel").iterdir():
        data = path.read_bytes()
        assert not [name for name in (b"site-packages", b"/tmp", str(folder).encode()) if name in data]
    assert "creationDate" not in json.loads((folder / "image.float16.aimodel" / "metadata.json").read_text())


def test_damaged_and_foreign_assets(written, folder, tmp_path):
    (tmp_path / "empty.aimodel").mkdir()
    cut = tmp_path / "cut.aimodel"
    cut.mkdir()
    for path in (folder / "image.float16.aimodel").iterdir():
        (cut / path.name).write_bytes(path.read_bytes()[:1000])
    for path in (tmp_path / "empty.aimodel", cut):
        with pytest.raises(DataError, match=rf"Core AI refuses '{path.name}'"):
            load_program(path)


@pytest.mark.parametrize(
    "functions",
    [
        {},
        {
            "main": {
                "inputs": [["image", "NDArray (Float16, 1 × 3)"]],
                "outputs": [["image_features", "NDArray (Float32, 1 × 2)"]],
            }
        },
        {"main": {"inputs": [["text", "NDArray (Int32, 1 × 3)"]], "outputs": [["x", "NDArray (Float32, 1 × 2)"]]}},
    ],
)
def test_other_interfaces_are_refused(tmp_path, functions):
    with pytest.raises(DataError, match="want 'main' of 'image'"):
        coreai_runtime._interface(tmp_path / "x.aimodel", {"functions": functions})


def test_versions_are_the_locked_ones():
    assert coreai.versions() == {"coreai-torch": "0.4.3", "coreai-core": "1.0.0b3"}


def test_without_the_environment_nothing_starts(monkeypatch, tmp_path, towers, reference):
    monkeypatch.setenv("MOBILECLIP_ENVIRONMENTS", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="make it with: mobileclip environment coreai"):
        programs.build(Export(formats=["coreai"]), towers, reference, tmp_path)
    assert not list(tmp_path.iterdir())


def test_fixed_batch(towers, reference, tmp_path):
    fixed_batch.check("coreai", towers, reference, tmp_path)
