"""Run ONNX programs in ONNX Runtime."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from mobileclip.errors import DataError
from mobileclip.formats.program_ports import ANY_ROWS, Port
from mobileclip.formats.runtime import Encoder, Floats, refusal

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
