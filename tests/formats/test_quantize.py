"""ONNX int8 beyond dynamic products: calibrated, mixed by sensitivity, and of weights alone."""

import numpy as np
import onnx as onnx_package
import pytest
from onnx import numpy_helper

from mobileclip.config import Export
from mobileclip.errors import ExportError
from mobileclip.formats import programs, quantize
from mobileclip.formats.proof import relative_error
from mobileclip.formats.runtime import load_program


@pytest.fixture(scope="module")
def calibration(clip, samples):
    """Other pictures than those of the proof."""
    from mobileclip.formats import proof
    from tests.formats.conftest import pattern_samples

    return proof.refer(clip, pattern_samples(26)[10:])


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
    with pytest.raises(ExportError, match=r"'image\.int8_static\.onnx' has error .*in int8 these layers lose most: "):
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
