"""LiteRT programs: converted in the converter's own environment, executed in the real runtime."""

import functools

import numpy as np
import pytest
import torch
from ai_edge_litert.interpreter import OpResolverType
from torch import nn

from mobileclip.config import Export
from mobileclip.errors import ConfigError, DataError
from mobileclip.formats import environment, programs
from mobileclip.formats.export_job import Job
from mobileclip.formats.litert import runtime as litert_runtime
from mobileclip.formats.litert import writer as litert
from mobileclip.formats.proof import relative_error
from mobileclip.formats.runtime import load_program
from tests.formats import fixed_batch, mixed
from tests.formats.conftest import ports
from tests.models.perturbed import patterned_images

pytestmark = pytest.mark.slow

LOOSE = Export(max_kept=0)
LIMITS = {"float32": 1e-5, "int8": 0.25, "int8_weights": 0.25}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("litert")


@pytest.fixture(scope="module")
def written(towers, reference, folder):
    environment.make("litert")
    section = Export(formats=["litert"], precisions=["float32", "int8"])
    return {program.path: program for program in programs.build(section, towers, reference, folder)}


def test_programs_equal_the_student_in_the_runtime(written, folder, clip, reference):
    assert set(written) == {"image.float32.tflite", "text.float32.tflite", "text.int8.tflite"}
    for program in written.values():
        got = load_program(folder / program.path, threads=1)(reference.inputs(program.tower))
        assert got.shape == (len(reference.uids), clip.embed_dim)
        assert relative_error(got, reference.features(program.tower)) < LIMITS[program.precision]
        assert program.executed


def test_nodes_that_xnnpack_takes_over_are_counted(written, folder, monkeypatch):
    for program in written.values():
        found = litert_runtime.delegation(folder / program.path)
        assert found.items() <= program.figures.items()
        assert 0.5 < found["delegated"] <= 1
        assert found["subgraphs"] >= 1
    assert litert_runtime.delegation(folder / "image.float32.tflite")["delegated"] > 0.9  # convolutions throughout
    plain = functools.partial(
        litert_runtime.Interpreter,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    monkeypatch.setattr(litert_runtime, "Interpreter", plain)
    found = litert_runtime.delegation(folder / "image.float32.tflite")
    assert found == {"delegated": 0, "subgraphs": 0}


def test_phone_gpus_take_the_image_program(written):
    """No tensor above rank 4, no attention with heads as batch."""
    for program in written.values():
        assert program.figures["max_rank"] <= 4
    assert written["image.float32.tflite"].figures["residency/litert_gpu"] == 1


def test_int8_is_a_quarter_of_the_size(written):
    assert written["text.int8.tflite"].bytes < 0.3 * written["text.float32.tflite"].bytes


def test_calibrated_image_program_keeps_floats_at_its_ends(written, towers, reference, folder):
    item = programs.Plan("image", "litert", "int8_static")
    section = LOOSE.model_copy(update={"formats": ["litert"], "precisions": ["int8_static"]})
    programs.write(item, section, towers, reference=reference, folder=folder, calibrate=lambda: reference)
    path = folder / item.file_name
    assert path.stat().st_size < 0.4 * written["image.float32.tflite"].bytes
    error = relative_error(load_program(path, threads=1)(reference.pixels), reference.image_features)
    assert 1e-3 < error < 0.5  # activations are rounded, too


@pytest.mark.parametrize(
    ("precisions", "budget"), [(["int8_static", "int8"], 0.1), (["int8_weights"], 0.04)], ids=["computing", "weights"]
)
def test_layers_kept_in_float32_meet_a_budget_that_all_in_int8_miss(
    written, towers, reference, folder, tmp_path, precisions, budget
):  # fmt: skip
    # So few samples differ by more than the margin: ranges and choice are those of the proof's own.
    made, layers = mixed.build(
        "litert", precisions, towers, reference, reference, tmp_path, max_kept=0.9, max_error_int8=budget
    )  # fmt: skip
    assert len(made) == 2
    for program in made.values():
        base = folder / f"{program.tower}.float32.tflite"
        mixed.check(program, layers[program.path], tmp_path, towers, base)
        assert program.bytes < written[base.name].bytes
    one = made[f"image.{precisions[0]}.tflite"]
    for most in (0.9, 0):
        again = _write(one, towers, reference, tmp_path / str(most), most)
        same = (tmp_path / str(most) / one.path).read_bytes() == (tmp_path / one.path).read_bytes()
        assert (bool(again.keep), same) == (most > 0, most > 0)


def _write(program, towers, reference, folder, most):
    folder.mkdir()
    section = Export(max_kept=most, max_error_int8=program.budget)
    item = programs.Plan(program.tower, program.format, program.precision)
    return programs.write(item, section, towers, reference=reference, folder=folder, calibrate=lambda: reference)


@torch.no_grad()
def test_weights_of_more_than_32_mib(written, tmp_path):
    """The quantizer's own rounding fails on convolutions of that size."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.AvgPool2d(4), nn.Conv2d(3, 2900, 1), nn.Conv2d(2900, 3000, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()
    images, path = patterned_images(6, 16), tmp_path / "image.tflite"
    assert module[2].weight.nbytes > 2**25
    litert.write(Job("image", "int8_weights", module, images[:2], *ports(images, 3000), path, LOOSE, 1.0, lambda: None))
    got = load_program(path, threads=1)(images.numpy())
    assert relative_error(got, module(images).numpy()) < 0.02
    assert path.stat().st_size < 0.3 * sum(p.nbytes for p in module.parameters())


def test_damaged_program_is_refused(written, folder, tmp_path):
    path = tmp_path / "image.tflite"
    path.write_bytes((folder / "image.float32.tflite").read_bytes()[:5000])
    with pytest.raises(DataError, match=r"LiteRT refuses 'image\.tflite'"):
        load_program(path)


def test_any_number_of_rows(written, folder, reference):
    encode = load_program(folder / "image.float32.tflite", threads=1)
    np.testing.assert_array_equal(encode(reference.pixels[:3])[1], encode(reference.pixels[1:2])[0])


def test_versions_are_the_locked_ones():
    assert litert.versions()["litert-torch"] == "0.10.0"


def test_without_the_environment_nothing_starts(monkeypatch, tmp_path, towers, reference):
    monkeypatch.setenv("MOBILECLIP_ENVIRONMENTS", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="mobileclip environment litert"):
        programs.build(Export(formats=["litert"]), towers, reference, tmp_path)
    assert not list(tmp_path.iterdir())


def test_fixed_batch(towers, reference, tmp_path):
    fixed_batch.check("litert", towers, reference, tmp_path, precisions=("float32", "int8_static"))
