"""AdamW with the papers' parameter groups, and warm-up, an optional plateau, and cosine decay."""

import math

import torch
from torch import nn

from mobileclip.config import Optimizer


def create_optimizer(model: nn.Module, config: Optimizer) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; norms, biases and the logit scale do not decay."""
    decay: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        (free if parameter.ndim < 2 or "logit_scale" in name else decay).append(parameter)
    groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True
    )


def learning_rate(config: Optimizer, *, step: int, steps: int) -> float:
    """The rate of a step (0-based): linear warm-up to `lr`, there for a while, then a half cosine down to `lr_end`."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    start = config.warmup_steps + config.constant_steps
    share = max(0, step - start) / max(1, steps - start)
    return config.lr_end + (config.lr - config.lr_end) * (1 + math.cos(math.pi * share)) / 2


def update_mean(mean: dict[str, torch.Tensor], model: nn.Module, decay: float, step: int) -> None:
    """Move the running mean of the weights, where there is one, towards the weights after `step`."""
    if not mean:
        return
    # Early on a long memory would hold the random start: the usual ramp of (1 + step) / (10 + step).
    decay = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.dtype.is_floating_point:
                mean[name].lerp_(value.detach(), 1 - decay)
            else:
                mean[name].copy_(value)
