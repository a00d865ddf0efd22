"""ONNX programs in int8 beyond dynamic products: calibrated convolutions (QDQ), and weights alone.

Calibration takes the range of each activation over real samples that are not those of the proof. Weights have one
scale per output channel.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from mobileclip.formats.exporter_logging import no_logging
from mobileclip.formats.runtime import filled

LAYERS = ("Conv", "MatMul", "Gemm")
_RANGES, _SOURCE, _TARGET = "ranges.json", "float.onnx", "int8.onnx"
_SMALLEST = 2048  # weights; smaller tensors are not worth an operation


class Calibrated:
    """A float32 program with the ranges of its activations, to be quantized layer by layer."""

    def __init__(self, model: onnx.ModelProto, rows: NDArray[np.generic], folder: Path) -> None:
        """Run the samples through the program.

        Args:
            model: A float32 program.
            rows: Input samples.
            folder: For the ranges and intermediate programs.
        """
        self.layers = layers(model)
        self._folder = folder
        onnx.save(model, folder / _SOURCE)
        given = model.graph.input[0]
        self._reader = _Rows(given.name, rows, given.type.tensor_type.shape.dim[0].dim_value or 1)
        self.quantize(keep=self.layers[1:])  # the first run writes the ranges, the others read them

    def quantize(self, *, keep: Sequence[str] = ()) -> onnx.ModelProto:
        """The program with all layers but `keep` in int8: products of uint8 activations by int8 weights."""
        chosen = [layer for layer in self.layers if layer not in set(keep)]
        if not chosen:
            return onnx.load(self._folder / _SOURCE)
        with no_logging():
            quantize_static(
                self._folder / _SOURCE, self._folder / _TARGET, self._reader, quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(LAYERS), nodes_to_quantize=chosen, per_channel=True,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                calibration_cache_path=self._folder / _RANGES,
            )  # fmt: skip
        return onnx.load(self._folder / _TARGET)


def layers(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that multiply by a weight."""
    weights = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) > 1}
    return [n.name for n in model.graph.node if n.op_type in LAYERS and n.input[1] in weights and "/" in n.name]


def weights_only(model: onnx.ModelProto, *, keep: Sequence[str] = ()) -> onnx.ModelProto:
    """Weights of convolutions and products as int8, a scale per output channel; the program rounds no activations.

    Args:
        model: A float32 program; left as it is.
        keep: Names of nodes (of `weighted`) whose weights stay in float32.
    """
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    for node, tensor in _weighted(copied.graph):
        if node.name not in keep:
            _store_int8(copied.graph, tensor, axis=_channel_axis(node, len(tensor.dims)))
    return copied


def weighted(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes whose weights `weights_only` stores in int8."""
    return [node.name for node, _ in _weighted(model.graph)]


def _weighted(graph: onnx.GraphProto) -> list[tuple[onnx.NodeProto, onnx.TensorProto]]:
    """Convolutions and products with their weights, each weight once."""
    tensors = {t.name: t for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    nodes = [node for node in graph.node if node.op_type in LAYERS and len(node.input) > 1]
    found = [(node, tensors.pop(node.input[1])) for node in nodes if node.input[1] in tensors]
    return [(node, tensor) for node, tensor in found if np.prod(tensor.dims) >= _SMALLEST]


def _channel_axis(node: onnx.NodeProto, dimensions: int) -> int:
    """Of a weight: convolutions and transposed products have their output channels first."""
    is_transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if node.op_type == "Conv" or is_transposed else dimensions - 1


def _store_int8(graph: onnx.GraphProto, tensor: onnx.TensorProto, *, axis: int) -> None:
    """Replace a weight by its int8 form and the operation that restores it under the same name."""
    values = numpy_helper.to_array(tensor)
    others = tuple(other for other in range(values.ndim) if other != axis)
    scales = np.maximum(np.abs(values).max(axis=others) / 127, np.finfo(np.float32).tiny).astype(np.float32)
    shape = [-1 if other == axis else 1 for other in range(values.ndim)]
    rounded = np.clip(np.rint(values / scales.reshape(shape)), -127, 127).astype(np.int8)
    name = tensor.name
    graph.initializer.remove(tensor)
    graph.initializer.extend(
        [
            numpy_helper.from_array(rounded, f"{name}.int8"), numpy_helper.from_array(scales, f"{name}.scale"),
            # Written out: ONNX Runtime's exact products on x86 shift it with the weights.
            numpy_helper.from_array(np.zeros(len(scales), np.int8), f"{name}.zero"),
        ]
    )  # fmt: skip
    parts = [f"{name}.int8", f"{name}.scale", f"{name}.zero"]
    restore = helper.make_node("DequantizeLinear", parts, [name], f"{name}.restore", axis=axis)
    graph.node.insert(0, restore)


class _Rows(CalibrationDataReader):  # type: ignore[misc]
    """Samples in order, as many at a time as the program takes."""

    def __init__(self, name: str, rows: NDArray[np.generic], batch: int) -> None:
        whole = filled(rows, batch)
        self._rows = ({name: whole[start : start + batch]} for start in range(0, len(whole), batch))

    def get_next(self) -> dict[str, Any] | None:
        """The next sample, or None."""
        return next(self._rows, None)
