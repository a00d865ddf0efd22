"""ONNX int8 beyond dynamic products: calibrated, mixed by sensitivity, and of weights alone."""

import numpy as np
import onnx as onnx_package
import pytest
from onnx import numpy_helper

from mobileclip.config import Export
from mobileclip.errors import ExportError
from mobileclip.formats import programs
from mobileclip.formats.onnx import int8 as quantize
from mobileclip.formats.proof import relative_error
from mobileclip.formats.runtime import load_program
from tests.formats import mixed


def _build(precisions, towers, reference, calibration, folder, **keys):
    folder.mkdir(exist_ok=True)
    section = Export(precisions=precisions, **keys)
    made = programs.build(section, towers, reference, folder, calibrate=lambda: calibration)
    return {program.path: program for program in made}


def test_weights_alone(towers, reference, calibration, tmp_path):
    made = _build(["float32", "int8_weights"], towers, reference, calibration, tmp_path)
    for tower in ("image", "text"):
        program = made[f"{tower}.int8_weights.onnx"]
        assert 1e-4 < program.figures["error"] < 0.1
        assert program.bytes < 0.45 * made[f"{tower}.float32.onnx"].bytes
    before, after = (onnx_package.load(tmp_path / f"image.{p}.onnx") for p in ("float32", "int8_weights"))
    weights = {t.name: numpy_helper.to_array(t) for t in before.graph.initializer}
    stored = {t.name: numpy_helper.to_array(t) for t in after.graph.initializer}
    restored = [node for node in after.graph.node if node.op_type == "DequantizeLinear"]
    assert len(restored) > 10
    for node in restored:
        rows, scales, axis = stored[node.input[0]], stored[node.input[1]], node.attribute[0].i
        shape = [-1 if index == axis else 1 for index in range(rows.ndim)]
        assert len(scales) == rows.shape[axis]
        error = np.abs(rows * scales.reshape(shape) - weights[node.output[0]])
        assert (error <= scales.reshape(shape) * 0.5001).all()


@pytest.mark.slow
def test_calibrated_program_keeps_the_layers_its_budget_demands(towers, reference, calibration, tmp_path):
    loose = {"max_error_int8": 10, "max_kept": 0}
    plain = _build(["float32", "int8_static"], towers, reference, calibration, tmp_path / "a", **loose)
    whole = plain["image.int8_static.onnx"]
    assert whole.kept_in_float == []
    budget = whole.figures["error"] / 2
    mixed = _build(["float32", "int8_static"], towers, reference, calibration, tmp_path / "b", max_error_int8=budget)
    program = mixed["image.int8_static.onnx"]
    layers = quantize.layers(onnx_package.load(tmp_path / "b" / "image.float32.onnx"))
    assert 0 < len(program.kept_in_float) <= len(layers) / 2
    assert set(program.kept_in_float) <= set(layers)
    assert program.figures["error"] <= budget
    assert program.figures["kept"] == len(program.kept_in_float)
    assert whole.bytes < program.bytes < mixed["image.float32.onnx"].bytes
    model = onnx_package.load(tmp_path / "b" / program.path)
    weights = {tensor.name for tensor in model.graph.initializer}
    plain_layers = {node.name for node in model.graph.node if node.op_type == "Conv" and node.input[1] in weights}
    assert set(program.kept_in_float) >= plain_layers


def test_budget_out_of_reach_fails_with_the_layers(towers, reference, calibration, tmp_path):
    with pytest.raises(ExportError, match=r"'image\.int8_static\.onnx' has .*quantized alone these layers lose most: "):
        _build(["float32", "int8_static"], towers, reference, calibration, tmp_path, max_error_int8=1e-9)


def test_calibration_reads_its_own_samples(towers, reference, calibration, tmp_path):
    model = onnx_package.load(_float32(towers, reference, tmp_path))
    ranges = []
    for index, rows in enumerate((calibration.pixels, calibration.pixels * 0.1)):
        folder = tmp_path / str(index)
        folder.mkdir()
        quantize.Calibrated(model, rows, folder)
        ranges.append((folder / "ranges.json").read_text())
    assert ranges[0] != ranges[1]


def _float32(towers, reference, folder):
    made = programs.build(Export(), towers, reference, folder)
    path = folder / made[0].path
    assert relative_error(load_program(path, threads=1)(reference.pixels), reference.image_features) < 1e-5
    return path


def test_int4_of_text_weights(towers, reference, calibration, tmp_path):
    made = _build(
        ["float32", "int8_weights", "int4_weights"], towers, reference, calibration, tmp_path, max_error_int8=1
    )
    assert "image.int4_weights.onnx" not in made
    program = made["text.int4_weights.onnx"]
    assert made["text.int8_weights.onnx"].figures["error"] < program.figures["error"] < 1
    assert program.bytes < made["text.int8_weights.onnx"].bytes
    model = onnx_package.load(tmp_path / program.path)
    layers = quantize.layers(onnx_package.load(tmp_path / "text.float32.onnx"))
    four = [node.name.removesuffix("_Q4") for node in model.graph.node if node.op_type == "MatMulNBits"]
    eight = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    assert len(four) > 10
    assert set(four) < set(layers)
    assert len(four) + len(eight) == len(layers)


@pytest.mark.parametrize(("precision", "budget"), [("int8_weights", 0.03), ("int4_weights", 0.15)])
def test_weights_alone_keep_the_layers_their_budget_demands(
    towers, reference, calibration, tmp_path, precision, budget
):  # fmt: skip
    precisions = ["float32", precision]
    loose, _ = mixed.build(
        "onnx", precisions, towers, reference, calibration, tmp_path, max_kept=0, max_error_int8=10
    )  # fmt: skip
    whole = {path: program for path, program in loose.items() if program.precision == precision}
    made, layers = mixed.build(
        "onnx", precisions, towers, reference, calibration, tmp_path, max_kept=0.9, max_error_int8=budget
    )  # fmt: skip
    assert whole
    for path, program in whole.items():
        assert program.kept_in_float == []
        assert program.figures["error"] > budget
        assert program.bytes < made[path].bytes
        base = tmp_path / f"{program.tower}.float32.onnx"
        mixed.check(made[path], layers[path], tmp_path, towers, base)
        _check_operators(onnx_package.load(tmp_path / path), set(made[path].kept_in_float), set(layers[path]))


def _check_operators(model, kept, layers):
    """Kept layers are operators on float weights; the others have theirs restored from integers."""
    floats = {t.name for t in model.graph.initializer if t.data_type == onnx_package.TensorProto.FLOAT}
    nodes = {node.name: node for node in model.graph.node}
    for name in kept:
        assert nodes[name].input[0 if nodes[name].op_type == "Gather" else 1] in floats
    for name in layers - kept:
        assert name not in nodes or nodes[name].input[1] not in floats


@pytest.mark.slow
def test_kept_layers_are_the_same_bytes_again(towers, reference, calibration, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        mixed.build(
            "onnx", ["int8_weights"], towers, reference, calibration, tmp_path / name, max_error_int8=0.04
        )  # fmt: skip
    one, other = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("a", "b"))
    assert one == other
    assert programs.LAYERS_FILE in one
