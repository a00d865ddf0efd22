"""Run LiteRT programs in the real runtime."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from numpy.typing import NDArray

from mobileclip.errors import DataError
from mobileclip.formats.program_ports import Port
from mobileclip.formats.runtime import Encoder, Floats, refusal

Shapes = tuple[tuple[int, ...], ...]


def open_program(path: Path, threads: int) -> Encoder:
    """Load a `.tflite` file.

    Args:
        path: The program.
        threads: Of this program; 0 = the runtime's choice.

    Raises:
        DataError: The runtime refuses the file.
    """
    try:
        interpreter = Interpreter(str(path), num_threads=threads or None)
        runner = interpreter.get_signature_runner()
    except (RuntimeError, ValueError) as error:
        raise refusal("LiteRT", path, error) from None
    details = runner.get_input_details()
    if list(details) not in (["image"], ["text"]):
        raise DataError(f"programs: '{path.name}' has inputs {list(details)}, want one input, 'image' or 'text'.")
    name = next(iter(details))
    results = runner.get_output_details()
    if list(results) != [f"{name}_features"]:
        raise DataError(f"programs: '{path.name}' has outputs {list(results)}, want one, '{name}_features'.")
    given, result = _port(details), _port(results)

    def execute(rows: NDArray[np.generic]) -> Floats:
        # The runner reads its interpreter through a weak reference.
        features: Floats = next(iter(runner(**{name: rows}).values())) if interpreter else np.empty(0, np.float32)
        return features

    return Encoder(path, given, result, execute)


def delegation(path: Path) -> dict[str, float]:
    """What XNNPACK, LiteRT's default delegate, takes over of a program on this machine.

    The runtime keeps the nodes that a delegate stands for: they are those between its inputs and outputs.

    Returns:
        `delegated`, the share of nodes that are taken over, and `subgraphs`, in how many pieces.
    """
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    nodes = interpreter._get_ops_details()  # noqa: SLF001 - there is no public way to them
    own = [node for node in nodes if node["op_name"] != _DELEGATE]
    maker = {int(tensor): node for node in own for tensor in node["outputs"]}
    pieces = [node for node in nodes if node["op_name"] == _DELEGATE]
    taken: set[int] = set()
    for piece in pieces:
        given, wanted = {int(tensor) for tensor in piece["inputs"]}, [int(tensor) for tensor in piece["outputs"]]
        while wanted:
            tensor = wanted.pop()
            node = None if tensor in given else maker.get(tensor)
            if node is not None and node["index"] not in taken:
                taken.add(node["index"])
                wanted += [int(tensor) for tensor in node["inputs"]]
    return {"delegated": round(len(taken) / len(own), 4), "subgraphs": float(len(pieces))}


_DELEGATE = "DELEGATE"


def _port(details: Mapping[str, Mapping[str, Any]]) -> Port:
    (name, about), *_ = details.items()
    return Port(name, np.dtype(about["dtype"]).name, tuple(int(size) for size in about["shape"]))


def list_operators(path: Path) -> list[tuple[str, Shapes, Shapes, frozenset[str]]]:
    """Kind, shapes of computed inputs and of outputs, and types of each operation; no delegate is asked."""
    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(str(path), experimental_op_resolver_type=plain)
    nodes = interpreter._get_ops_details()  # noqa: SLF001 - there is no public way to them
    about = {int(tensor["index"]): tensor for tensor in interpreter.get_tensor_details()}
    given = {int(tensor["index"]) for tensor in interpreter.get_input_details()}
    computed = given.union(*({int(tensor) for tensor in node["outputs"]} for node in nodes))

    def shapes(tensors: Any) -> Shapes:
        chosen = [about[int(tensor)]["shape_signature"] for tensor in tensors if int(tensor) in computed]
        return tuple(tuple(int(size) for size in shape) for shape in chosen)

    found = []
    for node in nodes:
        ports = [int(tensor) for tensor in (*node["inputs"], *node["outputs"]) if int(tensor) in computed]
        types = frozenset(np.dtype(about[tensor]["dtype"]).name for tensor in ports)
        found.append((str(node["op_name"]), shapes(node["inputs"]), shapes(node["outputs"]), types))
    return found
