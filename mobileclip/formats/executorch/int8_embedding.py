"""The token table in int8, in operations every runtime has: it is the largest tensor of a small text tower."""

from copy import deepcopy

import torch
from torch import nn

_NAME = "token_embedding"


class Int8Table(nn.Module):
    """Rows of an embedding as int8 with one scale each."""

    rows: torch.Tensor
    scales: torch.Tensor

    def __init__(self, table: nn.Embedding) -> None:
        """Round the rows of `table` [tokens, width]."""
        super().__init__()
        weight = table.weight.detach().float()
        scales = (weight.abs().amax(1, keepdim=True) / 127).clamp_min(torch.finfo(torch.float32).tiny)
        self.register_buffer("rows", (weight / scales).round().clamp(-127, 127).to(torch.int8))
        self.register_buffer("scales", scales)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids [batch, length] to float32 [batch, length, width]."""
        return self.rows[ids].float() * self.scales[ids]


def with_int8_table(tower: nn.Module) -> nn.Module:
    """A copy of a text tower whose token embedding is an `Int8Table`; others are copied as they are."""
    copied = deepcopy(tower)
    if name := table_name(copied):
        setattr(copied, name, Int8Table(getattr(copied, name)))
    return copied


def table_name(tower: nn.Module) -> str:
    """What a tower calls its token table; empty where it has none."""
    return _NAME if isinstance(getattr(tower, _NAME, None), nn.Embedding) else ""
