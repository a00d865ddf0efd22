"""Run ONNX programs in ONNX Runtime."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from mobileclip.errors import DataError
from mobileclip.formats.program_ports import ANY_ROWS, Port
from mobileclip.formats.runtime import Encoder, Floats, refusal

Shapes = tuple[tuple[int, ...], ...]
_ERRORS = (
    onnxruntime.capi.onnxruntime_pybind11_state.Fail,
    onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument,
    onnxruntime.capi.onnxruntime_pybind11_state.InvalidGraph,
    onnxruntime.capi.onnxruntime_pybind11_state.InvalidProtobuf,
    onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented,
    onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException,
)


def open_program(path: Path, threads: int) -> Encoder:
    """Load an `.onnx` file.

    Args:
        path: The program.
        threads: Of this program; 0 = the runtime's choice.

    Raises:
        DataError: The runtime refuses the file.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Spinning workers of one program would steal the cores of the next in an interleaved measurement, and drain a
    # phone's battery; the cost of waking them is below the noise for these towers.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # On x86 without VNNI sums of two 8-bit products saturate at 16 bits, unless this asks for exact ones: embeddings
    # would depend on the processor, and phones and browsers compute others. Elsewhere it changes nothing.
    options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except _ERRORS as error:
        raise refusal("ONNX Runtime", path, error) from None
    given, output = session.get_inputs()[0], session.get_outputs()[0]
    if len(session.get_inputs()) != 1 or given.name not in {"image", "text"}:
        raise DataError(f"programs: '{path.name}' has input '{given.name}', want one input, 'image' or 'text'.")
    name = str(given.name)

    def execute(rows: NDArray[np.generic]) -> Floats:
        result: Floats = session.run([output.name], {name: rows})[0]
        return result

    return Encoder(path, _port(given), _port(output), execute)


def _port(value: Any) -> Port:
    rows, *rest = value.shape
    kind = _TYPES.get(value.type, str(value.type))
    return Port(str(value.name), kind, (rows if isinstance(rows, int) else ANY_ROWS, *rest))


_TYPES = {"tensor(float)": "float32", "tensor(int32)": "int32"}


def list_operators(path: Path) -> list[tuple[str, Shapes, Shapes, frozenset[str]]]:
    """Kind, shapes of computed inputs and of outputs, and types of each node of a program, by ONNX's inference."""
    import onnx  # an app runs programs without it

    graph = onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True).graph
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {output for node in graph.node if node.op_type == "Constant" for output in node.output}
    about = {value.name: value.type.tensor_type for value in (*graph.input, *graph.value_info, *graph.output)}

    def shapes(names: Iterable[str]) -> Shapes:
        kinds = [about[name] for name in names if name in about and name not in constants]
        return tuple(tuple(int(d.dim_value) if d.HasField("dim_value") else -1 for d in k.shape.dim) for k in kinds)

    def types(names: Iterable[str]) -> frozenset[str]:
        kinds = [about[name] for name in names if name in about and name not in constants]
        return frozenset(onnx.TensorProto.DataType.Name(kind.elem_type).lower() for kind in kinds)

    return [
        (node.op_type, shapes(node.input), shapes(node.output), types((*node.input, *node.output)))
        for node in graph.node
        if node.op_type != "Constant"
    ]
