"""One training loop for teacher, captioner and student: only the loss of a batch differs."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from mobileclip.config import Training
from mobileclip.errors import MobileClipError
from mobileclip.training import checkpoint
from mobileclip.training.optimizer import create_optimizer, learning_rate

logger = logging.getLogger(__name__)

Batch = dict[str, torch.Tensor]
LossFunction = Callable[[Batch], dict[str, torch.Tensor]]
"""A batch to its losses; `loss` is the one that is minimized, the others are logged."""
BatchSource = Callable[[int, int], Iterator[Batch]]
"""(first step, last step) to the batches of these steps."""

_MAX_LOGIT_SCALE = 100.0
_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Result:
    """What a training run leaves.

    Attributes:
        history: Points of the learning curve: step, samples, losses, logit scale, gradient norm, validation scores.
        seconds: Wall time of this process.
        wait_seconds: Of it, waiting for data.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    wait_seconds: float = 0.0


def train(
    model: nn.Module,
    loss: LossFunction,
    source: BatchSource,
    config: Training,
    *,
    key: str,
    folder: str,
    title: str,
    validate: Callable[[], dict[str, float]] | None = None,
) -> Result:
    """Train a model in place; afterwards it holds the running mean of its weights where that is asked for.

    Args:
        model: Put into train mode; frozen parameters stay as they are.
        loss: Loss of one batch.
        source: Batches by step.
        config: Length, step size, precision.
        key: Digest of all that decides the result: names the run in its checkpoint.
        folder: Where checkpoints go.
        title: Name of the run in progress bar and history.
        validate: Called at every point in eval mode; its scores join the history.

    Raises:
        MobileClipError: The loss is not finite: the sentence names the step.
    """
    optimizer = create_optimizer(model, config.optimizer)
    first, mean, history = checkpoint.load(folder, key=key, model=model, optimizer=optimizer)
    if config.ema_decay and not mean:
        mean = {name: value.detach().clone() for name, value in model.state_dict().items()}
    result = Result(history)
    start = time.perf_counter()
    feed = source(first, config.steps)
    model.train()
    progress = tqdm(range(first, config.steps), desc=title, unit="step", disable=None)
    for step in progress:
        waited = time.perf_counter()
        batch = next(feed)
        result.wait_seconds += time.perf_counter() - waited
        values, norm = _step(model, loss, batch, optimizer, config, step)
        _update_mean(mean, model, config.ema_decay, step)
        done = step + 1
        if done % config.log_every == 0 or done == config.steps:
            point = _point(model, values, norm, optimizer, title, done, config.batch_size)
            if validate is not None:
                point |= _validate(model, mean, validate)
            history.append(point)
            progress.set_postfix(loss=f"{point['loss']:.3f}")
        if config.checkpoint_every and done % config.checkpoint_every == 0 and done < config.steps:
            checkpoint.save(folder, key=key, step=done, model=model, optimizer=optimizer, mean=mean, history=history)
    if mean:
        model.load_state_dict(mean)
    model.eval()
    result.seconds = time.perf_counter() - start
    return result


def _step(
    model: nn.Module, loss: LossFunction, batch: Batch, optimizer: torch.optim.Optimizer, config: Training, step: int
) -> tuple[dict[str, torch.Tensor], float]:
    rate = learning_rate(config.optimizer, step=step, steps=config.steps)
    for group in optimizer.param_groups:
        group["lr"] = rate
    kind = _TYPES.get(config.precision)
    with torch.autocast("cpu", dtype=kind or torch.bfloat16, enabled=kind is not None):
        values = loss(batch)
    total = values["loss"]
    if not bool(torch.isfinite(total)):
        raise MobileClipError(f"training: the loss is {float(total.detach())} at step {step}; lower the learning rate.")
    optimizer.zero_grad(set_to_none=True)
    total.backward()  # type: ignore[no-untyped-call]
    limit = config.optimizer.grad_clip or float("inf")
    norm = torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], limit)
    optimizer.step()
    scale = getattr(model, "logit_scale", None)
    if scale is not None:
        with torch.no_grad():  # CLIP clamps the scale to 100
            scale.clamp_(0, torch.log(torch.tensor(_MAX_LOGIT_SCALE)))
    return values, float(norm)


def _update_mean(mean: dict[str, torch.Tensor], model: nn.Module, decay: float, step: int) -> None:
    if not mean:
        return
    # Early on a long memory would hold the random start: the usual ramp of (1 + step) / (10 + step).
    decay = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.dtype.is_floating_point:
                mean[name].lerp_(value.detach(), 1 - decay)
            else:
                mean[name].copy_(value)


def _point(
    model: nn.Module,
    values: dict[str, torch.Tensor],
    norm: float,
    optimizer: torch.optim.Optimizer,
    title: str,
    done: int,
    batch_size: int,
) -> dict[str, Any]:
    point: dict[str, Any] = {"model": title, "step": done, "samples": done * batch_size}
    point |= {name if name == "loss" else f"loss/{name}": float(v.detach()) for name, v in values.items()}
    point |= {"grad_norm": norm, "lr": float(optimizer.param_groups[0]["lr"])}
    scale = getattr(model, "logit_scale", None)
    if scale is not None:
        point["logit_scale"] = float(scale.exp().detach().reshape(-1)[0])
    return point


def _validate(
    model: nn.Module, mean: dict[str, torch.Tensor], validate: Callable[[], dict[str, float]]
) -> dict[str, float]:
    """Score the weights that would be saved now."""
    current = {name: value.detach().clone() for name, value in model.state_dict().items()} if mean else {}
    if mean:
        model.load_state_dict(mean)
    model.eval()
    with torch.no_grad():
        scores = validate()
    if current:
        model.load_state_dict(current)
    model.train()
    return {f"validation/{name}": value for name, value in scores.items()}
