"""The rounding that fine-tuning learns to live with is that of ONNX Runtime's programs."""

import numpy as np
import onnx as onnx_package
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.quant_utils import compute_scale_zp, quantize_data

from mobileclip.config import Export
from mobileclip.formats import programs
from mobileclip.formats.onnx import int8 as quantize
from mobileclip.formats.proof import relative_error
from mobileclip.formats.qat import fake_quant

FINITE = st.floats(-1e6, 1e6, width=32)


def _session(kind):
    """ONNX Runtime's own QuantizeLinear and DequantizeLinear, with scales along the first axis for int8."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], axis=0),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], axis=0),
    ]
    sizes = [] if kind == TensorProto.UINT8 else ["channels"]
    given_ = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        helper.make_tensor_value_info("scale", TensorProto.FLOAT, sizes),
        helper.make_tensor_value_info("zero", kind, sizes),
    ]
    graph = helper.make_graph(nodes, "g", given_, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    # Optimized, the pair is taken out altogether.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


ACTIVATIONS, WEIGHTS = _session(TensorProto.UINT8), _session(TensorProto.INT8)


@settings(max_examples=200, deadline=None)
@given(x=arrays(np.float32, array_shapes(max_dims=4, max_side=20), elements=FINITE), low=FINITE, high=FINITE)
def test_tensors_are_rounded_bit_for_bit(x, low, high):
    low, high = min(low, high), max(low, high)
    scale, zero = fake_quant.activation_scale(low, high)
    theirs_zero, theirs_scale = compute_scale_zp(
        np.array(low, np.float32), np.array(high, np.float32), np.array(0), np.array(255)
    )
    assert (scale, zero) == (float(theirs_scale), int(theirs_zero))
    got = fake_quant.round_tensor(torch.from_numpy(x), torch.tensor(scale), zero, 0, 255)
    feed = {"x": x, "scale": np.array(scale, np.float32), "zero": np.array(zero, np.uint8)}
    np.testing.assert_array_equal(got.numpy(), ACTIVATIONS.run(None, feed)[0])


@settings(max_examples=200, deadline=None)
@given(
    weight=arrays(
        np.float32, array_shapes(min_dims=2, max_dims=4, max_side=12), elements=st.floats(-100, 100, width=32)
    )
)
def test_weights_are_rounded_bit_for_bit(weight):
    scales = fake_quant.weight_scales(torch.from_numpy(weight)).numpy()
    feed = {"x": weight, "scale": scales.reshape(-1), "zero": np.zeros(len(weight), np.int8)}
    got = fake_quant.round_weight(torch.from_numpy(weight)).numpy()
    np.testing.assert_array_equal(got, WEIGHTS.run(None, feed)[0])
    for row, scale, restored in zip(weight, scales.reshape(-1), got, strict=True):
        theirs = quantize_data(row, TensorProto.INT8, symmetric=True)
        assert float(theirs[1]) == float(scale)
        np.testing.assert_array_equal(theirs[2].reshape(row.shape) * scale, restored)


def test_gradient_passes_straight_but_not_where_it_was_clipped():
    x = torch.tensor([-1.0, 0.1, 0.33, 0.9, 7.0], requires_grad=True)
    rounded = fake_quant.round_tensor(x, torch.tensor(1 / 255), 0, 0, 255)
    (rounded * torch.arange(1.0, 6.0)).sum().backward()
    assert x.grad.tolist() == [0, 2, 3, 4, 0]


@pytest.fixture(scope="module")
def rounded(towers, reference):
    pixels = torch.from_numpy(reference.pixels)
    module = fake_quant.with_rounding(towers.image, pixels[:2])
    fake_quant.observe(module, pixels.split(5))
    return module


@pytest.fixture(scope="module")
def program(towers, reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("static")
    section = Export(precisions=["float32", "int8_static"], max_kept=0, max_error_int8=100)
    programs.build(section, towers, reference, folder, calibrate=lambda: reference)
    return folder / "image.int8_static.onnx"


def test_same_tensors_with_the_same_ranges_as_the_program(rounded, program):
    graph = onnx_package.load(program).graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    theirs = sorted(float(tensors[node.input[1]]) for node in graph.node if node.op_type == "QuantizeLinear")
    parts = [part for part in rounded.modules() if isinstance(part, fake_quant.Activation)]
    mine = sorted(fake_quant.activation_scale(part.low, part.high)[0] for part in parts)
    assert len(mine) == len(theirs) > 20
    np.testing.assert_allclose(mine, theirs, rtol=1e-4)


@torch.no_grad()
def test_tower_with_rounding_computes_what_the_program_does(rounded, program, reference):
    """Sums in another order change a rounding here and there, and a random student makes much of that at its end."""
    model = onnx_package.load(program)
    results = [node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"]
    first = next(name for name in results if name.startswith("gelu_1_"))
    model.graph.output.append(helper.make_empty_tensor_value_info(first))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    last, theirs = session.run(None, {"image": reference.pixels})
    seen = {}
    for name, part in rounded.named_modules():
        if isinstance(part, fake_quant.Activation):
            part.register_forward_hook(lambda own, _, result, name=name: seen.update({name: (own, result)}))
    got = rounded(torch.from_numpy(reference.pixels)).numpy()
    part, mine = seen["rounded_4"]
    steps = np.abs(mine.numpy() - theirs) / fake_quant.activation_scale(part.low, part.high)[0]
    assert steps.mean() < 0.01
    assert theirs.std() > 0
    loss = relative_error(last, reference.image_features)
    assert relative_error(got, last) < 0.8 * loss


@torch.no_grad()
def test_while_ranges_are_taken_nothing_is_rounded(rounded, towers, reference):
    pixels = torch.from_numpy(reference.pixels)
    seen = []
    handle = rounded.register_forward_hook(lambda _module, _given, result: seen.append(result))
    fake_quant.observe(rounded, [pixels])
    handle.remove()
    torch.testing.assert_close(seen[0], towers.image(pixels), atol=1e-6, rtol=0)
    assert not torch.equal(rounded(pixels), seen[0])


def test_every_layer_of_the_program_is_rounded(rounded, program, towers, reference):
    weights = [part for part in rounded.modules() if isinstance(part, fake_quant.Weight)]
    plain = program.with_name("image.float32.onnx")
    assert len(weights) == len(quantize.layers(onnx_package.load(plain)))
    assert dict(rounded.named_parameters()).keys() == dict(towers.image.named_parameters()).keys()
