"""The processes that train one model together, and the device each of them computes on.

Processes are started by `torchrun`, which says in the environment who is who. Each holds some rows of the global batch.
A loss is written as a **sum** over processes (see `mobileclip.training.losses`), and so is its gradient (see
`mobileclip.training.replica`).
"""

import atexit
import functools
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mobileclip import parallel
from mobileclip.errors import ConfigError
from mobileclip.parallel import Task, process_count, run_all

logger = logging.getLogger(__name__)

# The first process validates, scores and writes while the others wait for it in a collective: with many pictures that
# takes longer than nccl's default of 10 minutes. Where a process dies, torchrun ends the others at once.
_TIMEOUT = timedelta(hours=4)


@dataclass(frozen=True)
class World:
    """Who this process is.

    Attributes:
        rank: 0 to `size` - 1; rank 0 logs, validates and writes.
        size: Number of processes.
        device: What this process computes on.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def main(self) -> bool:
        """Whether this process logs and writes."""
        return self.rank == 0

    def shares(self, total: int) -> list[int]:
        """Rows of each process when `total` are dealt out, the first ones get the remainder."""
        return [total // self.size + (rank < total % self.size) for rank in range(self.size)]

    def rows(self, total: int) -> slice:
        """This process's rows of a global batch, which is the processes' rows in the order of their ranks."""
        shares = self.shares(total)
        first = sum(shares[: self.rank])
        return slice(first, first + shares[self.rank])

    def gather(self, local: Tensor, total: int) -> Tensor:
        """All processes' rows [total, ...] of this process's [rows, ...]; gradients flow back to who computed them."""
        if self.size == 1:
            return local
        return _Gather.apply(local, self, total)  # type: ignore[no-untyped-call]

    def sum(self, value: Tensor) -> Tensor:
        """The sum over processes, equal on all of them; gradients are summed alike."""
        if self.size == 1:
            return value
        return _Sum.apply(value)  # type: ignore[no-untyped-call]

    def same(self, value: int) -> int:
        """Rank 0's number on every process."""
        if self.size == 1:
            return value
        tensor = torch.tensor([value], device=self.device)
        dist.broadcast(tensor, src=0)
        return int(tensor)

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.size > 1:
            dist.barrier()

    def share_state(self, module: torch.nn.Module) -> None:
        """Give every process rank 0's weights and buffers."""
        if self.size > 1:
            for value in module.state_dict().values():
                dist.broadcast(value, src=0)


@functools.cache
def join() -> World:
    """This process's place, from the environment; joins the process group once.

    `MOBILECLIP_DEVICE` (`cpu` or `cuda`) overrides the choice of CUDA where there is one.

    Raises:
        ConfigError: A device is asked for that is not there.
    """
    rank, size = parallel.rank(), parallel.world_size()
    device = _device(int(os.environ.get("LOCAL_RANK", "0") or 0))
    if size == 1:
        return World(device=device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, rank=rank, world_size=size, timeout=_TIMEOUT)
        atexit.register(_leave)
    logger.info("training: process %d of %d on %s", rank, size, device)
    return World(rank, size, device)


def train_models(tasks: Sequence[Task]) -> list[Any]:
    """Train independent models: side by side on the cores of one CPU, else one after the other with all processes."""
    if one_by_one(len(tasks)):
        return [function(*arguments) for function, arguments in tasks]
    return run_all(tasks)


def one_by_one(models: int) -> bool:
    """Whether `train_models` trains that many in this process, which then can report while it trains."""
    world = join()
    return world.size > 1 or world.device.type == "cuda" or process_count(models) == 1


def _device(local_rank: int) -> torch.device:
    wanted = os.environ.get("MOBILECLIP_DEVICE", "")
    if wanted not in {"", "cpu", "cuda"}:
        raise ConfigError(f"MOBILECLIP_DEVICE: got '{wanted}', want cpu or cuda.")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("MOBILECLIP_DEVICE: got 'cuda', but torch sees no CUDA device.")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


class _Gather(torch.autograd.Function):
    """Concatenate the processes' rows; the gradient of a row is the sum of what every process makes of it."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, world: World, total: int) -> Tensor:
        ctx.rows = world.rows(total)
        shares = world.shares(total)
        # Gathering wants equal sizes: short parts are padded by a row, which is cut off again.
        padded = local.new_zeros((max(shares), *local.shape[1:]))
        padded[: len(local)] = local
        parts = [torch.empty_like(padded) for _ in shares]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, shares, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.rows], None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:  # noqa: ARG004 - autograd's signature
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total
