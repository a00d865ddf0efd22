"""ONNX programs by torch's exporter: float32, float16, int8 dynamic, calibrated (`quantize`) or of weights alone, int4.

Opset 20 is the least: below it GELU is spelled out and ONNX Runtime does not fuse it. Batch is dynamic unless asked.
"""

import ast
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import nn

from mobileclip.errors import ExportError
from mobileclip.formats.export_job import Job, Written, mixed, trace
from mobileclip.formats.exporter_logging import no_logging
from mobileclip.formats.half_precision import half
from mobileclip.formats.onnx import int4
from mobileclip.formats.onnx import int8 as calibrated
from mobileclip.formats.program_ports import ANY_ROWS

NAME = "onnx"
SUFFIX = ".onnx"
# Protobuf refuses larger messages; weights would have to lie beside the program.
MAX_BYTES = 2**31 - 1
_MATRIX_PRODUCTS = ("MatMul", "Gemm")
_SCOPES = "pkg.torch.onnx.name_scopes"


def versions() -> dict[str, str]:
    """Versions of all that decides the bytes of a program."""
    return {"torch": torch.__version__, "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}


def write(job: Job) -> Written:
    """Write one program; a quantized one over its budget gets its worst layers back in float32."""
    settings = {"opset": job.config.opset, "batch": job.batch or "any"}
    if job.precision in {"float32", "float16"}:
        save(_exported(job, half(job.module)) if job.precision == "float16" else _float32(job), job.path)
        return Written(settings)
    with tempfile.TemporaryDirectory() as name:
        layers, quantized = _quantized(job, Path(name))
        choice = mixed(job, layers, lambda keep: save(quantized(keep), job.path))
    return Written(settings, choice.figures, choice.keep, choice.alone)


def _quantized(job: Job, folder: Path) -> tuple[list[str], Callable[[Sequence[str]], onnx.ModelProto]]:
    """The layers of a quantized program, and the program that keeps some of them in float32."""
    model = _float32(job)
    if job.precision == "int8":
        return quantizable(model), lambda keep: quantize(model, keep=keep)
    if job.precision == "int8_static":
        source = calibrated.Calibrated(model, job.calibration_rows().numpy(), folder)
        return source.layers, lambda keep: _cleaned(source.quantize(keep=keep))
    kind = calibrated if job.precision == "int8_weights" else int4
    layers = [*(node.name for node in _tables(model)), *kind.weighted(model)]
    return layers, lambda keep: kind.weights_only(_with_int8_tables(model, keep), keep=keep)


def _float32(job: Job) -> onnx.ModelProto:
    """The float32 program, read again if it was written."""
    written = job.path.with_name(f"{job.tower}.float32{SUFFIX}")
    return onnx.load(written) if written.is_file() else _exported(job, job.module)


def _exported(job: Job, module: nn.Module) -> onnx.ModelProto:
    return export(module, example=job.example, names=job.names, opset=job.config.opset, batch=job.batch)


def export(
    tower: nn.Module, *, example: torch.Tensor, names: tuple[str, str], opset: int, batch: int = 0
) -> onnx.ModelProto:
    """One tower as one program.

    Args:
        tower: A module of `mobileclip.formats.towers`.
        example: Input rows, as `job.trace` wants them.
        names: Names of input and output.
        opset: ONNX operator set.
        batch: Rows per call; 0 = any.

    Returns:
        The program; its nodes are called after the modules they come from, and the same tower gives the same bytes.

    Raises:
        ExportError: torch gave none.
    """
    with torch.no_grad(), no_logging():
        program = torch.onnx.export(
            trace(tower, example, batch=batch), dynamo=True, opset_version=opset, input_names=[names[0]],
            output_names=[names[1]], dynamic_shapes=None if batch else ({0: ANY_ROWS},), verbose=False,
        )  # fmt: skip
    if program is None:
        raise ExportError(f"{names[1]}: torch gave no ONNX program.")
    model = _cleaned(_renamed(program.model_proto))
    onnx.checker.check_model(model, full_check=True)
    return model


def quantize(model: onnx.ModelProto, *, keep: Sequence[str] = ()) -> onnx.ModelProto:
    """Dynamic int8: matrix products by weights per channel and activations per call, the token table per row.

    Args:
        model: A float32 program; left as it is.
        keep: Names of nodes (of `quantizable`) that stay in float32.
    """
    prepared = _with_int8_tables(model, keep)
    products = [name for name in quantizable(prepared) if name not in keep]
    if not products:
        return prepared
    with tempfile.TemporaryDirectory() as folder, no_logging():
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(prepared, source)
        quantize_dynamic(
            source, target, nodes_to_quantize=products, per_channel=True, weight_type=QuantType.QInt8,
            op_types_to_quantize=list(_MATRIX_PRODUCTS),
        )  # fmt: skip
        return _cleaned(onnx.load(target))


def quantizable(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that `quantize` quantizes: products with a weight matrix, and token tables."""
    weights = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2}
    products = [n.name for n in model.graph.node if n.op_type in _MATRIX_PRODUCTS and n.input[1] in weights]
    # The triangle that counts earlier end tokens is no layer, and its sums must be exact.
    layers = [name for name in products if "/" in name]
    return [*(node.name for node in _tables(model)), *layers]


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a program.

    Raises:
        ExportError: It exceeds what one ONNX file can hold.
    """
    if model.ByteSize() > MAX_BYTES:
        raise ExportError(f"{path.name}: {model.ByteSize()} bytes, an ONNX file holds at most {MAX_BYTES}.")
    path.write_bytes(model.SerializeToString(deterministic=True))


def operators(path: Path) -> dict[str, int]:
    """How often each operator occurs in a program."""
    return dict(sorted(Counter(node.op_type for node in onnx.load(path).graph.node).items()))


def _tables(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Look-ups of rows in a float matrix."""
    tables = {t.name for t in model.graph.initializer if len(t.dims) == 2 and t.data_type == onnx.TensorProto.FLOAT}
    return [node for node in model.graph.node if node.op_type == "Gather" and node.input[0] in tables]


def _with_int8_tables(model: onnx.ModelProto, keep: Sequence[str]) -> onnx.ModelProto:
    """A copy whose token tables are in int8, but for those in `keep`."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    for node in _tables(copied):
        if node.name not in keep:
            _quantize_table(copied, node)
    return copied


def _quantize_table(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    """Rows as int8 with a scale each, in operations every runtime has: ONNX's own quantized look-up is per table."""
    graph, name = model.graph, node.input[0]
    index = next(i for i, tensor in enumerate(graph.initializer) if tensor.name == name)
    table = numpy_helper.to_array(graph.initializer[index])
    scales = np.maximum(np.abs(table).max(axis=1, keepdims=True) / 127, np.finfo(np.float32).tiny).astype(np.float32)
    rows = np.clip(np.rint(table / scales), -127, 127).astype(np.int8)
    del graph.initializer[index]
    graph.initializer.extend(
        [numpy_helper.from_array(rows, f"{name}.int8"), numpy_helper.from_array(scales, f"{name}.scale")]
    )
    tokens, result = node.input[1], node.output[0]
    parts = [
        helper.make_node("Gather", [f"{name}.int8", tokens], [f"{result}.int8"], f"{node.name}.int8"),
        helper.make_node("Cast", [f"{result}.int8"], [f"{result}.float"], f"{node.name}.cast", to=1),
        helper.make_node("Gather", [f"{name}.scale", tokens], [f"{result}.scale"], f"{node.name}.scale"),
        helper.make_node("Mul", [f"{result}.float", f"{result}.scale"], [result], f"{node.name}.mul"),
    ]
    place = list(graph.node).index(node)
    graph.node.remove(node)
    for offset, part in enumerate(parts):
        graph.node.insert(place + offset, part)


def _renamed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Call nodes after their modules (`blocks.0.query/MatMul`): the layer report names what a person knows."""
    seen: Counter[str] = Counter()
    for node in model.graph.node:
        scopes = next((p.value for p in node.metadata_props if p.key == _SCOPES), "")
        path = ast.literal_eval(scopes)[:-1] if scopes else []
        if path and path[-1] and not path[-1].startswith("_"):
            name = f"{path[-1]}/{node.op_type}"
            seen[name] += 1
            node.name = name if seen[name] == 1 else f"{name}.{seen[name]}"
    return model


def _cleaned(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without stack traces, module paths and inferred shapes: they name the machine and change from run to run."""
    graph = model.graph
    graph.ClearField("value_info")
    for part in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        _clear(part)
    return model


def _clear(part: Any) -> None:
    part.ClearField("metadata_props")
    part.ClearField("doc_string")
