"""What float16 does to a tower on hardware that computes in it, whatever the runtime that proves the program does.

ONNX Runtime and XNNPACK hold float32 between the nodes of a float16 program on a CPU: a text tower with activations of
340,917 passes there and gives no numbers on a phone's GPU or NPU. So every float16 program is also judged by its tower
in PyTorch's half precision, whose every operation rounds its result to float16, and by its largest activation.
"""

from collections import defaultdict
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mobileclip.errors import ExportError
from mobileclip.formats.export_job import BATCH, parts
from mobileclip.formats.proof import Reference, encode_in_batches, one_thread, relative_error

LARGEST = 65_504.0
"""The largest number of float16."""
MARGIN = 0.5
"""Share of it that activations of the proof samples may reach: other images and texts reach farther."""


def half(tower: nn.Module) -> nn.Module:
    """A copy that computes in float16; pixel normalization and unit norm stay in float32."""
    copied = deepcopy(tower)
    parts(copied).half()
    return copied


def largest_activations(tower: nn.Module, rows: torch.Tensor) -> dict[str, float]:
    """The largest finite magnitude among all results of each module in float32, the largest first.

    Args:
        tower: In float32; what stays in float32 in a float16 program is not looked at.
        rows: Input.
    """
    recorder = _Recorder()
    inner = parts(tower)
    handles: list[Any] = []
    for name, module in inner.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: recorder.inside.append(name)))
        handles.append(module.register_forward_hook(lambda *_: recorder.leave()))
    try:
        with torch.no_grad(), one_thread():
            for part in rows.split(BATCH):  # type: ignore[no-untyped-call]
                with recorder:
                    tower(part)
    finally:
        for handle in handles:
            handle.remove()
    return dict(sorted(recorder.largest.items(), key=lambda item: (-item[1], item[0])))


def prove(tower: nn.Module, name: str, reference: Reference) -> tuple[dict[str, float], str]:
    """Figures of a tower in true half precision.

    Args:
        tower: In float32.
        name: `image` or `text`.
        reference: Proof samples with the student's own embeddings.

    Returns:
        `error_half` (as `proof.prove`'s `error`; infinite where the tower gives no numbers) and `largest_activation`;
        and the module that makes it.
    """
    rows = reference.inputs(name)
    layer, largest = next(iter(largest_activations(tower, torch.from_numpy(rows)).items()))
    halved = half(tower)
    with torch.no_grad(), one_thread():
        got = encode_in_batches(lambda part: halved(torch.from_numpy(part)).numpy(), rows, BATCH)
    return {"error_half": relative_error(got, reference.features(name)), "largest_activation": largest}, layer


def check(name: str, figures: dict[str, float], layer: str, budget: float) -> None:
    """Refuse a float16 program whose tower does not survive half precision.

    Args:
        name: File name.
        figures: Of `prove`.
        layer: The module with the largest activation.
        budget: Largest error allowed.

    Raises:
        ExportError: With the layer and its activation, or the error.
    """
    largest, error = figures["largest_activation"], figures["error_half"]
    where = f"its largest activation is {largest:,.0f}, in '{layer or 'the tower itself'}'"
    if largest > MARGIN * LARGEST:
        raise ExportError(
            f"export: program '{name}' would overflow where a phone computes in float16: on the proof samples {where}, "
            f"want at most {MARGIN * LARGEST:,.0f} (float16 ends at {LARGEST:,.0f}); leave float16 out of "
            "export.precisions, int8_weights is smaller; nothing was published."
        )
    if error > budget:
        raise ExportError(
            f"export: program '{name}' has error {error:.3g} where every operation rounds to float16, as on a phone's "
            f"GPU, its budget is {budget:g} ({where}); nothing was published."
        )


def _without_masks(scores: torch.Tensor) -> torch.Tensor:
    """The tensor with 0 for what a mask added: minus infinity, or about -1e4, which is far from float16's end."""
    is_mask = ~scores.isfinite() | ((scores > -1.1e4) & (scores < -0.9e4))
    return scores.masked_fill(is_mask, 0)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Largest magnitudes by module."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.inside: list[str] = []
        self.largest: dict[str, float] = defaultdict(float)

    def leave(self) -> None:
        """A module is done."""
        self.inside.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and look at its results."""
        result = func(*args, **(kwargs or {}))
        if self.inside:
            for leaf in tree_leaves(result):
                if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and leaf.numel():
                    value = float(_without_masks(leaf.detach()).abs().max())
                    self.largest[self.inside[-1]] = max(self.largest[self.inside[-1]], value)
        return result
