"""Items of the pair loader, for its tests."""

import torch

from mobileclip.data.preprocess import Preprocess

PREPROCESS = Preprocess(32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear")


def tokens(texts):
    """Texts as bytes: every text can be read back from its tokens."""
    return torch.tensor([list(text.encode()) + [0] * (64 - len(text.encode())) for text in texts])


def text_of(row) -> str:
    """The text of a row of tokens."""
    return bytes(v for v in row.tolist() if v).decode()


def equal(one, other) -> bool:
    """Whether two items hold the same tensors."""
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
