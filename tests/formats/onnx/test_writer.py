"""ONNX programs run in ONNX Runtime, at any batch, in every precision, with the same bytes each time."""

import numpy as np
import onnx as onnx_package
import pytest
import torch

from mobileclip.errors import DataError, ExportError
from mobileclip.formats.onnx import writer as onnx
from mobileclip.formats.proof import relative_error
from mobileclip.formats.runtime import load_program
from mobileclip.formats.towers import split
from tests.formats import fixed_batch
from tests.models.perturbed import patterned_images, perturbed_clip

LIMITS = {"float32": 1e-5, "float16": 0.01, "int8": 0.25}


def test_all_programs_are_written(written):
    assert set(written) == {
        "image.float32.onnx", "text.float32.onnx", "image.float16.onnx", "text.float16.onnx", "text.int8.onnx",
    }  # fmt: skip


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_programs_equal_the_student(written, folder, clip, reference, rows):
    for program in written.values():
        encode = load_program(folder / program.path, threads=1)
        got = encode(reference.inputs(program.tower)[:rows])
        wanted = reference.features(program.tower)
        spread = np.linalg.norm(wanted - wanted.mean(0)) * np.sqrt(rows / len(wanted))
        assert got.shape == (rows, clip.embed_dim)
        assert got.dtype == np.float32
        assert np.linalg.norm(got - wanted[:rows]) / spread < LIMITS[program.precision]


def test_inputs_and_outputs_are_the_contracts(written, folder, reference):
    for program in written.values():
        graph = onnx_package.load(folder / program.path).graph
        given, result = graph.input[0].type.tensor_type, graph.output[0].type.tensor_type
        shape = [d.dim_param or d.dim_value for d in given.shape.dim]
        assert (graph.input[0].name, graph.output[0].name) == (program.tower, f"{program.tower}_features")
        assert result.elem_type == onnx_package.TensorProto.FLOAT
        if program.tower == "image":
            assert given.elem_type == onnx_package.TensorProto.FLOAT
            assert shape == ["batch", *reference.pixels.shape[1:]]
        else:
            assert given.elem_type == onnx_package.TensorProto.INT32
            assert shape == ["batch", reference.tokens.shape[1]]


def test_gelu_is_one_operator(written, folder):
    operators = onnx.operators(folder / "image.float32.onnx")
    assert operators["Gelu"] > 0
    assert "Erf" not in operators


def test_programs_name_no_machine(written, folder):
    for program in written.values():
        data = (folder / program.path).read_bytes()
        assert b"site-packages" not in data
        assert b"stack_trace" not in data


def test_precisions_shrink_the_file(written):
    sizes = {path: program.bytes for path, program in written.items()}
    assert sizes["text.float16.onnx"] < 0.51 * sizes["text.float32.onnx"]
    assert sizes["text.int8.onnx"] < 0.28 * sizes["text.float32.onnx"]


def test_quantized_table_is_exact_per_row(written, folder):
    model = onnx_package.load(folder / "text.float32.onnx")
    kept = [name for name in onnx.quantizable(model) if name != "token_embedding/Gather"]
    tensors = {t.name: onnx_package.numpy_helper.to_array(t) for t in onnx.quantize(model, keep=kept).graph.initializer}
    table = {t.name: onnx_package.numpy_helper.to_array(t) for t in model.graph.initializer}["token_embedding.weight"]
    rows, scales = tensors["token_embedding.weight.int8"], tensors["token_embedding.weight.scale"]
    assert rows.dtype == np.int8
    assert (np.abs(rows * scales - table) <= scales * 0.5001).all()


def test_kept_layers_stay_in_float32(written, folder, reference):
    model = onnx_package.load(folder / "text.float32.onnx")
    names = onnx.quantizable(model)
    assert "blocks.1.mlp.c_fc/MatMul" in names
    assert onnx.quantize(model, keep=names) == model


def test_truncated_program_is_refused_by_the_runtime(written, folder, tmp_path):
    path = tmp_path / "text.onnx"
    path.write_bytes((folder / "text.int8.onnx").read_bytes()[:10_000])
    with pytest.raises(DataError, match=r"ONNX Runtime refuses 'text\.onnx'"):
        load_program(path)


def test_too_large_for_one_file(monkeypatch, tmp_path, written, folder):
    monkeypatch.setattr(onnx, "MAX_BYTES", 1000)
    with pytest.raises(ExportError, match="at most 1000"):
        onnx.save(onnx_package.load(folder / "text.int8.onnx"), tmp_path / "text.onnx")
    assert not list(tmp_path.iterdir())


@torch.no_grad()
def test_published_architecture_at_full_size(tmp_path):
    clip = perturbed_clip("MobileCLIP2-S0")
    tower = split(clip).image
    pixels = patterned_images(3, 256, seed=5)
    model = onnx.export(tower, example=pixels[:2], names=("image", "image_features"), opset=20)
    path = tmp_path / "image.float32.onnx"
    onnx.save(model, path)
    got = load_program(path, threads=1)(pixels.numpy())
    assert relative_error(got, clip.encode_image(pixels).numpy()) < 1e-4
    assert path.stat().st_size == pytest.approx(45.4e6, rel=0.01)


def test_fixed_batch(towers, reference, tmp_path):
    fixed_batch.check("onnx", towers, reference, tmp_path, precisions=("float32", "int8_static"))
