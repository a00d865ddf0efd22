"""Worker of `mobileclip.formats.litert`: runs in the converter's environment and imports nothing of the project.

Its folder holds `traced.pt2` and, for `int8_static`, `calibration.npy` with input rows [calls, rows, ...]. Requests
are lines of JSON on its input, answered by a line each: the first one (`names` of input and output, `precision`)
converts and calibrates and gives the names of the `layers` that will be quantized; each further one (`keep`, some of
these) leaves the program that holds those in float32 in `program.tflite`.
"""

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import litert_torch
import numpy as np
import torch
from ai_edge_quantizer import algorithm_manager, quantizer, recipe_manager
from ai_edge_quantizer.algorithms.uniform_quantize import uniform_quantize_tensor
from ai_edge_quantizer.qtyping import TFLOperationName
from ai_edge_quantizer.utils import tfl_flatbuffer_utils as flatbuffers

SIGNATURE = "serving_default"
# What multiplies by a weight. The rest stays in float32, input and output with it: integer forms of softmax, GELU and
# sums have one scale per tensor and cost more than they save.
LAYERS = (TFLOperationName.CONV_2D, TFLOperationName.DEPTHWISE_CONV_2D, TFLOperationName.FULLY_CONNECTED)
NONE = algorithm_manager.AlgorithmName.NO_QUANTIZE
Known = tuple[str, tuple[tuple[int, ...], np.ndarray]]
# How the converter may lay out a weight of torch's.
LAYOUTS = {2: ((0, 1), (1, 0)), 4: ((0, 2, 3, 1), (1, 2, 3, 0))}


def keep_heads(traced: Any) -> None:
    """Let a traced tower's products of rank 4 stay what they are, in place.

    torch's own become products of rank 3 with the heads as batch, and phone GPUs miscompute such attention
    (google-ai-edge/LiteRT issue 8619).
    """
    for node in traced.graph.nodes:
        if node.target is torch.ops.aten.matmul.default and all(arg.meta["val"].ndim == 4 for arg in node.args):
            node.target = torch.ops.tfl.batch_matmul.default
    traced.recompile()


class Named(torch.nn.Module):
    """The traced tower with a named output: a dictionary's key becomes the output's name."""

    def __init__(self, traced: torch.nn.Module, names: tuple[str, str]) -> None:
        """Wrap a traced module with one input and one output."""
        super().__init__()
        self.traced = traced
        self.given, self.result = names

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """The one input, by its name."""
        return {self.result: self.traced(inputs[self.given])}


class Converted:
    """A float32 program with the ranges of its activations, to be quantized layer by layer."""

    def __init__(self, folder: Path, names: tuple[str, str], precision: str) -> None:
        """Convert `traced.pt2` in `folder`, and calibrate what needs it."""
        program = torch.export.load(folder / "traced.pt2")
        row = program.example_inputs[0][0]
        module = Named(program.module(), names)
        module.training = False  # a traced module has no eval(), and was traced in that mode
        module.traced.training = False
        keep_heads(module.traced)
        self._source, self._target = folder / "float.tflite", folder / "program.tflite"
        litert_torch.convert(module, sample_kwargs={names[0]: row}).export(str(self._source))
        self._precision, self._ranges = precision, None
        self._scopes = scopes(self._source, recipe(precision), modules(program))
        if recipe(precision).need_calibration():
            tool = quantizer.Quantizer(str(self._source), recipe(precision).get_quantization_recipe())
            inputs = [{names[0]: rows} for rows in np.load(folder / "calibration.npy")]
            self._ranges = tool.calibrate({SIGNATURE: inputs}, num_threads=1)

    @property
    def layers(self) -> list[str]:
        """Names of the layers that are quantized."""
        return list(self._scopes)

    def quantize(self, keep: Sequence[str]) -> None:
        """Write the program with all layers but `keep` quantized."""
        manager = recipe(self._precision)
        for layer in keep:  # later entries win
            operation, scope = self._scopes[layer]
            manager.add_quantization_config(f"^{re.escape(scope)}$", operation, algorithm_key=NONE)
        if set(keep) >= set(self._scopes):  # the quantizer refuses to quantize nothing
            self._target.write_bytes(self._source.read_bytes())
            return
        tool = quantizer.Quantizer(str(self._source), manager.get_quantization_recipe())
        tool.quantize(self._ranges).export_model(str(self._target), overwrite=True)


