"""Run ONNX programs in ONNX Runtime."""

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from mobileclip.errors import DataError
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
    name, tower = str(given.name), str(given.name)
    shape = tuple(int(d) for d in given.shape[1:])
    batch = given.shape[0] if isinstance(given.shape[0], int) else 0

    def execute(rows: NDArray[np.generic]) -> Floats:
        result: Floats = session.run([output.name], {name: rows})[0]
        return result

    return Encoder(tower, path, shape, execute, batch)
