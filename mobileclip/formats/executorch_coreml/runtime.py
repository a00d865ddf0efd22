"""Compute with ExecuTorch programs for Core ML: the delegate's payload is taken out of the file and evaluated.

Core ML runs on Apple systems alone. What a phone would hand to it, the package inside of the program, is evaluated
operation by operation by `coreml_runtime`. That stands for the whole program only where the program is one call of
the delegate, so anything else is refused.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from executorch.exir._serialize._program import deserialize_pte_binary
from executorch.exir.scalar_type import ScalarType
from executorch.exir.schema import DelegateCall, Tensor

from mobileclip.errors import DataError
from mobileclip.formats.coreml import runtime as coreml_runtime
from mobileclip.formats.executorch_coreml import payload as payloads
from mobileclip.formats.executorch_coreml.payload import METADATA
from mobileclip.formats.program_ports import Port
from mobileclip.formats.runtime import Encoder

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
    program = _read(path)
    given, result = _ports(path, *_whole(path, program))
    files = _files(path, program.payload)
    package, description = _package(path, files)
    _check_names(path, files, description)
    function = package.functions["main"]
    inside = coreml_runtime.ports(path, function, description)
    _check_interface(path, (given, result), inside)
    return Encoder(path, given, result, coreml_runtime.executor(function, *inside))


@dataclass(frozen=True)
class _Program:
    """What matters of a program: instructions, backends, what it takes and gives, and what the first backend gets."""

    steps: list[Any]
    backends: list[str]
    inputs: list[int]
    outputs: list[int]
    values: list[Any]
    payload: bytes


def _read(path: Path) -> _Program:
    try:
        program = deserialize_pte_binary(path.read_bytes()).program
        (plan,) = program.execution_plan
        inputs, outputs = list(plan.inputs), list(plan.outputs)
        index = plan.delegates[0].processed.index if plan.delegates else None
        return _Program(
            [step.instr_args for chain in plan.chains for step in chain.instructions],
            [delegate.id for delegate in plan.delegates], inputs, outputs,
            [plan.values[place].val for place in (*inputs, *outputs)],
            b"" if index is None else bytes(program.backend_delegate_data[index].data),
        )  # fmt: skip
    except Exception as error:  # noqa: BLE001 - the reader raises what its parts raise
        kind = type(error).__name__
        raise DataError(f"programs: '{path.name}' is no readable ExecuTorch program: {kind}.") from None


def _whole(path: Path, program: _Program) -> tuple[Tensor, Tensor]:
    """Input and output of a program that is one call of the delegate and nothing else."""
    steps, tensors = program.steps, program.values
    if program.backends != [BACKEND] or len(steps) != 1 or not isinstance(steps[0], DelegateCall):
        calls = ", ".join(sorted(set(program.backends))) or "no delegate"
        raise DataError(
            f"programs: '{path.name}' has {len(steps)} steps and calls {calls}, want one call of {BACKEND} alone."
        )
    counts = len(program.inputs), len(program.outputs)
    handed = [steps[0].delegate_index, *(steps[0].args or [])]
    if counts != (1, 1) or handed != [0, *program.inputs, *program.outputs]:
        raise DataError(
            f"programs: '{path.name}' has {counts[0]} inputs and {counts[1]} outputs and its delegate takes "
            f"{len(handed) - 1}, want one input and one output handed to it."
        )
    if not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise DataError(f"programs: '{path.name}' takes or gives something else than a tensor.")
    return tensors[0], tensors[1]


def _files(path: Path, payload: bytes) -> dict[str, bytes]:
    """The files inside of the payload, by path."""
    try:
        return payloads.unpack(payload)
    except DataError as error:
        raise DataError(f"programs: '{path.name}' is damaged: {error}") from None


def _package(path: Path, files: Mapping[str, bytes]) -> tuple[Any, Any]:
    """The MIL program of the package inside and the description of its interface."""
    with tempfile.TemporaryDirectory(prefix="mobileclip-coreml-") as name:
        return coreml_runtime.read(payloads.write(files, Path(name)), name=path.name)


def _check_names(path: Path, files: Mapping[str, bytes], description: Any) -> None:
    """The delegate finds the package's input and output by the names that lie beside it."""
    try:
        raw = json.loads(files[METADATA])
        named = [list(raw["inputNames"]), list(raw["outputNames"])]
    except (KeyError, TypeError, ValueError):
        raise DataError(f"programs: '{path.name}' has no readable '{METADATA}' in its payload.") from None
    there = [[one.name for one in description.input], [one.name for one in description.output]]
    if named != there or [len(names) for names in named] != [1, 1]:
        raise DataError(f"programs: '{path.name}' names {named} in its payload, whose package has {there}.")


def _ports(path: Path, given: Tensor, result: Tensor) -> tuple[Port, Port]:
    """Input and output of the program; it has no names for them, so they get the contract's."""
    types = [_TYPES.get(tensor.scalar_type, tensor.scalar_type.name) for tensor in (given, result)]
    tower = "text" if types[0] == "int32" else "image"
    ports = Port(tower, types[0], tuple(given.sizes)), Port(f"{tower}_features", types[1], tuple(result.sizes))
    if (types[0], len(given.sizes)) not in _INPUTS or (types[1], len(result.sizes)) != ("float32", 2):
        raise DataError(f"programs: '{path.name}' takes {ports[0]} and gives {ports[1]}, want one tower's.")
    return ports


def _check_interface(path: Path, program: tuple[Port, Port], package: tuple[Port, Port]) -> None:
    """What the program hands over is what the package takes, and back; the delegate converts an output in float16."""
    given, result = package
    same = [port.shape for port in program] == [port.shape for port in package]
    if not same or (given.dtype, given.kind) != (program[0].dtype, "array") or result.dtype not in _RESULTS:
        raise DataError(
            f"programs: '{path.name}' hands {program[0]} to Core ML and wants {program[1]}, but its package takes "
            f"{given} and gives {result}."
        )


_TYPES = {ScalarType.FLOAT: "float32", ScalarType.INT: "int32"}
_INPUTS = {("float32", 4), ("int32", 2)}
_RESULTS = {"float32", "float16"}
