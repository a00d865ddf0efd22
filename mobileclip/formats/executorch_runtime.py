"""Run ExecuTorch programs in the real runtime."""

from pathlib import Path

import numpy as np
import torch
from executorch.extension.pybindings import portable_lib
from executorch.runtime import Runtime, Verification
from numpy.typing import NDArray

from mobileclip.errors import DataError
from mobileclip.formats.runtime import Encoder, Floats, refusal

_INTEGERS = {3: np.int32}  # ExecuTorch's number of the type


def open_program(path: Path, threads: int) -> Encoder:
    """Load a `.pte` file.

    Args:
        path: The program.
        threads: Of the whole process: the runtime has one pool; 0 = as it is.

    Raises:
        DataError: The runtime refuses the file.
    """
    if threads:
        portable_lib._unsafe_reset_threadpool(threads)  # noqa: SLF001 - there is no other way to set them
    try:
        program = Runtime.get().load_program(path, verification=Verification.InternalConsistency)
        method = program.load_method("forward")
    except RuntimeError as error:
        raise refusal("ExecuTorch", path, error) from None
    if method is None:
        raise DataError(f"programs: '{path.name}' has no method 'forward'.")
    given = method.metadata.input_tensor_meta(0)
    sizes = [int(size) for size in given.sizes()]
    tower = "text" if int(given.dtype()) in _INTEGERS else "image"

    def execute(rows: NDArray[np.generic]) -> Floats:
        # The program must outlive its method, and the output's memory belongs to the method.
        result: Floats = method.execute([torch.from_numpy(np.ascontiguousarray(rows))])[0].numpy().copy()
        return result if program is not None else result[:0]

    return Encoder(tower, path, tuple(sizes[1:]), execute, sizes[0])
