"""Give exported ONNX programs the inputs and outputs that transformers.js asks CLIP models for."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mobileclip.formats.contract import ImageContract, TextContract
from mobileclip.formats.program_ports import TensorSpec

_PREFIX = "mobileclip_"
Arrays = NDArray[Any]


def vision_model(source: Path, target: Path, *, given: TensorSpec, result: TensorSpec, image: ImageContract) -> None:
    """Write an image program that takes `pixel_values` of any size and gives `image_embeds`.

    Images are brought to size within the program, with Pillow's filter: transformers.js resizes without antialiasing,
    and browsers each in their own way, which would silently give other embeddings.

    Args:
        source: The exported program.
        target: Where it goes.
        given: Its input, as the contract states it.
        result: Its output.
        image: The contract's `image`.
    """
    model = onnx.load(source)
    graph = model.graph
    inner = f"{_PREFIX}image"
    _rename(graph, given.name, inner)
    _rename(graph, result.name, "image_embeds")
    nodes, constants = _resize(image)
    _put_before(graph, inner, "pixel_values", (TensorProto.FLOAT, ["batch", 3, "height", "width"]), nodes, constants)
    _save(model, target)


def text_model(source: Path, target: Path, *, given: TensorSpec, result: TensorSpec, terms: TextContract) -> None:
    """Write a text program that takes `input_ids`, int64 [batch, sequence], and gives `text_embeds`.

    Rows are filled with padding up to the context length, because transformers.js pads to the longest text alone; a
    row without an end, which transformers.js makes of a text that is too long, gets it as its last token.

    Args:
        source: The exported program.
        target: Where it goes.
        given: Its input, as the contract states it.
        result: Its output.
        terms: The contract's `text`.
    """
    model = onnx.load(source)
    graph = model.graph
    inner = f"{_PREFIX}tokens"
    _rename(graph, given.name, inner)
    _rename(graph, result.name, "text_embeds")
    nodes, constants = _fill(terms)
    _put_before(graph, inner, "input_ids", (TensorProto.INT64, ["batch", "sequence"]), nodes, constants)
    _save(model, target)


def _resize(image: ImageContract) -> tuple[list[Any], dict[str, Arrays]]:
    """From `pixel_values` to `image`: Pillow's resize, one axis after the other, each rounded to 8 bits.

    Pillow 13 starts with the rows where that is cheaper: where they become fewer, and by more than twice as many as the
    columns. So the axes are height, width, height, and the first pass keeps the height where the width comes first.
    """
    # At the border Pillow's filters leave out what is not there.
    how: dict[str, Any] = {"antialias": 1, "exclude_outside": 1, "coordinate_transformation_mode": "half_pixel"}
    how |= {"mode": "linear"} if image.interpolation == "bilinear" else {"mode": "cubic", "cubic_coeff_a": -0.5}
    constants = {
        "size": np.array([image.size]), "row": np.array([2]), "column": np.array([3]), "after": np.array([4]),
        "twice": np.array([2]), "white": np.array(255, np.float32), "black": np.array(0, np.float32),
        "half": np.array(0.5, np.float32),
    }  # fmt: skip
    nodes = [
        _node("Shape", ["pixel_values"], "shape"),
        _node("Slice", ["shape", "row", "column"], "height"),
        _node("Slice", ["shape", "column", "after"], "width"),
        _node("Greater", ["height", "size"], "shrinks"),
        _node("Add", ["height", "size"], "rows"),
        _node("Mul", ["width", "twice"], "columns"),
        _node("Greater", ["rows", "columns"], "cheaper"),
        _node("And", ["shrinks", "cheaper"], "rows_first"),
        _node("Where", ["rows_first", "size", "height"], "first_height"),
        _node("Mul", ["pixel_values", "white"], "levels"),
    ]
    before = "levels"
    for axis, size, name in ((2, "first_height", "first"), (3, "size", "second"), (2, "size", "third")):
        nodes += [
            _node("Resize", [before, "", "", size], f"{name}_exact", axes=[axis], **how),
            _node("Add", [f"{name}_exact", "half"], f"{name}_raised"),  # half up: ONNX's Round takes halves to even
            _node("Floor", [f"{name}_raised"], f"{name}_whole"),
            _node("Clip", [f"{name}_whole", "black", "white"], name),
        ]
        before = name
    return [*nodes, _node("Div", [before, "white"], "image")], constants


def _fill(terms: TextContract) -> tuple[list[Any], dict[str, Arrays]]:
    """From `input_ids` to `tokens`: int32 rows of the context length that end as the contract says."""
    length, pad, end = terms.context_length, max(terms.pad_id, 0), terms.end_id
    last = np.zeros((1, length), np.bool_)
    last[0, -1] = True
    constants = {
        "one": np.array([1]), "two": np.array([2]), "zeros": np.array([0, 0, 0]), "length": np.array([length]),
        "pad": np.array(pad), "end": np.array(end), "last": last,
    }  # fmt: skip
    nodes = [
        _node("Shape", ["input_ids"], "shape"),
        _node("Slice", ["shape", "one", "two"], "width"),
        _node("Sub", ["length", "width"], "missing"),
        _node("Concat", ["zeros", "missing"], "pads", axis=0),
        _node("Pad", ["input_ids", "pads", "pad"], "filled"),
    ]
    final = "filled"
    if end >= 0:
        final = "ended"
        nodes += [
            _node("Equal", ["filled", "end"], "is_end"),
            _node("Cast", ["is_end"], "counts", to=TensorProto.INT32),
            _node("ReduceMax", ["counts", "one"], "has_end", keepdims=1),
            _node("Cast", ["has_end"], "ends", to=TensorProto.BOOL),
            _node("Not", ["ends"], "lacks"),
            _node("And", ["lacks", "last"], "place"),
            _node("Where", ["place", "end", "filled"], "ended"),
        ]
    return [*nodes, _node("Cast", [final], "tokens", to=TensorProto.INT32)], constants


def _node(kind: str, given: list[str], result: str, **attributes: Any) -> Any:
    names = [name if name in {"", "input_ids", "pixel_values"} else _PREFIX + name for name in given]
    return helper.make_node(kind, names, [_PREFIX + result], name=f"{_PREFIX}{kind}_{result}", **attributes)


def _put_before(
    graph: Any,
    inner: str,
    outer: str,
    port: tuple[int, list[str | int]],
    nodes: list[Any],
    constants: dict[str, Arrays],
) -> None:
    """Nodes that make a graph's input `inner` from a new input `outer` of that type and shape."""
    graph.input.remove(next(given for given in graph.input if given.name == inner))
    graph.input.append(helper.make_tensor_value_info(outer, *port))
    graph.initializer.extend(numpy_helper.from_array(value, _PREFIX + name) for name, value in constants.items())
    before = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *before])


def _rename(graph: Any, old: str, new: str) -> None:
    """Another name for a graph's input or output, in every node that reads or makes it."""
    for port in (*graph.input, *graph.output):
        if port.name == old:
            port.name = new
    for item in graph.node:
        for names in (item.input, item.output):
            for place, name in enumerate(names):
                if name == old:
                    names[place] = new


def _save(model: Any, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    onnx.checker.check_model(model)
    onnx.save(model, target)