def scopes(
    path: Path, manager: recipe_manager.RecipeManager, known: list[Known]
) -> dict[str, tuple[TFLOperationName, str]]:  # fmt: skip
    """Operation and scope of all that a recipe quantizes, by the name of the layer (`blocks.0.query/FULLY_CONNECTED`).

    Args:
        path: A float32 program.
        manager: The recipe.
        known: Of `modules`.
    """
    model = flatbuffers.read_model(str(path))
    found: dict[str, tuple[TFLOperationName, str]] = {}
    seen: Counter[str] = Counter()
    for graph in model.subgraphs:
        for operator in graph.operators:
            operation = flatbuffers.TFL_OP_CODE_TO_NAME.get(model.operatorCodes[operator.opcodeIndex].builtinCode)
            scope = flatbuffers.get_op_scope(operator, graph.tensors)
            inputs = (graph.tensors[index] for index in operator.inputs if index >= 0)
            constants = (flatbuffers.get_tensor_data(tensor, model.buffers) for tensor in inputs)
            weight = next((array for array in constants if array is not None and array.ndim > 1), None)
            if operation is None or weight is None or manager.get_quantization_configs(operation, scope)[0] == NONE:
                continue
            name = f"{_module(weight, known) or scope.strip(';')}/{operation.value}"
            seen[name] += 1
            found[name if seen[name] == 1 else f"{name}.{seen[name]}"] = (operation, scope)
    return found


def modules(program: torch.export.ExportedProgram) -> list[Known]:
    """The modules of a traced tower with what tells their weights apart: the converter keeps no names."""
    tensors = {**program.state_dict, **program.constants}.items()
    return [
        (name.removesuffix(".weight"), _mark(tensor.detach().float().numpy()))
        for name, tensor in tensors
        if isinstance(tensor, torch.Tensor) and tensor.ndim in LAYOUTS
    ]


def _module(weight: np.ndarray, known: list[Known]) -> str | None:
    """The module a weight of the program comes from."""
    for axes in LAYOUTS.get(weight.ndim, ()):
        shape, mark = _mark(weight.transpose(np.argsort(axes)))
        for name, (other_shape, other) in known:
            if shape == other_shape and np.allclose(mark, other, atol=1e-4):
                return name
    return None


def _mark(weight: np.ndarray) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and some values of [output channels, ...], without the scales that the converter may fold into channels."""
    norms = np.linalg.norm(weight.reshape(len(weight), -1), axis=1)
    unit = np.abs(weight).reshape(len(weight), -1) / np.maximum(norms, np.finfo(np.float32).tiny)[:, None]
    return weight.shape, unit.ravel()[:256]


def recipe(precision: str) -> recipe_manager.RecipeManager:
    """Weights as float16 or int8 (computing in float32), or int8 with activations per call or by calibrated ranges."""
    manager, every = recipe_manager.RecipeManager(), TFLOperationName.ALL_SUPPORTED
    if precision == "int8":
        manager.add_dynamic_config(regex=".*", operation_name=every, num_bits=8)
    elif precision == "int8_weights":
        manager.add_weight_only_config(regex=".*", operation_name=every, num_bits=8)
    elif precision == "float16":
        casting = algorithm_manager.AlgorithmName.FLOAT_CASTING
        manager.add_weight_only_config(regex=".*", operation_name=every, num_bits=16, algorithm_key=casting)
    elif precision == "int8_static":
        for layer in LAYERS:
            manager.add_static_config(regex=".*", operation_name=layer, activation_num_bits=8, weight_num_bits=8)
    elif precision != "float32":
        raise ValueError(f"precision: got {precision}, want float32, float16, int8, int8_static or int8_weights.")
    return manager


def in_two_dimensions(quantize: Any) -> Any:
    """The quantizer's rounding, given weights as matrices: of more than 32 MiB it cannot round others (0.10.0)."""

    def run(data: np.ndarray, terms: Any, is_blockwise: bool = False) -> np.ndarray:
        last = data.ndim - 1
        if data.ndim <= 2 or is_blockwise or terms.quantized_dimension not in (None, 0, last):
            return quantize(data, terms, is_blockwise)
        is_last = terms.quantized_dimension == last
        shape = (-1, data.shape[last]) if is_last else (data.shape[0], -1)
        per_channel = (1, -1) if is_last else (-1, 1)
        flat = replace(
            terms, scale=np.reshape(terms.scale, per_channel), zero_point=np.reshape(terms.zero_point, per_channel),
            quantized_dimension=None if terms.quantized_dimension is None else int(is_last),
        )  # fmt: skip
        return quantize(data.reshape(shape), flat, is_blockwise).reshape(data.shape)

    return run


def work(folder: Path) -> None:
    """Answer requests until there are no more."""
    uniform_quantize_tensor.uniform_quantize = in_two_dimensions(uniform_quantize_tensor.uniform_quantize)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print is no reply
    converted = None
    for line in sys.stdin:
        request, reply = json.loads(line), {}
        if converted is None:
            converted = Converted(folder, tuple(request["names"]), request["precision"])
            reply = {"layers": converted.layers}
        else:
            converted.quantize(request["keep"])
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    work(Path(sys.argv[1]))
