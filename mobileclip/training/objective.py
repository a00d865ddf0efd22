"""A loss in two halves: what needs the towers, and what needs the whole batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

Batch = dict[str, Tensor]
Features = dict[str, Tensor]
Losses = dict[str, Tensor]


class Objective(Protocol):
    """What one step minimizes."""

    def encode(self, batch: Batch, /) -> Features:
        """A batch, or any part of it, to features by name.

        The first axis is rows, or one row per part for what is summed over a part. Gradients of the towers flow through
        these alone.
        """

    def criterion(self, features: Features, batch: Batch, /) -> Losses:
        """The batch's features, and the batch, to its losses; `loss` is the one that is minimized."""

    def measure(self, features: Features, batch: Batch, /) -> dict[str, float]:
        """Further numbers at the points of the learning curve, from the same two."""


@dataclass(frozen=True)
class Halves:
    """An objective of two functions that measures nothing further."""

    encode: Callable[[Batch], Features]
    criterion: Callable[[Features, Batch], Losses]

    def measure(self, features: Features, batch: Batch) -> dict[str, float]:  # noqa: ARG002 - the protocol's
        """Nothing."""
        return {}
