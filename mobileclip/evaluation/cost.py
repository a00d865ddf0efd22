"""What a model costs: parameters, multiply-accumulates, and the memory that one picture or text takes."""

import ctypes
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from mobileclip.models.zoo import Clip

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_TURNS = 3


def describe(clip: Clip) -> dict[str, dict[str, int]]:
    """Parameters and multiply-accumulates of each tower at batch 1.

    A multiply-accumulate is half of what PyTorch's counter calls two floating-point operations: matrix products,
    convolutions and attention; norms and activations are left out, as the papers leave them out.

    Returns:
        `image` and `text`, each with `parameters` and `macs`. The text tower has everything that is not the image
        tower's, the logit scale included.
    """
    model: Any = clip.model
    image = sum(parameter.numel() for parameter in model.visual.parameters())
    total = sum(parameter.numel() for parameter in model.parameters())
    return {
        "image": {"parameters": image, "macs": _macs(_image_turn(clip))},
        "text": {"parameters": total - image, "macs": _macs(_text_turn(clip))},
    }


def peak_memory(clip: Clip) -> dict[str, float]:
    """Most memory that one picture and one text add to the process while they are embedded [MB]; empty off Linux."""
    found = {}
    for name, turn in (("image", _image_turn(clip)), ("text", _text_turn(clip))):
        with torch.no_grad():
            turn()  # buffers that stay are not this turn's
            grown = _growth(turn)
        if grown is not None:
            found[name] = round(grown / 1e6, 2)
    return found


def _image_turn(clip: Clip) -> Callable[[], object]:
    model: Any = clip.model
    pixels = torch.zeros(1, 3, clip.preprocess.size, clip.preprocess.size)
    return lambda: model.encode_image(pixels, normalize=True)


def _text_turn(clip: Clip) -> Callable[[], object]:
    model: Any = clip.model
    tokens = clip.tokenizer(["a photo"])
    return lambda: model.encode_text(tokens, normalize=True)


def _macs(turn: Callable[[], object]) -> int:
    # With gradients on: without them PyTorch's attention may take one fused step that the counter does not know.
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        turn()
    return int(counter.get_total_flops()) // 2


def _growth(turn: Callable[[], object]) -> float | None:
    """Bytes by which the peak of resident memory lies above the present one during a turn.

    The middle one of a few turns: other threads take and free memory meanwhile.
    """
    try:
        return statistics.median(_one_growth(turn) for _ in range(_TURNS))
    except (OSError, AttributeError):  # another system, or another C library
        return None


def _one_growth(turn: Callable[[], object]) -> float:
    # What earlier work freed and the allocator kept would take this turn in without a trace.
    ctypes.CDLL(None).malloc_trim(0)
    _RESET.write_text("5")  # the kernel forgets the peak so far
    before = _resident("VmRSS")
    turn()
    return max(0.0, _resident("VmHWM") - before)


def _resident(key: str) -> float:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return float(line.split()[1]) * 1024
