"""Evaluate Core ML programs operation by operation, from the package's own specification and weights.

Core ML runs on Apple systems alone. This is an emulation: every operation is computed in float32 and rounded to the
type its result has in the program, so it checks graph, weights and interface, not the Neural Engine's arithmetic.
The operations themselves are in `coreml_operations`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mobileclip.errors import DataError
from mobileclip.formats.coreml.operations import OPERATIONS, Tensor
from mobileclip.formats.exporter_logging import no_notes
from mobileclip.formats.program_ports import Port
from mobileclip.formats.runtime import Encoder, Floats


def open_program(path: Path, threads: int) -> Encoder:
    """Load an `.mlpackage`, check its interface and make it computable.

    Args:
        path: The package.
        threads: Not used: nothing here is timed.

    Raises:
        DataError: It is no package, or its interface is not a tower's.
    """
    del threads
    program, description = read(path)
    given, result = _interface(path, program.functions["main"], description)
    return Encoder(path, given, result, executor(program.functions["main"], given, result))


def executor(function: Any, given: Port, result: Port) -> Callable[[NDArray[np.generic]], Floats]:
    """A MIL function as a Python function.

    Args:
        function: Of coremltools' loader.
        given: Its only input.
        result: The output that is asked for.
    """
    number = torch.int32 if given.dtype == "int32" else torch.float32
    scale = 255 if given.kind == "picture" else 1  # pixels come in 0-1

    @torch.no_grad()
    def execute(rows: NDArray[np.generic]) -> Floats:
        taken = torch.from_numpy(np.ascontiguousarray(rows)).to(number) * scale
        return evaluate(function, {given.name: taken})[result.name].float().numpy()

    return execute


def operations(path: Path) -> list[str]:
    """The types of a package's operations, in order, constants left out."""
    program, _ = read(path)
    return [op.op_type for op in program.functions["main"].operations if op.op_type != "const"]


def evaluate(function: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Evaluate a MIL function.

    Args:
        function: Of coremltools' loader.
        inputs: By name.

    Returns:
        Outputs by name.

    Raises:
        DataError: An operation is not among those a tower needs.
    """
    values: dict[str, Any] = dict(inputs)
    for op in function.operations:
        if op.op_type == "const":
            continue
        known = OPERATIONS.get(op.op_type)
        if known is None:
            raise DataError(f"programs: the Core ML operation '{op.op_type}' cannot be emulated.")
        given = {name: _resolve(value, values) for name, value in op.inputs.items() if value is not None}
        given["types"] = [_type(out) for out in op.outputs]
        result = known(given)
        for out, value in zip(op.outputs, result if isinstance(result, (list, tuple)) else [result], strict=True):
            values[out.name] = value.to(_type(out))
    return {out.name: values[out.name] for out in function.outputs}


def _resolve(value: Any, values: dict[str, Any]) -> Any:
    """Tensors for what was computed and for constant arrays; Python values for all other constants."""
    if isinstance(value, (list, tuple)):
        return [_resolve(item, values) for item in value]
    if value.name in values:
        return values[value.name]
    constant = value.val
    if isinstance(constant, (np.ndarray, np.generic)) and np.asarray(constant).dtype.kind in "fiub":
        return torch.from_numpy(np.array(constant))
    return constant


def _type(var: Any) -> torch.dtype:
    from coremltools.converters.mil.mil import types

    return _TYPES[types.builtin_to_string(var.dtype)]  # all whole-number types share one __name__


def read(path: Path, *, name: str = "") -> tuple[Any, Any]:
    """The MIL program of a package and the description of its interface.

    Args:
        path: The package.
        name: What errors call it; empty = by its own name.

    Raises:
        DataError: It is no package.
    """
    with no_notes():
        from coremltools import utils
        from coremltools.converters.mil.frontend.milproto.load import load

        try:
            spec = utils.load_spec(str(path))
            weights = path / "Data" / "com.apple.CoreML" / "weights"
            return load(spec, spec.specificationVersion, str(weights)), spec.description
        except Exception as error:  # noqa: BLE001 - the loader raises what its parts raise
            kind = type(error).__name__
            raise DataError(f"programs: '{name or path.name}' is no readable Core ML package: {kind}.") from None


def _interface(path: Path, function: Any, description: Any) -> tuple[Port, Port]:
    """Input and output of a tower, under the contract's names."""
    given, results = list(description.input), list(description.output)
    tower = given[0].name if len(given) == 1 else ""
    if tower not in {"image", "text"} or [out.name for out in results] != [f"{tower}_features"]:
        names = [*(g.name for g in given), *(r.name for r in results)]
        raise DataError(f"programs: '{path.name}' has inputs and outputs {names}, want one tower's.")
    return ports(path, function, description)


def ports(path: Path, function: Any, description: Any) -> tuple[Port, Port]:
    """The first input and output as a package describes them to an app, which its program must agree with.

    Raises:
        DataError: It does not, or they are neither picture nor array.
    """
    found = _port(path, description.input[0]), _port(path, description.output[0])
    inside = {name: _sizes(given.shape) for name, given in function.inputs.items()}
    computed = {out.name: _sizes(out.shape) for out in function.outputs}
    for port, shapes in zip(found, (inside, computed), strict=True):
        if port.shape != shapes.get(port.name):
            shape = shapes.get(port.name)
            raise DataError(f"programs: '{path.name}' describes {port}, but its program has the shape {shape}.")
    return found


def _sizes(shape: Sequence[Any]) -> tuple[int | str, ...]:
    """Sizes of a MIL tensor, whose open ones are symbols."""
    return tuple(int(size) if isinstance(size, (int, np.integer)) else str(size) for size in shape)


def _port(path: Path, feature: Any) -> Port:
    """One input or output of a package's description."""
    kind = feature.type.WhichOneof("Type")
    if kind == "imageType":
        picture = feature.type.imageType
        color = picture.ColorSpace.Name(picture.colorSpace)
        if color != "RGB" or picture.WhichOneof("SizeFlexibility"):
            raise DataError(f"programs: '{path.name}' takes a {color} picture as {feature.name}, want RGB of one size.")
        return Port(feature.name, "uint8", (1, 3, int(picture.height), int(picture.width)), "picture")
    if kind != "multiArrayType":
        raise DataError(f"programs: '{path.name}' has {kind} as {feature.name}, want a picture or an array.")
    array = feature.type.multiArrayType
    return Port(
        feature.name, array.ArrayDataType.Name(array.dataType).lower(), tuple(int(size) for size in array.shape)
    )  # fmt: skip


_TYPES = {
    "fp16": torch.float16, "fp32": torch.float32, "int32": torch.int32, "int16": torch.int16, "int8": torch.int8,
    "uint8": torch.uint8, "uint16": torch.int32, "bool": torch.bool, "int64": torch.int64,
}  # fmt: skip
