"""The state of torch's generators around a pass that is done twice."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

State = tuple[Tensor, Tensor | None]
"""Of the CPU's generator, and of the CUDA device's where there is one."""


def random_state() -> State:
    """The state now."""
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None


@contextmanager
def kept_draws(state: State | None = None) -> Iterator[None]:
    """Inside, draw again what was drawn from `state` on (`None` = go on); afterwards as if nothing had been drawn."""
    later = random_state()
    _set(state or later)
    try:
        yield
    finally:
        _set(later)


def _set(state: State) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])
