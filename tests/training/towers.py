"""Small double-precision towers with what a real model has: normalization over the batch, a scale, a bias."""

from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F

from mobileclip.data.preprocess import Preprocess
from mobileclip.training.bank import Bank, join_teachers, principal_directions

PREPROCESS = Preprocess(6, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear")
TEACHERS = {"a": 7, "b.c": 4}
DIM, WORDS = 5, 11


class Towers(nn.Module):
    """A convolution and a bag of words."""

    def __init__(self, *, batch_norm: bool, dropout: float = 0.0):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8) if batch_norm else nn.Identity()
        self.drop = nn.Dropout(dropout)
        self.image = nn.Linear(8, DIM)
        self.words = nn.Embedding(WORDS, DIM)
        self.text = nn.Linear(DIM, DIM)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        self.logit_bias = nn.Parameter(torch.tensor(-3.0))

    def encode_image(self, images, normalize):
        assert normalize
        x = self.drop(F.gelu(self.norm(self.conv(images.double())))).mean(dim=(2, 3))
        return F.normalize(self.image(x), dim=1)

    def encode_text(self, tokens, normalize):
        assert normalize
        return F.normalize(self.text(torch.tanh(self.words(tokens).mean(dim=1))), dim=1)


def clip(*, batch_norm: bool = True, dropout: float = 0.0, seed: int = 0):
    """What the objective needs of a `Clip`."""
    torch.manual_seed(seed)
    model = Towers(batch_norm=batch_norm, dropout=dropout).double().train()
    return SimpleNamespace(model=model, preprocess=PREPROCESS, embed_dim=DIM, config={})


def batch(rows: int, *, seed: int = 0, synthetic: bool = True):
    """A batch as the loader gives it."""
    generator = torch.Generator().manual_seed(seed)

    def unit(width):
        return F.normalize(torch.randn(rows, width, generator=generator, dtype=torch.float64), dim=1)

    found = {"image": torch.randint(256, (rows, 3, 6, 6), generator=generator, dtype=torch.uint8)}
    for name, kind in (("text", "text"), ("synthetic_text", "synthetic"))[: 1 + synthetic]:
        found[name] = torch.randint(WORDS, (rows, 4), generator=generator)
        found |= {f"teacher_{kind}.{teacher}": unit(width) for teacher, width in TEACHERS.items()}
    return found | {f"teacher_image.{teacher}": unit(width) for teacher, width in TEACHERS.items()}


def bank(scales, *, images: int = 9, texts: int = 12, width: int = DIM):
    """A bank of the two teachers in double precision."""
    sides = [batch(count, seed=count) for count in (images, texts)]
    joint = [join_teachers([side[f"teacher_image.{name}"] for name in TEACHERS], scales) for side in sides]
    return Bank(tuple(scales), principal_directions(*joint, width).double(), *joint)
