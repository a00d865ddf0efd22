"""Random students whose folding is not trivial: fresh batch norms are the identity, fresh layer scales nearly zero."""

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from mobileclip.models import zoo


def perturbed_clip(name: str, seed: int = 0) -> zoo.Clip:
    """A model of that architecture with random weights, batch statistics and layer scales."""
    torch.manual_seed(seed)
    clip = zoo.create(name)
    for module in clip.model.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(std=0.2)
        elif type(module).__name__ in {"LayerScale", "LayerScale2d"}:
            module.gamma.data.uniform_(0.1, 0.5)
    return clip


def patterned_images(count: int, size: int, seed: int = 0) -> torch.Tensor:
    """Colored gradients, float32 [count, 3, size, size] in 0-1: unlike noise, they differ after pooling."""
    generator = torch.Generator().manual_seed(seed)
    ramp = torch.linspace(0, 1, size)
    corners = torch.rand(count, 3, 4, 1, 1, generator=generator)
    x, y = ramp.view(1, 1, 1, size), ramp.view(1, 1, size, 1)
    top = corners[:, :, 0] * (1 - x) + corners[:, :, 1] * x
    bottom = corners[:, :, 2] * (1 - x) + corners[:, :, 3] * x
    return top * (1 - y) + bottom * y
