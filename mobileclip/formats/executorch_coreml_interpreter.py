"""Compute with ExecuTorch programs for Core ML: the delegate's payload is taken out of the file and evaluated.

Core ML runs on Apple systems alone. What a phone would hand to it, the package inside of the program, is evaluated
operation by operation by `coreml_interpreter`. That stands for the whole program only where the program is one call of
the delegate, so anything else is refused.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from executorch.exir._serialize._program import deserialize_pte_binary
from executorch.exir.scalar_type import ScalarType
from executorch.exir.schema import DelegateCall, ExecutionPlan, Tensor

from mobileclip.errors import DataError
from mobileclip.formats import coreml_interpreter, executorch_payload
from mobileclip.formats.executorch_payload import METADATA
from mobileclip.formats.runtime import Encoder, refusal

BACKEND = "CoreMLBackend"


def open_program(path: Path, threads: int) -> Encoder:
    """Load a `.coreml.pte` file, check its interface and make it computable.

    Args:
        path: The program.
        threads: Not used: nothing here is timed.

    Raises:
        DataError: It is no program, computes anything outside of its Core ML delegate, or its interface is not a
            tower's.
    """
    del threads
    plan, payload = _program(path)
    given, result = _whole(path, plan)
    files = _files(path, payload)
    program, description = _package(path, files)
    names = _names(path, files, description)
    tower = _interface(path, (given, result), description)
    execute = coreml_interpreter.executor(program.functions["main"], *names)
    return Encoder(tower, path, tuple(given.sizes[1:]), execute, given.sizes[0])


def _program(path: Path) -> tuple[ExecutionPlan, bytes]:
    """The plan of a program and what its first delegate gets."""
    try:
        program = deserialize_pte_binary(path.read_bytes()).program
        (plan,) = program.execution_plan
        data = program.backend_delegate_data
        return plan, bytes(data[plan.delegates[0].processed.index].data) if plan.delegates else b""
    except Exception as error:  # noqa: BLE001 - the reader raises what its parts raise
        raise refusal("ExecuTorch", path, error or type(error)) from None


def _whole(path: Path, plan: ExecutionPlan) -> tuple[Tensor, Tensor]:
    """Input and output of a program that is one call of the delegate and nothing else."""
    steps = [step.instr_args for chain in plan.chains for step in chain.instructions]
    delegates = [delegate.id for delegate in plan.delegates]
    if delegates != [BACKEND] or len(steps) != 1 or not isinstance(steps[0], DelegateCall):
        calls = ", ".join(sorted(set(delegates))) or "no delegate"
        raise DataError(
            f"programs: '{path.name}' has {len(steps)} steps and calls {calls}, want one call of {BACKEND} alone."
        )
    arguments = [*plan.inputs, *plan.outputs]
    tensors = [plan.values[index].val for index in arguments]
    if list(steps[0].args) != arguments or len(plan.inputs) != 1 or len(plan.outputs) != 1:
        raise DataError(
            f"programs: '{path.name}' has {len(plan.inputs)} inputs and {len(plan.outputs)} outputs and its delegate "
            f"takes {len(steps[0].args)}, want one input and one output handed to it."
        )
    if not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise DataError(f"programs: '{path.name}' takes or gives something else than a tensor.")
    return tensors[0], tensors[1]


def _files(path: Path, payload: bytes) -> dict[str, bytes]:
    """The files inside of the payload, by path."""
    try:
        return executorch_payload.unpack(payload)
    except DataError as error:
        raise DataError(f"programs: '{path.name}' is damaged: {error}") from None


def _package(path: Path, files: Mapping[str, bytes]) -> tuple[Any, Any]:
    """The MIL program of the package inside and the description of its interface."""
    with tempfile.TemporaryDirectory(prefix="mobileclip-coreml-") as name:
        return coreml_interpreter.read(executorch_payload.write(files, Path(name)), name=path.name)


def _names(path: Path, files: Mapping[str, bytes], description: Any) -> tuple[str, str]:
    """Names of the package's input and output, as the delegate finds them."""
    try:
        raw = json.loads(files[METADATA])
        named = [list(raw["inputNames"]), list(raw["outputNames"])]
    except (KeyError, TypeError, ValueError):
        raise DataError(f"programs: '{path.name}' has no readable '{METADATA}' in its payload.") from None
    there = [[one.name for one in description.input], [one.name for one in description.output]]
    if named != there or [len(names) for names in named] != [1, 1]:
        raise DataError(f"programs: '{path.name}' names {named} in its payload, whose package has {there}.")
    return named[0][0], named[1][0]


def _interface(path: Path, tensors: tuple[Tensor, Tensor], description: Any) -> str:
    """The tower; the program's tensors must be its own, and the package's of the same shapes and kinds.

    Core ML may give its output in float16: the delegate converts it.
    """
    given, result = tensors
    tower = _TOWERS.get((given.scalar_type, len(given.sizes)), "")
    if not tower or result.scalar_type != ScalarType.FLOAT or len(result.sizes) != 2:
        raise DataError(
            f"programs: '{path.name}' takes {given.scalar_type.name} {given.sizes} and gives "
            f"{result.scalar_type.name} {result.sizes}, want one tower's."
        )
    inside = (description.input[0].type.multiArrayType, description.output[0].type.multiArrayType)
    kinds = [kind.ArrayDataType.Name(kind.dataType) for kind in inside]
    same = [list(kind.shape) for kind in inside] == [list(tensor.sizes) for tensor in tensors]
    if not same or kinds[0] != _KINDS[tower] or kinds[1] not in {"FLOAT32", "FLOAT16"}:
        shapes = [f"{name} {list(kind.shape)}" for name, kind in zip(kinds, inside, strict=True)]
        raise DataError(
            f"programs: '{path.name}' hands {given.sizes} to Core ML and wants {result.sizes}, but its package takes "
            f"{shapes[0]} and gives {shapes[1]}."
        )
    return tower


_TOWERS = {(ScalarType.FLOAT, 4): "image", (ScalarType.INT, 2): "text"}
_KINDS = {"image": "FLOAT32", "text": "INT32"}
