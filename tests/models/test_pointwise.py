"""Strided 1x1 convolutions: the same numbers as torch's, and gradients that oneDNN leaves whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mobileclip.models import zoo
from mobileclip.models.pointwise import StridedPointwise, without_stride

STEM = """
import sys, torch
from mobileclip.models import zoo
from mobileclip.models.pointwise import StridedPointwise
name, batch = sys.argv[1], int(sys.argv[2])
torch.manual_seed(0)
clip = zoo.create(name)
(conv,) = [m for m in clip.model.visual.modules() if isinstance(m, StridedPointwise)]
conv = conv.to(memory_format=torch.channels_last)
pixels = torch.rand(batch, 3, clip.preprocess.size, clip.preprocess.size).to(memory_format=torch.channels_last)
weight = conv.weight.detach().double().requires_grad_()
torch.nn.functional.conv2d(pixels.double(), weight, stride=conv.stride).square().sum().backward()
for _ in range(10):
    conv.weight.grad = None
    conv(pixels).square().sum().backward()
    assert torch.allclose(conv.weight.grad.double(), weight.grad, rtol=1e-4)
    kept = [torch.ones(size) for size in (10, 100, 1000, 10000)]  # damage to the heap shows where it is used
print("whole")
"""


STEP = """
import torch
from mobileclip.models import zoo
clip = zoo.create("MobileCLIP2-S0")
visual = clip.model.visual.to(memory_format=torch.channels_last).train()
optimizer = torch.optim.AdamW(visual.parameters(), lr=1e-4)
pixels = torch.rand(4, 3, 256, 256).to(memory_format=torch.channels_last)
for _ in range(2):
    optimizer.zero_grad()
    visual(pixels).square().sum().backward()
    optimizer.step()
assert all(p.grad.isfinite().all() for p in visual.parameters())
print("whole")
"""


def test_a_published_image_tower_trains():
    """Two steps; torch's own convolution ends the process in the first one."""
    done = subprocess.run(
        [sys.executable, "-c", STEP], capture_output=True, text=True, timeout=300, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "whole"


@pytest.mark.parametrize("isa", ["AVX2", "DEFAULT"])
@pytest.mark.parametrize(("name", "batch"), [("tiny-mci", 8), ("MobileCLIP2-S0", 8)])
def test_gradients_of_the_first_layer_are_whole_on_every_processor(name, batch, isa):
    """With torch's own convolution the processes crash, hang, or damage their memory in most of these cases."""
    done = subprocess.run(
        [sys.executable, "-c", STEM, name, str(batch)], capture_output=True, text=True, timeout=120, check=False,
        cwd=Path(__file__).parents[2], env={**os.environ, "ONEDNN_MAX_CPU_ISA": isa},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "whole"


@pytest.mark.parametrize("stride", [2, 3, (1, 2)])
def test_numbers_are_those_of_the_plain_convolution(stride):
    torch.manual_seed(0)
    plain = nn.Conv2d(3, 5, 1, stride=stride).double()
    model = without_stride(nn.Sequential(nn.Conv2d(3, 5, 1, stride=stride).double()))
    model[0].load_state_dict(plain.state_dict())
    pixels = torch.rand(2, 3, 9, 10, dtype=torch.float64)
    assert type(model[0]) is StridedPointwise
    assert torch.equal(model(pixels), plain(pixels))
    assert torch.autograd.gradcheck(model, pixels.requires_grad_())


@pytest.mark.parametrize(
    "other",
    [
        nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(16, 4, 1, stride=2),
        nn.Conv2d(4, 4, 1, stride=2, groups=4), nn.Conv2d(3, 4, 1, stride=2, padding=1), nn.Conv1d(3, 4, 1, stride=2),
    ],
)  # fmt: skip
def test_all_others_stay(other):
    kind = type(other)
    assert type(without_stride(nn.Sequential(other))[0]) is kind


def test_state_and_folding_know_no_difference():
    torch.manual_seed(0)
    clip = zoo.create("tiny-mci")
    stem = next(m for m in clip.model.visual.modules() if isinstance(m, StridedPointwise))
    pixels = torch.rand(1, 3, 8, 8)
    assert torch.equal(stem(pixels), F.conv2d(pixels, stem.weight, stem.bias, stride=stem.stride))
    assert all(type(key) is str for key in clip.model.state_dict())
