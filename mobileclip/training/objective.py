"""A loss in two halves: what needs the towers, and what needs the whole batch.

Contrastive losses look at all pairs of a batch, so a batch that does not fit into memory cannot simply be cut. But the
towers work row by row, and the loss needs their small outputs alone (Gao et al., GradCache, arXiv 2101.06983):

1. run the towers chunk by chunk without keeping activations, and keep the features;
2. compute the loss of the whole batch from the features, and its gradient with respect to them;
3. run the towers again chunk by chunk, now backward from the gradients of step 2.

The result is the large batch's gradient, at the price of one more forward pass.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from mobileclip.training.batch_norm import kept_buffers

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


def backward(
    objective: Objective,
    model: nn.Module,
    batch: Batch,
    *,
    chunks: int = 1,
    autocast: Callable[[], torch.autocast],
    scale: Callable[[Tensor], Tensor] = lambda loss: loss,
    check: Callable[[Tensor], None] = lambda _: None,
    recompute: bool = False,
) -> tuple[Losses, Features]:
    """Add the gradient of a batch's loss to the parameters.

    Args:
        objective: The loss.
        model: Whose buffers (running statistics) must move once, not twice.
        batch: This process's rows.
        chunks: Parts the towers work through one after the other; the features of the others stay.
        autocast: Context of the towers' precision; the criterion always computes in float32.
        scale: Factor on the loss against underflow of half-precision gradients.
        check: Called with the loss before any gradient is computed.
        recompute: Whether backward passes run towers forward again (gradient checkpointing): their running statistics
            must not move a second time.

    Returns:
        Losses and features of the batch, detached where `chunks` is above 1.
    """
    if chunks == 1:
        features = _encode(objective, batch, autocast)
        losses = objective.criterion(features, batch)
        check(losses["loss"])
        with kept_buffers(model) if recompute else nullcontext():
            scale(losses["loss"]).backward()  # type: ignore[no-untyped-call]
        return losses, features
    parts = _split(batch, chunks)
    states, pieces = [], []
    with torch.no_grad(), kept_buffers(model):
        for part in parts:
            states.append(_random_state())
            pieces.append(_encode(objective, part, autocast))
    features = {name: torch.cat([piece[name] for piece in pieces]).requires_grad_() for name in pieces[0]}
    losses = objective.criterion(features, batch)
    check(losses["loss"])
    scale(losses["loss"]).backward()  # type: ignore[no-untyped-call]
    cached = {name: value.grad for name, value in features.items() if value.grad is not None}
    starts = dict.fromkeys(cached, 0)
    for part, state, piece in zip(parts, states, pieces, strict=True):
        with _restored(state):  # the same dropout masks as in the first pass
            again = _encode(objective, part, autocast)
            gradients = []
            for name, gradient in cached.items():
                gradients.append(gradient[starts[name] : starts[name] + len(piece[name])])
                starts[name] += len(piece[name])
            with kept_buffers(model) if recompute else nullcontext():
                torch.autograd.backward([again[name] for name in cached], gradients)
    return {name: value.detach() for name, value in losses.items()}, {k: v.detach() for k, v in features.items()}


def _encode(objective: Objective, batch: Batch, autocast: Callable[[], torch.autocast]) -> Features:
    with autocast():
        features = objective.encode(batch)
    half = {torch.float16, torch.bfloat16}
    return {name: value.float() if value.dtype in half else value for name, value in features.items()}


def _split(batch: Batch, chunks: int) -> list[Batch]:
    """Exactly `chunks` parts (fewer only where there are fewer rows), so that all processes count alike."""
    rows = len(next(iter(batch.values())))
    pieces = {name: torch.tensor_split(value, min(chunks, rows)) for name, value in batch.items()}
    return [{name: parts[index] for name, parts in pieces.items()} for index in range(min(chunks, rows))]


def _random_state() -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None


def _set_random_state(state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])


@contextmanager
def _restored(state: tuple[Tensor, Tensor | None]) -> Iterator[None]:
    """Draw again what was drawn from `state` on; afterwards as if it had been drawn once."""
    later = _random_state()
    _set_random_state(state)
    try:
        yield
    finally:
        _set_random_state(later)
