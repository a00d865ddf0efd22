"""int8 of a traced tower for XNNPACK (PT2E): by the range of each call, or calibrated and layer by layer."""

import contextlib
import io
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy

import torch
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)
from torch import nn
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

_PRODUCTS = {torch.ops.aten.conv2d.default, torch.ops.aten.linear.default}
# What the quantizer rounds: products by weights, and the sums, products and means between them.
_ROUNDED = {
    *_PRODUCTS,
    torch.ops.aten.add.Tensor,
    torch.ops.aten.mul.Tensor,
    torch.ops.aten.adaptive_avg_pool2d.default,
    torch.ops.aten.cat.default,
}


def dynamic(traced: GraphModule, row: torch.Tensor, *, keep: Sequence[str] = ()) -> GraphModule:
    """The tower with products in int8, activations by the range of each call.

    Args:
        traced: The tower for one row per call.
        row: Such a row.
        keep: Names of layers (of `products`) that stay in float32.
    """
    prepared = _prepare(traced, keep=keep, is_dynamic=True)
    with torch.no_grad(), _quiet():
        prepared(row)
        return convert_pt2e(prepared)  # type: ignore[no-any-return]


def products(traced: GraphModule) -> list[str]:
    """Names of the layers that `dynamic` quantizes."""
    return [_name(node) for node in traced.graph.nodes if node.target in _PRODUCTS]


class Ranged:
    """A traced tower with the ranges of its values, to be quantized layer by layer."""

    def __init__(self, traced: GraphModule, calls: Iterable[torch.Tensor]) -> None:
        """Run the samples through the tower.

        Args:
            traced: The tower, without batch norms.
            calls: Input samples, [rows, ...] of as many rows as the tower was traced for.
        """
        self.layers = [name for name in map(_name, traced.graph.nodes) if name]
        self._traced = traced
        prepared = _prepare(traced)
        with torch.no_grad():
            for call in calls:
                prepared(call)
            self._observers = {seen: _settled(getattr(prepared, target)) for seen, target in _observers(prepared)}

    def quantize(self, *, keep: Sequence[str] = ()) -> GraphModule:
        """The tower with all layers but `keep` rounded, in operations that XNNPACK takes over."""
        prepared = _prepare(self._traced, keep=keep)
        for seen, target in _observers(prepared):  # those of a part of the layers are among those of all
            setattr(prepared, target, self._observers[seen])
        with torch.no_grad(), _quiet():
            return convert_pt2e(prepared)  # type: ignore[no-any-return]


def _prepare(traced: GraphModule, *, keep: Sequence[str] = (), is_dynamic: bool = False) -> GraphModule:
    """A copy with an observer of every value that is to be rounded."""
    kept = set(keep)
    terms = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=is_dynamic)
    quantizer = XNNPACKQuantizer().set_global(terms).set_filter_function(lambda node: _name(node) not in kept)
    # Each pattern of norms costs a trace and matches nothing here.
    quantizer.SUPPORTED_PATTERNS = [pattern for pattern in quantizer.SUPPORTED_PATTERNS if "bn" not in pattern.name]
    with torch.no_grad(), _quiet():
        return prepare_pt2e(deepcopy(traced), quantizer)  # type: ignore[no-any-return]


def _settled(observer: nn.Module) -> nn.Module:
    """The same observer, its search for the best range done once and for all."""
    found = observer.calculate_qparams()  # type: ignore[operator]
    observer.calculate_qparams = lambda: found  # type: ignore[assignment]
    return observer


def _name(node: Node) -> str:
    """The module a rounded operation comes from, and its own name; empty for other nodes."""
    if node.op != "call_function" or node.target not in _ROUNDED:
        return ""
    stack = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return f"{stack[-1] if stack else ''}/{node.name}"


def _observers(prepared: GraphModule) -> list[tuple[str, str]]:
    """Name of the observed value and of the observer."""
    calls = [node for node in prepared.graph.nodes if node.op == "call_module"]
    return [
        (node.args[0].name, str(node.target))
        for node in calls
        if hasattr(getattr(prepared, str(node.target)), "calculate_qparams")
    ]


@torch.no_grad()
def without_norms(tower: nn.Module) -> nn.Module:
    """A copy whose 2-d batch norms are the convolutions by 1 x 1 that they are with fixed statistics.

    The quantizer folds a norm into the convolution before it, also where others read that convolution's output too:
    the residual path of an attention block would get the normed values.
    """
    copied = deepcopy(tower)
    for name, module in list(copied.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            parent, _, attribute = name.rpartition(".")
            setattr(copied.get_submodule(parent), attribute, _as_convolution(module))
    return copied


def _as_convolution(norm: nn.BatchNorm2d) -> nn.Conv2d:
    """The same function of [batch, channels, height, width], one weight and bias per channel."""
    channels = norm.num_features
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a batch norm without statistics depends on its batch")
    convolution = nn.Conv2d(channels, channels, 1, groups=channels, dtype=norm.running_var.dtype)
    gain = torch.rsqrt(norm.running_var + norm.eps) * (norm.weight if norm.affine else 1)
    shift = (norm.bias if norm.affine else 0) - norm.running_mean * gain
    convolution.weight.copy_(gain.view(-1, 1, 1, 1))
    convolution.get_parameter("bias").copy_(shift)
    return convolution.requires_grad_(False).eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the quantizer prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
