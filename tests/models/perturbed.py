"""Random students whose folding is not trivial: fresh batch norms are the identity, fresh layer scales nearly zero."""

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from mobileclip.data.preprocess import image_tensor
from mobileclip.models import zoo


@torch.no_grad()
def perturbed_clip(name: str, seed: int = 0, size: int = 0) -> zoo.Clip:
    """A model with random weights and layer scales, and batch statistics near those of pictures.

    Args:
        name: Architecture.
        seed: Of everything random.
        size: Width of the pictures of the statistics; 0 = the model's own.

    Without real statistics all pictures would get nearly the same embedding, and no error could be told from noise.
    """
    torch.manual_seed(seed)
    clip = zoo.create(name)
    norms = [module for module in clip.model.modules() if isinstance(module, _BatchNorm)]
    for key, value in clip.model.named_parameters():
        if key.endswith(("gamma", "layer_scale")):
            value.uniform_(0.1, 0.5)
    for norm in norms:
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_(std=0.2)
        norm.momentum = None  # the plain mean over batches
        norm.train()
    clip.model.visual(image_tensor((patterned_images(16, size or clip.preprocess.size) * 255), clip.preprocess))
    if set(norms) - set(clip.model.visual.modules()):
        clip.model.encode_text(torch.randint(1, 49_406, (16, clip.model.context_length)))
    for norm in norms:
        norm.momentum = 0.1
        norm.running_mean += torch.randn_like(norm.running_mean) * 0.1 * norm.running_var.sqrt()
        norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.8, 1.25)
    clip.model.eval()
    return clip


def patterned_images(count: int, size: int, seed: int = 0) -> torch.Tensor:
    """Colored stripes, float32 [count, 3, size, size] in 0-1: unlike noise, they differ after pooling."""
    generator = torch.Generator().manual_seed(seed)
    frequency, phase, color = (torch.rand(count, 3, 2, 1, 1, generator=generator) for _ in range(3))
    ramp = torch.linspace(0, 1, size)
    x, y = ramp.view(1, 1, 1, size), ramp.view(1, 1, size, 1)
    angle = (frequency[:, :, 0] * x + frequency[:, :, 1] * y) * 40 + phase[:, :, 0] * 6.3
    return color[:, :, 0] * (0.5 + 0.5 * torch.sin(angle))
