"""The backward pass of a batch, whole or in parts that give the whole batch's gradient.

Contrastive losses look at all pairs of a batch, so a batch that does not fit into memory cannot simply be cut. But the
towers work row by row, and the loss needs their small outputs alone (Gao et al., GradCache, arXiv 2101.06983):

1. run the towers chunk by chunk without keeping activations, and keep the features;
2. compute the loss of the whole batch from the features, and its gradient with respect to them;
3. run the towers again chunk by chunk, now backward from the gradients of step 2.

The result is the large batch's gradient, at the price of one more forward pass.
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from mobileclip.training.batch_norm import kept_buffers
from mobileclip.training.draws import kept_draws, random_state
from mobileclip.training.objective import Batch, Features, Losses
from mobileclip.training.replica import Replicas


def backward(
    replicas: Replicas,
    batch: Batch,
    *,
    chunks: int = 1,
    autocast: Callable[[], torch.autocast],
    scale: Callable[[Tensor], Tensor] = lambda loss: loss,
    check: Callable[[Tensor], None] = lambda _: None,
    recompute: bool = False,
) -> tuple[Losses, Features]:
    """Add the gradient of a batch's loss, summed over processes, to the parameters.

    Args:
        replicas: Model and loss. The model's buffers (running statistics) move once, not twice.
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
    own = replicas.own
    if chunks == 1:
        features, losses = replicas.forward(batch, autocast, whole=True)
        check(losses["loss"])
        with kept_buffers(own.model) if recompute else nullcontext():
            scale(losses["loss"]).backward()  # type: ignore[no-untyped-call]
        return losses, features
    parts = _split(batch, chunks)
    states, pieces = [], []
    with torch.no_grad(), kept_buffers(own.model):
        for part in parts:
            states.append(random_state())
            pieces.append(own(part, autocast, whole=False)[0])
    features = {name: torch.cat([piece[name] for piece in pieces]).requires_grad_() for name in pieces[0]}
    losses = own.objective.criterion(features, batch)
    check(losses["loss"])
    with replicas.unsynced():
        scale(losses["loss"]).backward()  # type: ignore[no-untyped-call]
    cached = {name: value.grad for name, value in features.items() if value.grad is not None}
    starts = dict.fromkeys(cached, 0)
    for index, (part, state, piece) in enumerate(zip(parts, states, pieces, strict=True)):
        gradients = []
        for name, gradient in cached.items():
            gradients.append(gradient[starts[name] : starts[name] + len(piece[name])])
            starts[name] += len(piece[name])
        last = index == len(parts) - 1
        # The same dropout masks as in the first pass; the last part's backward pass sends what all have added up.
        with kept_draws(state), nullcontext() if last else replicas.unsynced():
            again, _ = replicas.forward(part, autocast, whole=False)
            with kept_buffers(own.model) if recompute else nullcontext():
                torch.autograd.backward([again[name] for name in cached], gradients)
    return {name: value.detach() for name, value in losses.items()}, {k: v.detach() for k, v in features.items()}


def _split(batch: Batch, chunks: int) -> list[Batch]:
    """Exactly `chunks` parts (fewer only where there are fewer rows), so that all processes count alike."""
    rows = len(next(iter(batch.values())))
    pieces = {name: torch.tensor_split(value, min(chunks, rows)) for name, value in batch.items()}
    return [{name: parts[index] for name, parts in pieces.items()} for index in range(min(chunks, rows))]
