"""Core ML packages, built here and evaluated operation by operation: Core ML itself runs on Apple systems alone."""

import datetime
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mobileclip.config import Export
from mobileclip.errors import DataError
from mobileclip.formats import programs
from mobileclip.formats.coreml import runtime as coreml_runtime
from mobileclip.formats.digests import digest
from mobileclip.formats.program_ports import disagreement
from mobileclip.formats.proof import relative_error
from mobileclip.formats.runtime import load_program
from tests.formats import fixed_batch, mixed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("coreml")


@pytest.fixture(scope="module")
def written(towers, reference, folder):
    section = Export(formats=["coreml"], precisions=["float16", "int8_weights"])
    return {program.path: program for program in programs.build(section, towers, reference, folder)}


def test_packages_compute_the_student(written, folder, reference):
    for program in written.values():
        got = load_program(folder / program.path)(reference.inputs(program.tower))
        limit = 0.02 if program.precision == "float16" else 0.25
        error = relative_error(got, reference.features(program.tower))
        assert 1e-5 < error < limit  # rounding to float16 leaves a trace
        assert not program.executed


def test_interface_is_the_contracts(written, folder, clip):
    import coremltools

    for program in written.values():
        spec = coremltools.utils.load_spec(str(folder / program.path))
        given, result = spec.description.input[0], spec.description.output[0]
        assert (given.name, result.name) == (program.tower, f"{program.tower}_features")
        if program.tower == "image":
            assert (given.type.imageType.width, given.type.imageType.height) == (64, 64)
            assert given.type.imageType.colorSpace == spec.description.input[0].type.imageType.ColorSpace.Value("RGB")
        else:
            assert list(given.type.multiArrayType.shape) == [1, clip.tokenizer([""]).shape[1]]


def test_int8_halves_float16(written):
    for tower in ("image", "text"):
        assert written[f"{tower}.int8_weights.mlpackage"].bytes < 0.7 * written[f"{tower}.float16.mlpackage"].bytes


def test_same_bytes_again_on_another_day(written, towers, reference, folder, tmp_path, monkeypatch):
    from coremltools.converters import _converters_entry

    monkeypatch.setattr(_converters_entry, "date", SimpleNamespace(today=lambda: datetime.date(2001, 2, 3)))
    item = programs.Plan("image", "coreml", "float16")
    programs.write(item, Export(), towers, reference=reference, folder=tmp_path, calibrate=lambda: reference)
    assert digest(tmp_path / item.file_name) == digest(folder / item.file_name)


@pytest.mark.slow
def test_layers_kept_in_float16_meet_a_budget_that_all_in_int8_miss(
    written, towers, reference, calibration, folder, tmp_path
):  # fmt: skip
    budget = 0.03
    made, layers = mixed.build(
        "coreml", ["int8_weights"], towers, reference, calibration, tmp_path, max_kept=0.9, max_error_int8=budget
    )  # fmt: skip
    none, _ = mixed.build(
        "coreml", ["int8_weights"], towers, reference, calibration, tmp_path / "none", max_kept=0, max_error_int8=10
    )  # fmt: skip
    for path, program in made.items():
        assert none[path].kept_in_float == written[path].kept_in_float == []
        assert none[path].sha256 == written[path].sha256
        assert none[path].figures["error"] > budget
        base = folder / f"{program.tower}.float16.mlpackage"
        mixed.check(program, layers[path], tmp_path, towers, base, dtype=np.float16)
        restored = coreml_runtime.operations(tmp_path / path).count("constexpr_affine_dequantize")
        assert restored == len(layers[path]) - len(program.kept_in_float)


def test_package_names_no_machine(written, folder):
    for path in (folder / "image.float16.mlpackage").rglob("*"):
        if path.is_file():
            assert b"site-packages" not in path.read_bytes()
    assert json.loads((folder / "image.float16.mlpackage" / "Manifest.json").read_text())["rootModelIdentifier"]


def test_damaged_and_foreign_packages(written, folder, tmp_path):
    (tmp_path / "empty.mlpackage").mkdir()
    with pytest.raises(DataError, match=r"'empty\.mlpackage' is no readable Core ML package"):
        load_program(tmp_path / "empty.mlpackage")


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda spec: setattr(spec.description.input[0].type.imageType, "width", 65),
         r"describes image picture uint8 \[1, 3, 64, 65\], but its program has the shape \(1, 3, 64, 64\)"),
        (lambda spec: setattr(spec.description.input[0].type.imageType, "colorSpace", 30),
         "takes a BGR picture as image"),
        (lambda spec: spec.description.output[0].type.multiArrayType.shape.__setitem__(1, 64),
         r"describes image_features float32 \[1, 64\], but its program has the shape \(1, 128\)"),
        (lambda spec: spec.description.output[0].type.dictionaryType.SetInParent(),
         "has dictionaryType as image_features"),
        (lambda spec: spec.mlProgram.functions["main"].inputs[0].type.tensorType.dimensions[0].unknown.SetInParent(),
         r"describes image picture uint8 \[1, 3, 64, 64\], but its program has the shape \('is\d+', 3, 64, 64\)"),
    ],
)  # fmt: skip
def test_description_that_is_not_the_programs(written, folder, tmp_path, edit, sentence):
    import coremltools

    package = Path(shutil.copytree(folder / "image.float16.mlpackage", tmp_path / "image.mlpackage"))
    spec = coremltools.utils.load_spec(str(package))
    edit(spec)
    (package / "Data" / "com.apple.CoreML" / "model.mlmodel").write_bytes(spec.SerializeToString())
    with pytest.raises(DataError, match=sentence):
        load_program(package)


