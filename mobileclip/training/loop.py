"""One training loop for teacher, captioner and student, on one process or many: only the loss of a batch differs."""

import contextlib
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from mobileclip.config import Training
from mobileclip.data.progress import format_seconds, progress_bar
from mobileclip.errors import MobileClipError
from mobileclip.training import checkpoint
from mobileclip.training.backward import backward
from mobileclip.training.batch_norm import global_batch_norm
from mobileclip.training.checkpoint import Snapshot
from mobileclip.training.checks import check, check_weights, warn
from mobileclip.training.objective import Batch, Features, Losses, Objective
from mobileclip.training.optimizer import create_optimizer, learning_rate, update_mean
from mobileclip.training.replica import Replicas
from mobileclip.training.world import World, join

__all__ = ["Batch", "BatchSource", "Objective", "Report", "Result", "train"]

logger = logging.getLogger(__name__)

Report = Callable[[dict[str, Any]], None]
"""Gets a point of the learning curve."""
BatchSource = Callable[[int, int], Iterator[Batch]]
"""(first step, last step) to this process's rows of the batches of these steps."""

_MAX_LOG_SCALE = float(torch.log(torch.tensor(100.0)))  # CLIP clamps the scale to 100
_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Result:
    """What a training run leaves.

    Attributes:
        history: Points of the learning curve: step, samples, losses, logit scale, gradient norm, validation scores.
        saved: The one of them whose weights the model holds: the last, or the best.
        samples: Of all processes in this run; those before a resume are not among them.
        seconds: Wall time of this process.
        wait_seconds: Of it, waiting for data.
        speeds: Per point the step, samples per second and the share of waiting since the point before: they differ
            from run to run, so they stand beside the history.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    saved: dict[str, Any] = field(default_factory=dict)
    samples: int = 0
    seconds: float = 0.0
    wait_seconds: float = 0.0
    speeds: list[dict[str, float]] = field(default_factory=list)


@dataclass
class _Run:
    """All that one run needs at every step."""

    model: nn.Module
    replicas: Replicas
    config: Training
    world: World
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    total: int
    key: str
    folder: str
    title: str
    validate: Callable[[], dict[str, float]] | None
    report: Report
    state: Snapshot


def train(
    model: nn.Module,
    objective: Objective,
    source: BatchSource,
    config: Training,
    *,
    key: str,
    folder: str,
    title: str,
    total: int = 0,
    validate: Callable[[], dict[str, float]] | None = None,
    report: Report | None = None,
) -> Result:
    """Train a model in place; afterwards it holds the last weights, their running mean, or the best, as asked for.

    With several processes each sees its rows of the batch; losses, gradients and statistics are those of the whole.

    Args:
        model: Put into train mode; frozen parameters stay as they are.
        objective: What is minimized.
        source: Batches by step.
        config: Length, step size, precision.
        key: Digest of all that decides the result: names the run in its checkpoint.
        folder: Where checkpoints go, below it in a folder of this run.
        title: Name of the run in progress bar and history.
        total: Rows of the whole batch, where the data have fewer than `Training.batch_size`; 0 = that many.
        validate: Called at every point in eval mode on the first process; its scores join the history. The first of
            them chooses the best weights, see `Training.keep_weights`.
        report: Called on the first process with every point as it comes, and the speed since the one before; of a
            resumed run with the earlier points first.

    Raises:
        ConfigError: There are fewer rows in a step than processes times parts.
        MobileClipError: The loss, the gradients or the last weights are not finite: the sentence names the step.
    """
    world = join()
    total = total or config.batch_size
    check(config, total=total, world=world, validated=validate is not None)
    if world.main:
        warn(config, model)
    model.to(world.device)
    run = _start(
        model, objective, config, world, total=total, key=key, folder=checkpoint.of_run(folder, key), title=title,
        validate=validate,
        report=report if report is not None and world.main else lambda _: None,
    )  # fmt: skip
    for point in run.state.history:
        run.report(point)
    result = Result(run.state.history)
    start = time.perf_counter()
    with global_batch_norm(model, world) if config.global_batch_norm else contextlib.nullcontext():
        _loop(run, source, result)
    check_weights(model, step=run.state.step)
    best = world.same(_best(run.state.history, config))
    if best:
        model.load_state_dict(checkpoint.load_best(run.folder, best))
        world.wait()  # the first process removes the checkpoints of a complete stage, others may still be reading
    elif run.state.mean:
        model.load_state_dict(run.state.mean)
    result.saved = next((point for point in run.state.history if point["step"] == best), run.state.history[-1])
    model.eval().to("cpu")
    result.seconds = time.perf_counter() - start
    return result


def _loop(run: _Run, source: BatchSource, result: Result) -> None:
    config, state = run.config, run.state
    first = state.step
    feed = source(first, config.steps)
    run.model.train()
    shown = run.world.main and sys.stderr.isatty()
    progress = progress_bar(range(first, config.steps), desc=run.title, unit="step", quiet=not shown)
    begun = time.perf_counter()
    since, waited = time.perf_counter(), 0.0
    for step in progress:
        before = time.perf_counter()
        batch = {name: value.to(run.world.device) for name, value in next(feed).items()}
        waited += time.perf_counter() - before
        losses, features, norm = _step(run, batch, step)
        update_mean(state.mean, run.model, config.ema_decay, step)
        done = step + 1
        state.step, state.samples = done, done * run.total
        if done % config.log_every == 0 or done == config.steps:
            _add_point(run, batch, losses, features, norm)
            steps = done - max(first, (done - 1) // config.log_every * config.log_every)
            result.speeds.append(_speed(done, steps * run.total, since, waited))
            run.report(state.history[-1] | result.speeds[-1])
            progress.set_postfix(loss=f"{state.history[-1]['loss']:.3f}")
            if run.world.main and not shown:
                _log_point(run, result.speeds[-1]["samples_per_second"], (time.perf_counter() - begun) / (done - first))
            result.wait_seconds += waited
            since, waited = time.perf_counter(), 0.0
        if config.checkpoint_every and done % config.checkpoint_every == 0 and done < config.steps:
            _save(run)
    result.wait_seconds += waited
    result.samples = (config.steps - first) * run.total


def _log_point(run: _Run, rate: float, step_seconds: float) -> None:
    """Where there is no bar: a line per point."""
    state, steps = run.state, run.config.steps
    logger.info(
        "%s: step %d of %d, loss %.4f, %.1f samples a second, %s left", run.title, state.step, steps,
        state.history[-1]["loss"], rate, format_seconds((steps - state.step) * step_seconds),
    )  # fmt: skip


def _start(model: nn.Module, objective: Objective, config: Training, world: World, **given: Any) -> _Run:
    """Optimizer and state: fresh, or from the newest checkpoint of this run."""
    optimizer = create_optimizer(model, config.optimizer)
    scaler = torch.amp.GradScaler(world.device.type, enabled=config.precision == "float16")  # type: ignore[attr-defined]
    replicas = Replicas(model, objective, world)
    run = _Run(model, replicas, config, world, optimizer, scaler, state=Snapshot(), **given)
    step = world.same(_found(run) if world.main else 0)
    if step:
        run.state = checkpoint.load(run.folder, step, model=model, optimizer=optimizer)
        if world.main:
            logger.info("%s: resumes at step %d of %d", run.title, step, config.steps)
        if scaler.is_enabled():
            scaler.load_state_dict(run.state.scaler)
    else:
        world.share_state(model)
    _set_random(run)
    mean = run.state.mean
    if config.ema_decay and not mean:
        mean = {name: value.detach().clone() for name, value in model.state_dict().items()}
    run.state.mean = {name: value.to(world.device) for name, value in mean.items()}
    return run


def _found(run: _Run) -> int:
    """Step to go on from; 0 = from the start, and a warning where another run was left unfinished here."""
    if run.config.resume != "auto":
        checkpoint.remove(run.folder)  # else its later checkpoints would outlive those of this start
        return 0
    step = checkpoint.find(run.folder, key=run.key)
    if not step and checkpoint.others(run.folder):
        logger.warning(
            "%s: starts at step 0, as the unfinished run in '%s' is of other settings, data or weights; "
            "its checkpoints stay until this one is complete.", run.title, run.folder.rpartition("/")[0],
        )  # fmt: skip
    return step


def _set_random(run: _Run) -> None:
    """Dropout masks: each process has its own stream, which goes on where the checkpoint left it."""
    state, rank = run.state, run.world.rank
    if rank < len(state.random):
        # Copies: torch reads a state as aligned words, and a row of a file's bytes lies anywhere; else it may crash.
        torch.set_rng_state(state.random[rank].clone())
        if run.world.device.type == "cuda" and rank < len(state.cuda_random):
            torch.cuda.set_rng_state(state.cuda_random[rank].clone())
    elif rank or state.step:
        # Another process than the checkpoint knows, or not the first one: a stream of its own.
        torch.manual_seed((torch.initial_seed() + 1_000_003 * rank + 7919 * state.step) % 2**63)


def _cause(step: int) -> str:
    """What to look at where a step is not finite; before the first update no learning rate has done it."""
    return "lower the learning rate" if step else "the weights it starts from or its data are not finite"


def _step(run: _Run, batch: Batch, step: int) -> tuple[Losses, Features, float]:
    config, optimizer, world = run.config, run.optimizer, run.world
    rate = learning_rate(config.optimizer, step=step, steps=config.steps)
    for group in optimizer.param_groups:
        group["lr"] = rate
    kind = _TYPES.get(config.precision)

    def autocast() -> torch.autocast:
        return torch.autocast(world.device.type, dtype=kind or torch.bfloat16, enabled=kind is not None)

    def check(total: torch.Tensor) -> None:
        if not bool(torch.isfinite(total)):
            value = float(total.detach())
            raise MobileClipError(f"training: the loss is {value} at step {step}; {_cause(step)}.")

    optimizer.zero_grad(set_to_none=True)
    losses, features = backward(
        run.replicas, batch, chunks=config.accumulate, autocast=autocast, scale=run.scaler.scale,
        check=check, recompute=config.grad_checkpointing,
    )  # fmt: skip
    parameters = [p for p in run.model.parameters() if p.grad is not None]
    run.scaler.unscale_(optimizer)
    limit = config.optimizer.grad_clip or float("inf")
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
    if not (run.scaler.is_enabled() or math.isfinite(norm)):  # float16 leaves such a step out by itself
        raise MobileClipError(f"training: the gradient norm is {norm} at step {step}; {_cause(step)}.")
    run.scaler.step(optimizer)
    run.scaler.update()
    scale = getattr(run.model, "logit_scale", None)
    if scale is not None:
        with torch.no_grad():
            scale.clamp_(0, _MAX_LOG_SCALE)
    return losses, features, norm


def _add_point(run: _Run, batch: Batch, losses: Losses, features: Features, norm: float) -> None:
    """Append a point to the history; every process takes part, the first one validates."""
    world, state = run.world, run.state
    point: dict[str, Any] = {"model": run.title, "step": state.step, "samples": state.samples}
    values = world.sum(torch.stack([value.detach() for value in losses.values()])).tolist()
    point |= {k if k == "loss" else f"loss/{k}": v for k, v in zip(losses, values, strict=True)}
    if math.isfinite(norm):  # else float16 overflowed, and the step was left out
        point["grad_norm"] = norm
    point["lr"] = float(run.optimizer.param_groups[0]["lr"])
    scale = getattr(run.model, "logit_scale", None)
    if scale is not None:
        point["logit_scale"] = float(scale.exp().detach().reshape(-1)[0])
    with torch.no_grad():
        point |= run.replicas.own.objective.measure({k: v.detach() for k, v in features.items()}, batch)
    if run.validate is not None and world.main:
        point |= _validate(run, run.validate)
    state.history.append(point)


def _validate(run: _Run, validate: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Score the weights that would be saved now, and keep them where they are the best so far."""
    model, mean = run.model, run.state.mean
    current = {name: value.detach().clone() for name, value in model.state_dict().items()} if mean else {}
    if mean:
        model.load_state_dict(mean)
    model.eval()
    with torch.no_grad():
        scores = {f"validation/{name}": value for name, value in validate().items()}
    if run.config.keep_weights == "best":
        history = [*run.state.history, {"step": run.state.step, **scores}]
        if _best(history, run.config) == run.state.step:
            checkpoint.save_best(run.folder, run.state.step, model.state_dict())
    if current:
        model.load_state_dict(current)
    model.train()
    return scores


