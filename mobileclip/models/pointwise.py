"""Strided 1x1 convolutions of few channels, computed so that oneDNN 3.12 (torch 2.14) trains them without damage.

For a channels-last input of fewer channels than its block (8 with AVX2, 16 with AVX-512), oneDNN's gradient of the
weights writes beyond its workspace (uxlfoundation/oneDNN issue 6035, open): a crash, a hang, or wrong numbers. The
first layer of every FastViT tower, MobileCLIP's, has such a branch. The pixels that the stride leaves out are dropped
first here; the convolution that is left has no stride, and the result is the same.
"""

from torch import Tensor, nn
from torch.nn import functional as F

_BLOCK = 16  # channels


class StridedPointwise(nn.Conv2d):
    """A 1x1 convolution without padding that takes every n-th pixel before it computes."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows, columns = self.stride
        return F.conv2d(input[:, :, ::rows, ::columns], weight, bias)


def without_stride(model: nn.Module) -> nn.Module:
    """Give the convolutions of a model that oneDNN would damage the class above; weights and names stay."""
    for module in model.modules():
        if type(module) is nn.Conv2d and _is_meant(module):
            module.__class__ = StridedPointwise
    return model


def _is_meant(module: nn.Conv2d) -> bool:
    plain = module.kernel_size == (1, 1) and module.padding == (0, 0) and module.padding_mode == "zeros"
    return plain and max(module.stride) > 1 and module.groups == 1 and module.in_channels < _BLOCK
