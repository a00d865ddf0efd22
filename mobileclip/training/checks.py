"""What is looked at before the first step and after the last: what cannot work, and settings that are seldom meant."""

import logging

import torch
from torch import nn

from mobileclip.config import Training
from mobileclip.errors import ConfigError, MobileClipError
from mobileclip.training.world import World

logger = logging.getLogger(__name__)


def check(config: Training, *, total: int, world: World, validated: bool) -> None:
    """Refuse what cannot work.

    Args:
        config: Of the run.
        total: Rows of the whole batch.
        world: The processes.
        validated: Whether there are scores to choose the best weights by.

    Raises:
        ConfigError: There are fewer rows in a step than processes times parts, or nothing to choose weights by.
    """
    if total < world.size * config.accumulate:
        held = f" of {total} samples" if total < config.batch_size else ""
        raise ConfigError(
            f"training.batch_size: got {config.batch_size}{held}, want at least {world.size * config.accumulate}: one "
            f"sample for each of {world.size} processes times training.accumulate {config.accumulate}."
        )
    if config.keep_weights == "best" and not validated:
        raise ConfigError(
            "training.keep_weights: got 'best', but there is no validation split with captions to choose by."
        )


def warn(config: Training, model: nn.Module) -> None:
    """Say what is allowed and seldom meant."""
    warmup = config.optimizer.warmup_steps
    if warmup > config.steps:
        logger.warning(
            "training.optimizer.warmup_steps: got %d for %d steps: the rate ends at %.0f %% of its peak.",
            warmup, config.steps, 100 * config.steps / warmup,
        )  # fmt: skip
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) and m.weight.requires_grad]
    if config.accumulate > 1 and norms:
        logger.warning(
            "training.accumulate: got %d: the model's %d batch norms see one part of the batch at a time; the result "
            "is not that of the whole batch.", config.accumulate, len(norms),
        )  # fmt: skip


def check_weights(model: nn.Module, *, step: int) -> None:
    """Refuse weights that are no numbers: those of the last step meet no further loss that would show them.

    Raises:
        MobileClipError: The sentence names the tensor and the step.
    """
    parameters = dict(model.named_parameters())
    for name, value in model.state_dict().items():
        # A buffer may hold infinity for good reason: a mask of attention.
        wrong = ~torch.isfinite(value) if name in parameters else torch.isnan(value)
        if bool(wrong.any()):
            raise MobileClipError(f"training: '{name}' is not finite after step {step}; lower the learning rate.")
