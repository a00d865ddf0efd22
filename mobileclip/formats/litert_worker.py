"""Worker of `mobileclip.formats.litert`: runs in the converter's environment and imports nothing of the project.

Its folder holds `traced.pt2`, `request.json` (`names` of input and output, `precision`) and, for `int8_static`,
`calibration.npy` with input rows [calls, rows, ...]; it leaves `program.tflite` and `reply.json`.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import litert_torch
import numpy as np
import torch
from ai_edge_quantizer import algorithm_manager, quantizer, recipe_manager
from ai_edge_quantizer.algorithms.uniform_quantize import uniform_quantize_tensor
from ai_edge_quantizer.qtyping import TFLOperationName

SIGNATURE = "serving_default"
# What multiplies by a weight. The rest stays in float32, input and output with it: integer forms of softmax, GELU and
# sums have one scale per tensor and cost more than they save.
LAYERS = (TFLOperationName.CONV_2D, TFLOperationName.DEPTHWISE_CONV_2D, TFLOperationName.FULLY_CONNECTED)


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


def work(folder: Path) -> None:
    """Convert `traced.pt2` in `folder`."""
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    program = torch.export.load(folder / "traced.pt2")
    names = (request["names"][0], request["names"][1])
    row = program.example_inputs[0][0]
    module = Named(program.module(), names)
    module.training = False  # a traced module has no eval(), and was traced in that mode
    module.traced.training = False
    target = folder / "program.tflite"
    litert_torch.convert(module, sample_kwargs={names[0]: row}).export(str(target))
    if request["precision"] != "float32":
        _quantize(target, request["precision"], folder / "calibration.npy", names[0])
    reply = {"bytes": target.stat().st_size}
    (folder / "reply.json").write_text(json.dumps(reply), encoding="utf-8")


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


def _quantize(path: Path, precision: str, calibration: Path, name: str) -> None:
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
    else:
        raise ValueError(f"precision: got {precision}, want int8, int8_static, int8_weights or float16.")
    uniform_quantize_tensor.uniform_quantize = in_two_dimensions(uniform_quantize_tensor.uniform_quantize)
    tool = quantizer.Quantizer(str(path), manager.get_quantization_recipe())
    ranges = None
    if tool.need_calibration:
        inputs = [{name: rows} for rows in np.load(calibration)]
        ranges = tool.calibrate({SIGNATURE: inputs}, num_threads=1)
    tool.quantize(ranges).export_model(str(path), overwrite=True)


if __name__ == "__main__":
    work(Path(sys.argv[1]))
