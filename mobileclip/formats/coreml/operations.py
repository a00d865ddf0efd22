"""The operations of Core ML programs that `coreml_interpreter` evaluates, in float32.

Semantics: coremltools' MIL operation set (docstrings of `coremltools.converters.mil.mil.ops.defs`). Each takes its
inputs by name, and under `types` the types of its results.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from mobileclip.errors import DataError

Tensor = torch.Tensor
Operation = Callable[[dict[str, Any]], Any]


def _list(value: Any) -> list[int]:
    return [int(item) for item in value.tolist()] if isinstance(value, Tensor) else [int(item) for item in value]


def _number(value: Any) -> float:
    return float(value)


def _floats(function: Callable[..., Tensor], *names: str) -> Operation:
    """An operation on tensors in float32 (integers stay integers)."""

    def run(given: dict[str, Any]) -> Tensor:
        return function(*(_wide(given[name]) for name in names))

    return run


def _wide(value: Any) -> Tensor:
    tensor = value if isinstance(value, Tensor) else torch.tensor(value)
    return tensor.float() if tensor.is_floating_point() else tensor


def _conv(given: dict[str, Any]) -> Tensor:
    x, weight = _wide(given["x"]), _wide(given["weight"])
    bias = _wide(given["bias"]) if "bias" in given else None
    stride, dilation = _list(given.get("strides", [1, 1])), _list(given.get("dilations", [1, 1]))
    kind, pads = str(given.get("pad_type", "valid")), _list(given.get("pad", [0, 0, 0, 0]))
    if kind not in {"custom", "valid"}:
        raise DataError(f"programs: the Core ML padding '{kind}' cannot be emulated.")
    if kind == "custom":
        top, bottom, left, right = pads
        x = F.pad(x, (left, right, top, bottom))
    return F.conv2d(x, weight, bias, stride, 0, dilation, int(given.get("groups", 1)))


def _layer_norm(given: dict[str, Any]) -> Tensor:
    x, axes = _wide(given["x"]), _list(given["axes"])
    mean = x.mean(axes, keepdim=True)
    normed = (x - mean) / torch.sqrt(x.var(axes, unbiased=False, keepdim=True) + _number(given.get("epsilon", 1e-5)))
    normed = normed * _wide(given["gamma"]) if "gamma" in given else normed
    return normed + _wide(given["beta"]) if "beta" in given else normed


def _batch_norm(given: dict[str, Any]) -> Tensor:
    gamma, beta = (_wide(given[name]) if name in given else None for name in ("gamma", "beta"))
    return F.batch_norm(
        _wide(given["x"]), _wide(given["mean"]), _wide(given["variance"]), gamma, beta, eps=_number(given["epsilon"])
    )


def _matmul(given: dict[str, Any]) -> Tensor:
    x, y = _wide(given["x"]), _wide(given["y"])
    x = x.transpose(-1, -2) if bool(given.get("transpose_x", False)) else x
    return x @ (y.transpose(-1, -2) if bool(given.get("transpose_y", False)) else y)


def _linear(given: dict[str, Any]) -> Tensor:
    return F.linear(_wide(given["x"]), _wide(given["weight"]), _wide(given["bias"]) if "bias" in given else None)


def _gelu(given: dict[str, Any]) -> Tensor:
    exact = str(given.get("mode", "EXACT")) == "EXACT"
    return F.gelu(_wide(given["x"]), approximate="none" if exact else "tanh")


def _reduced(function: Callable[..., Tensor]) -> Operation:
    def run(given: dict[str, Any]) -> Tensor:
        return function(_wide(given["x"]), _list(given["axes"]), bool(given.get("keep_dims", False)))

    return run


def _slice(given: dict[str, Any]) -> Tensor:
    x, begin, end = given["x"], _list(given["begin"]), _list(given["end"])
    strides = _list(given["stride"]) if "stride" in given else [1] * x.ndim
    masks = [[bool(v) for v in given[n]] if n in given else [False] * x.ndim for n in ("begin_mask", "end_mask")]
    squeezed = [bool(v) for v in given["squeeze_mask"]] if "squeeze_mask" in given else [False] * x.ndim
    index: list[Any] = []
    for axis in range(x.ndim):
        if squeezed[axis]:
            index.append(begin[axis])
        else:
            start, stop = None if masks[0][axis] else begin[axis], None if masks[1][axis] else end[axis]
            index.append(slice(start, stop, strides[axis]))
    return x[tuple(index)]  # type: ignore[no-any-return]


def _split(given: dict[str, Any]) -> list[Tensor]:
    axis = int(given["axis"])
    if "split_sizes" in given:
        return list(given["x"].split(_list(given["split_sizes"]), dim=axis))
    return list(given["x"].chunk(int(given["num_splits"]), dim=axis))


def _gather(given: dict[str, Any]) -> Tensor:
    x, indices, axis = given["x"], given["indices"].long(), int(given.get("axis", 0))
    picked = x.index_select(axis, indices.reshape(-1))
    return picked.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])  # type: ignore[no-any-return]


def _cumsum(given: dict[str, Any]) -> Tensor:
    x, axis = _wide(given["x"]), int(given.get("axis", 0))
    is_reversed = bool(given.get("reverse", False))
    total = (x.flip(axis) if is_reversed else x).cumsum(axis)
    total = total.flip(axis) if is_reversed else total
    return (total - x if bool(given.get("exclusive", False)) else total).to(given["types"][0])


def _squeeze(given: dict[str, Any]) -> Tensor:
    return given["x"].squeeze(tuple(_list(given["axes"]))) if "axes" in given else given["x"].squeeze()  # type: ignore[no-any-return]


def _expand_dims(given: dict[str, Any]) -> Tensor:
    x = given["x"]
    for axis in sorted(axis % (x.ndim + len(_list(given["axes"]))) for axis in _list(given["axes"])):
        x = x.unsqueeze(axis)
    return x  # type: ignore[no-any-return]


def _dequantize(given: dict[str, Any]) -> Tensor:
    """`constexpr_affine_dequantize`: (quantized - zero point) * scale along one axis."""
    data = given["quantized_data"].float()
    shape = [1] * data.ndim
    shape[int(given["axis"])] = -1
    zero, scale = (_wide(given[name]).float() for name in ("zero_point", "scale"))
    return (data - (zero.reshape(shape) if zero.ndim else zero)) * (scale.reshape(shape) if scale.ndim else scale)


OPERATIONS: dict[str, Operation] = {
    "add": _floats(torch.add, "x", "y"),
    "sub": _floats(torch.sub, "x", "y"),
    "mul": _floats(torch.mul, "x", "y"),
    "real_div": _floats(torch.div, "x", "y"),
    "maximum": _floats(torch.maximum, "x", "y"),
    "minimum": _floats(torch.minimum, "x", "y"),
    "pow": _floats(torch.pow, "x", "y"),
    "equal": _floats(torch.eq, "x", "y"),
    "not_equal": _floats(torch.ne, "x", "y"),
    "greater": _floats(torch.gt, "x", "y"),
    "greater_equal": _floats(torch.ge, "x", "y"),
    "less": _floats(torch.lt, "x", "y"),
    "less_equal": _floats(torch.le, "x", "y"),
    "logical_and": _floats(torch.logical_and, "x", "y"),
    "logical_not": _floats(torch.logical_not, "x"),
    "relu": _floats(torch.relu, "x"),
    "sigmoid": _floats(torch.sigmoid, "x"),
    "sqrt": _floats(torch.sqrt, "x"),
    "erf": _floats(torch.erf, "x"),
    "tanh": _floats(torch.tanh, "x"),
    "rsqrt": lambda g: torch.rsqrt(_wide(g["x"]) + _number(g.get("epsilon", 0.0))),
    "clip": lambda g: _wide(g["x"]).clamp(_number(g["alpha"]), _number(g["beta"])),
    "conv": _conv,
    "linear": _linear,
    "matmul": _matmul,
    "gelu": _gelu,
    "silu": lambda g: F.silu(_wide(g["x"])),
    "softmax": lambda g: _wide(g["x"]).softmax(int(g.get("axis", -1))),
    "layer_norm": _layer_norm,
    "batch_norm": _batch_norm,
    "reduce_mean": _reduced(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "reduce_sum": _reduced(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "reduce_max": _reduced(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "reduce_l2_norm": _reduced(lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt()),
    "reduce_sum_square": _reduced(lambda x, axes, keep: x.square().sum(axes, keepdim=keep)),
    "cumsum": _cumsum,
    "reshape": lambda g: g["x"].reshape(_list(g["shape"])),
    "transpose": lambda g: g["x"].permute(_list(g["perm"])),
    "concat": lambda g: torch.cat(g["values"], dim=int(g["axis"])),
    "stack": lambda g: torch.stack(g["values"], dim=int(g["axis"])),
    "split": _split,
    "slice_by_index": _slice,
    "squeeze": _squeeze,
    "expand_dims": _expand_dims,
    "gather": _gather,
    "select": lambda g: torch.where(g["cond"].bool(), _wide(g["a"]), _wide(g["b"])),
    "cast": lambda g: g["x"].to(g["types"][0]),
    "tile": lambda g: g["x"].repeat(_list(g["reps"])),
    "identity": lambda g: g["x"],
    "constexpr_affine_dequantize": _dequantize,
}
