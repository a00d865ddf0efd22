"""The rounding of static int8 programs as PyTorch operations with a gradient.

The scheme is what `quantize` asks of ONNX Runtime, and PT2E's but for a shift by 128: weights of convolutions and
products int8, symmetric, one scale per output channel; every tensor that such a layer reads or writes uint8 with one
range, which holds 0, and rounded for all who read it. Biases (int32, finer by orders of magnitude) stay as they are.

Gradients pass straight through the rounding (Bengio et al., arXiv 1308.3432), but not through clipped values
(Jacob et al., arXiv 1712.05877).
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

LOWEST, HIGHEST = 0, 255
WEIGHT_LIMIT = 127
_SMALLEST = float(np.finfo(np.float32).tiny)
_ATEN = torch.ops.aten
_LAYERS = (_ATEN.conv2d.default, _ATEN.conv2d.padding, _ATEN.linear.default)


def activation_scale(low: float, high: float) -> tuple[float, int]:
    """Scale and zero point of a tensor whose values lie between `low` and `high`, as ONNX Runtime computes them."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (HIGHEST - LOWEST)
    if scale < _SMALLEST:
        return 1.0, 0
    return float(np.float32(scale)), int(np.round(LOWEST - low / scale))


def weight_scales(weight: Tensor) -> Tensor:
    """Scale per output channel, the first axis, shaped to divide `weight`; float32."""
    largest = weight.detach().abs().flatten(1).amax(1).double()
    scales = 2 * largest / (2 * WEIGHT_LIMIT)
    scales = torch.where(scales < _SMALLEST, torch.ones_like(scales), scales)
    return scales.float().reshape(-1, *[1] * (weight.dim() - 1))


def round_tensor(x: Tensor, scale: Tensor, zero: int, low: int, high: int) -> Tensor:
    """QuantizeLinear and DequantizeLinear in one, bit for bit.

    Args:
        x: float32.
        scale: Of one step; broadcasts against `x`.
        zero: What 0 is stored as.
        low: Smallest stored value.
        high: Largest stored value.
    """
    return _Rounding.apply(x, scale, zero, low, high)  # type: ignore[no-any-return, no-untyped-call]


def round_weight(weight: Tensor) -> Tensor:
    """A weight as its int8 form restores it."""
    return round_tensor(weight, weight_scales(weight), 0, -WEIGHT_LIMIT, WEIGHT_LIMIT)


class Rounded(nn.Module):
    """What is rounded, but for the time when ranges are taken."""

    observing = False


class Weight(Rounded):
    """The weight of one layer."""

    def forward(self, weight: Tensor) -> Tensor:
        """The weight, rounded unless ranges are being taken."""
        return weight if self.observing else round_weight(weight)


class Activation(Rounded):
    """One tensor between layers: its range is taken, or it is rounded to it."""

    def __init__(self) -> None:
        """Without a range yet."""
        super().__init__()
        self.low, self.high = 0.0, 0.0

    def forward(self, x: Tensor) -> Tensor:
        """`x`, rounded unless its range is being taken."""
        if self.observing:
            self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))
            return x
        scale, zero = activation_scale(self.low, self.high)
        return round_tensor(x, torch.tensor(scale, dtype=x.dtype), zero, LOWEST, HIGHEST)


def with_rounding(tower: nn.Module, example: Tensor) -> fx.GraphModule:
    """A tower that computes like its static int8 program.

    Args:
        tower: An image tower in eval mode.
        example: At least two input rows.

    Returns:
        The graph of the tower, for any number of rows from 2, with an `Activation` behind every tensor that a
        convolution or a product by a weight reads or writes; `observe` gives them their ranges. Its parameters are
        called like the tower's.
    """
    batch = torch.export.Dim("batch", min=2)
    traced = torch.export.export(tower, (example,), dynamic_shapes=({0: batch},))
    module: Any = traced.module(check_guards=False)
    graph = module.graph
    tensors: dict[fx.Node, None] = {}
    for index, node in enumerate([node for node in graph.nodes if node.target in _LAYERS]):
        module.add_module(f"rounded_weight_{index}", Weight())
        with graph.inserting_before(node):
            node.update_arg(1, graph.call_module(f"rounded_weight_{index}", (node.args[1],)))
        _split_bias(graph, node)
        tensors |= {node.args[0]: None, node: None}
    for index, tensor in enumerate(tensors):
        module.add_module(f"rounded_{index}", Activation())
        with graph.inserting_after(tensor):
            rounded = graph.call_module(f"rounded_{index}", (tensor,))
        tensor.replace_all_uses_with(rounded, delete_user_cb=lambda user, own=rounded: user is not own)  # type: ignore[misc]
    graph.lint()
    module.recompile()
    return module  # type: ignore[no-any-return]


def observe(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Take the ranges of all tensors anew, over these inputs and without any rounding."""
    parts = [part for part in module.modules() if isinstance(part, Rounded)]
    for part in parts:
        part.observing = True
        if isinstance(part, Activation):
            part.low, part.high = 0.0, 0.0
    with torch.no_grad():
        for rows in batches:
            module(rows)
    for part in parts:
        part.observing = False


def _split_bias(graph: fx.Graph, layer: fx.Node) -> None:
    """ONNX has no product with a bias for more than two axes: its result is rounded before the bias is added."""
    is_product = layer.target is _ATEN.linear.default and layer.meta["val"].dim() > 2
    if not is_product or len(layer.args) < 3 or layer.args[2] is None:
        return
    bias = layer.args[2]
    layer.args = layer.args[:2]
    with graph.inserting_after(layer):
        added = graph.call_function(_ATEN.add.Tensor, (layer, bias))
    layer.replace_all_uses_with(added, delete_user_cb=lambda user: user is not added)


class _Rounding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: int, low: int, high: int) -> Tensor:
        steps = (x / scale).round() + zero
        ctx.save_for_backward((steps >= low) & (steps <= high))
        return (steps.clamp(low, high) - zero) * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        (is_inside,) = ctx.saved_tensors
        return gradients[0] * is_inside, None, None, None, None
