"""Batch normalization over the global batch: the same statistics whatever the number of processes.

torch's own SyncBatchNorm runs on GPUs alone; this one runs where the model runs, and it leaves the modules and the
names of their weights as they are.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mobileclip.training.world import World


@contextlib.contextmanager
def global_batch_norm(model: nn.Module, world: World) -> Iterator[None]:
    """Inside, every batch normalization of `model` in train mode uses the statistics over all processes' rows."""
    modules = [m for m in model.modules() if isinstance(m, _BatchNorm)] if world.size > 1 else []
    for module in modules:
        module.forward = functools.partial(_forward, module, world)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in modules:
            del module.forward


@contextlib.contextmanager
def kept_buffers(model: nn.Module) -> Iterator[None]:
    """Inside, forward passes may move running statistics; afterwards all buffers are as before."""
    before = {name: value.clone() for name, value in model.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in model.named_buffers():
                value.copy_(before[name])


def _forward(module: Any, world: World, x: Tensor) -> Tensor:
    if not module.training:
        return type(module).forward(module, x)  # type: ignore[no-any-return]
    axes = [axis for axis in range(x.ndim) if axis != 1]
    shape = [1, -1] + [1] * (x.ndim - 2)
    wide = x.float() if x.dtype in {torch.float16, torch.bfloat16} else x
    count = world.sum(wide.new_tensor([x.numel() / x.shape[1]]))
    mean = world.sum(wide.sum(axes)) / count
    centered = wide - mean.view(shape)
    # Two passes: the mean of squares minus the squared mean would lose digits.
    variance = world.sum(centered.square().sum(axes)) / count
    _update(module, mean.detach(), variance.detach() * (count / (count - 1).clamp(min=1)))
    y = centered * torch.rsqrt(variance + module.eps).view(shape)
    if module.affine:
        y = y * module.weight.view(shape) + module.bias.view(shape)
    y = y.to(x.dtype)
    # timm's variant carries its activation.
    return module.act(module.drop(y)) if hasattr(module, "act") else y


@torch.no_grad()
def _update(module: Any, mean: Tensor, variance: Tensor) -> None:
    if not module.track_running_stats:
        return
    module.num_batches_tracked.add_(1)
    share = module.momentum if module.momentum is not None else 1.0 / float(module.num_batches_tracked)
    module.running_mean.lerp_(mean.to(module.running_mean.dtype), share)
    module.running_var.lerp_(variance.to(module.running_var.dtype), share)
