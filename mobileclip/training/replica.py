"""An objective and its parameters on each of several processes: DistributedDataParallel, with gradients summed.

DDP sends gradients in buckets while the backward pass still runs. It averages, for losses that are means over a
process's rows. Ours is each process's share of the whole batch's loss, over features that were gathered, so gradients
are summed: parts may be of unequal size, and any number of processes gives the same update.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mobileclip.training.batch_norm import kept_buffers
from mobileclip.training.draws import kept_draws
from mobileclip.training.objective import Batch, Features, Losses, Objective
from mobileclip.training.world import World


class Replica(nn.Module):
    """A model whose forward pass is that of its objective, so that DDP sees all that gradients come from."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        """Take the trained model, with every parameter that `objective` uses."""
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, batch: Batch, autocast: Callable[[], torch.autocast], *, whole: bool) -> tuple[Features, Losses]:
        """Features of a batch or a part of it in float32 or wider and, of a `whole` batch, its losses."""
        with autocast():
            features = self.objective.encode(batch)
        half = {torch.float16, torch.bfloat16}
        features = {name: value.float() if value.dtype in half else value for name, value in features.items()}
        return features, self.objective.criterion(features, batch) if whole else {}


class Replicas:
    """The same model on every process; one process alone computes as without it."""

    def __init__(self, model: nn.Module, objective: Objective, world: World) -> None:
        """Sum gradients over processes from here on.

        Args:
            model: On its device, equal on all processes, with its frozen parameters set; at least one is trained.
            objective: Of this model.
            world: The processes.
        """
        self.own = Replica(model, objective)
        self._alone = world.size == 1
        self._synced: DistributedDataParallel | None = None

    def forward(self, batch: Batch, autocast: Callable[[], torch.autocast], *, whole: bool) -> tuple[Features, Losses]:
        """See `Replica.forward`; the backward pass from here also sends what has added up in `unsynced`."""
        if self._alone:
            return self.own(batch, autocast, whole=whole)  # type: ignore[no-any-return]
        if self._synced is None:
            # A whole batch may leave out a scale whose term has weight 0. Where all parameters take part DDP need not
            # look for them in every step.
            self._synced = self._share(partial=self._leaves_out(batch, autocast))
        return self._synced(batch, autocast, whole=whole)  # type: ignore[no-any-return]

    def unsynced(self) -> AbstractContextManager[None]:
        """Inside, gradients stay on their process, until the next backward pass outside."""
        if self._alone:
            return nullcontext()
        if self._synced is None:
            self._synced = self._share(partial=True)  # a part's features leave out what the criterion alone uses
        return self._synced.no_sync()

    def _share(self, *, partial: bool) -> DistributedDataParallel:
        # Running statistics are the loop's business, see `batch_norm`.
        shared = DistributedDataParallel(
            self.own, find_unused_parameters=partial, init_sync=False, forward_sync_buffers=False
        )
        shared.register_comm_hook(None, _sum)
        return shared

    def _leaves_out(self, batch: Batch, autocast: Callable[[], torch.autocast]) -> bool:
        """Whether some trained parameter gets no gradient; one forward pass that leaves no trace."""
        with kept_draws(), kept_buffers(self.own):
            _, losses = self.own(batch, autocast, whole=True)
        seen, found, todo = set(), set(), [losses["loss"].grad_fn]
        while todo:
            node = todo.pop()
            if node is not None and node not in seen:
                seen.add(node)
                found.add(id(getattr(node, "variable", None)))  # of a leaf alone
                todo += [following for following, _ in node.next_functions]
        return any(p.requires_grad and id(p) not in found for p in self.own.parameters())


def _sum(_: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:  # type: ignore[name-defined]
    """DDP's own hook without its division by the number of processes."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])