def _best(history: list[dict[str, Any]], config: Training) -> int:
    """Step of the first point with the best score: a loss counts down, everything else up; 0 = none is kept."""
    if config.keep_weights != "best":
        return 0
    key = next((k for point in history for k in point if k.startswith("validation/")), "")
    scored = [point for point in history if key in point]
    if not scored:
        return 0
    sign = -1.0 if key.endswith("loss") else 1.0
    return int(max(scored, key=lambda point: (sign * point[key], -point["step"]))["step"])


def _save(run: _Run) -> None:
    world, state = run.world, run.state
    random = world.gather(torch.get_rng_state()[None].to(world.device), world.size).cpu()
    cuda = torch.empty(0, 0, dtype=torch.uint8)
    if world.device.type == "cuda":
        cuda = world.gather(torch.cuda.get_rng_state()[None].to(world.device), world.size).cpu()
    if world.main:
        checkpoint.save(
            run.folder, replace(state, random=random, cuda_random=cuda, scaler=dict(run.scaler.state_dict())),
            key=run.key, model=run.model, optimizer=run.optimizer, keep=run.config.keep_checkpoints,
            best=_best(state.history, run.config),
        )  # fmt: skip


def _speed(step: int, samples: int, since: float, waited: float) -> dict[str, float]:
    seconds = max(time.perf_counter() - since, 1e-9)
    return {"step": step, "samples_per_second": samples / seconds, "wait_share": waited / seconds}