def test_type_of_the_output_is_the_contracts(written, folder, tmp_path):
    import coremltools

    package = Path(shutil.copytree(folder / "image.float16.mlpackage", tmp_path / "image.mlpackage"))
    spec = coremltools.utils.load_spec(str(package))
    array = spec.description.output[0].type.multiArrayType
    array.dataType = array.ArrayDataType.Value("FLOAT16")
    (package / "Data" / "com.apple.CoreML" / "model.mlmodel").write_bytes(spec.SerializeToString())
    encode, program = load_program(package), written["image.float16.mlpackage"]
    assert disagreement((encode.given, encode.result), (program.input, program.output)) == (
        "gives image_features float16 [1, 128], its contract states image_features float32 [1, 128]"
    )


def test_contract_says_that_pictures_are_taken(written):
    given = written["image.float16.mlpackage"].input
    assert (given.kind, given.dtype, given.shape, given.maximum) == ("picture", "uint8", [1, 3, 64, 64], 255)
    assert written["text.float16.mlpackage"].input.kind == "array"


def _run(kind, result, **inputs):
    return coreml_runtime.OPERATIONS[kind]({**inputs, "types": [result]})


def test_operations_against_torch():
    """The ones with a rule of their own, against another definition of each."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, 9, 7, generator=generator)
    weight, bias = torch.randn(4, 3, 3, 3, generator=generator), torch.randn(4, generator=generator)
    padded = torch.constant_pad_nd(x, (2, 1, 1, 0))
    got = _run(
        "conv", torch.float32, x=x, weight=weight, bias=bias, strides=torch.tensor([2, 1]), pad_type="custom",
        pad=torch.tensor([1, 0, 2, 1]), groups=torch.tensor(2),
    )  # fmt: skip
    torch.testing.assert_close(got, F.conv2d(padded, weight, bias, stride=(2, 1), groups=2))
    gamma, beta = torch.randn(7, generator=generator), torch.randn(7, generator=generator)
    got = _run("layer_norm", torch.float32, x=x, axes=[-1], gamma=gamma, beta=beta, epsilon=1e-5)
    torch.testing.assert_close(got, F.layer_norm(x, (7,), gamma, beta, 1e-5))
    index = torch.tensor([[2, 0], [1, 2]])
    torch.testing.assert_close(_run("gather", x.dtype, x=x, indices=index, axis=2), x[:, :, index])
    got = _run(
        "slice_by_index", x.dtype, x=x, begin=[0, 1, 0, 3], end=[2, 5, 0, 0], stride=[1, 2, 1, 1],
        end_mask=[False, False, True, False], squeeze_mask=[False, False, False, True],
    )  # fmt: skip
    torch.testing.assert_close(got, x[:, 1:5:2, :, 3])
    row = torch.tensor([[1, 2, 3, 4]], dtype=torch.int32)
    for options, wanted in (
        ({"axis": 1}, [1, 3, 6, 10]), ({"axis": 1, "exclusive": True}, [0, 1, 3, 6]),
        ({"axis": 1, "reverse": True}, [10, 9, 7, 4]), ({"axis": 1, "exclusive": True, "reverse": True}, [9, 7, 4, 0]),
        ({}, [1, 2, 3, 4]),
    ):  # fmt: skip
        assert _run("cumsum", torch.int32, x=row, **options).equal(torch.tensor([wanted], dtype=torch.int32))
    quantized, scale = torch.tensor([[1, -2], [3, 4]], dtype=torch.int8), torch.tensor([0.5, 2.0])
    got = _run("constexpr_affine_dequantize", torch.float32, quantized_data=quantized, scale=scale,
               zero_point=torch.tensor([1, 0], dtype=torch.int8), axis=0)  # fmt: skip
    torch.testing.assert_close(got, torch.tensor([[0.0, -1.5], [6.0, 8.0]]))


def test_unknown_operation_is_named():
    op = SimpleNamespace(op_type="fly", inputs={}, outputs=[])
    with pytest.raises(DataError, match="the Core ML operation 'fly' cannot be emulated"):
        coreml_runtime.evaluate(SimpleNamespace(operations=[op], outputs=[]), {})


def test_results_are_rounded_to_their_type(written, folder, reference):
    """A program in float16 evaluated without rounding would be nearer to the student than the phone is."""
    got = load_program(folder / "text.float16.mlpackage")(reference.tokens)
    assert np.abs(got - reference.text_features).max() > 1e-5


def test_fixed_batch(towers, reference, tmp_path):
    fixed_batch.check("coreml", towers, reference, tmp_path)
