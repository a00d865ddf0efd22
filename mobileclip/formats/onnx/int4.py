"""ONNX text programs with int4 weights: blocks of 32 with a scale and a zero point, by ONNX Runtime's quantizer."""

from collections.abc import Sequence

import onnx
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from mobileclip.formats.exporter_logging import no_logging
from mobileclip.formats.onnx import int8 as quantize

BLOCK = 32


def weights_only(model: onnx.ModelProto, *, keep: Sequence[str] = ()) -> onnx.ModelProto:
    """Weights of products as int4 per block, arithmetic in float32; what has no int4 operation gets int8 weights.

    Args:
        model: A float32 program; left as it is.
        keep: Names of nodes (of `weighted`) whose weights stay in float32.
    """
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    chosen = set(quantize.layers(model)) - set(keep)
    others = [node.name for node in model.graph.node if node.op_type == "MatMul" and node.name not in chosen]
    with no_logging():
        quantizer = MatMulNBitsQuantizer(
            copied, bits=4, block_size=BLOCK, op_types_to_quantize=("MatMul",), nodes_to_exclude=others
        )  # fmt: skip
        quantizer.process()
    return quantize.weights_only(quantizer.model.model, keep=keep)


def weighted(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes whose weights `weights_only` stores in int4 or int8."""
    products = {node.name for node in model.graph.node if node.op_type == "MatMul"} & set(quantize.layers(model))
    others = set(quantize.weighted(model))
    return [node.name for node in model.graph.node if node.name in products | others]
