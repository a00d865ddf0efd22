"""Run ExecuTorch programs in the real runtime."""

from pathlib import Path

import numpy as np
import torch
from executorch.extension.pybindings import portable_lib
from executorch.runtime import Runtime, Verification
from numpy.typing import NDArray

from mobileclip.errors import DataError
from mobileclip.formats.program_ports import Port
from mobileclip.formats.runtime import Encoder, Floats, refusal

_TYPES = {3: "int32", 6: "float32"}  # ExecuTorch's numbers of types


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
    counts = (method.metadata.num_inputs(), method.metadata.num_outputs())
    if counts != (1, 1):
        raise DataError(f"programs: '{path.name}' has {counts[0]} inputs and {counts[1]} outputs, want one of each.")
    metas = (method.metadata.input_tensor_meta(0), method.metadata.output_tensor_meta(0))
    kinds = [_TYPES.get(int(meta.dtype()), str(meta.dtype())) for meta in metas]
    tower = "text" if kinds[0] == "int32" else "image"  # a program of ExecuTorch has no names
    names = (tower, f"{tower}_features")
    given, result = (
        Port(name, kind, tuple(int(size) for size in meta.sizes()))
        for name, kind, meta in zip(names, kinds, metas, strict=True)
    )

    def execute(rows: NDArray[np.generic]) -> Floats:
        # The program must outlive its method, and the output's memory belongs to the method.
        features: Floats = method.execute([torch.from_numpy(np.ascontiguousarray(rows))])[0].numpy().copy()
        return features if program is not None else features[:0]

    return Encoder(path, given, result, execute)
