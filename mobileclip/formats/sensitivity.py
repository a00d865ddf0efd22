"""Mixed precision by sensitivity: which layers must stay in float32 for a quantized program to meet its budget."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mobileclip.data.progress import progress_bar

# The choice is made on calibration samples; the proof's samples are others, so some of the budget is held back.
MARGIN = 0.75


@dataclass(frozen=True)
class Choice:
    """Which layers stay in float32.

    Attributes:
        keep: Their names, the worst first.
        error: Of the program that keeps them, on the calibration samples.
        alone: Error with one layer alone quantized, by layer; empty where nothing had to be kept.
    """

    keep: list[str]
    error: float
    alone: dict[str, float]

    @property
    def figures(self) -> dict[str, float]:
        """How many layers were measured and kept; nothing where none had to be."""
        return {"layers": float(len(self.alone)), "kept": float(len(self.keep))} if self.alone else {}


def choose(
    layers: Sequence[str], error_of: Callable[[Sequence[str]], float], *, budget: float, most: float
) -> Choice:  # fmt: skip
    """Keep the layers that lose most until the budget is met.

    Layers are ranked by the error of the program in which they alone are quantized. The error falls with every layer
    that is kept (nearly: quantization errors may cancel), so the shortest sufficient prefix is found by bisection.

    Args:
        layers: Names of all quantizable layers.
        error_of: Error of the program that keeps the given layers in float32.
        budget: Largest error allowed; `MARGIN` of it is aimed at.
        most: Largest share of layers that may be kept; 0 = none.

    Returns:
        The choice. Where even the largest allowed share is not enough, it is that share with its error: the proof then
        refuses the program.
    """
    aim = MARGIN * budget
    whole = error_of([])
    if whole <= aim or not layers:
        return Choice([], whole, {})
    progress = progress_bar(layers, desc="sensitivity", unit="layer", leave=False)
    alone = {layer: error_of([other for other in layers if other != layer]) for layer in progress}
    ranked = sorted(layers, key=lambda layer: (-alone[layer], layer))
    high = int(most * len(ranked))
    if high == 0:
        return Choice([], whole, alone)
    low, error = 0, error_of(ranked[:high])
    if error > aim:
        return Choice(ranked[:high], error, alone)
    while high - low > 1:
        middle = (low + high) // 2
        got = error_of(ranked[:middle])
        low, high, error = (low, middle, got) if got <= aim else (middle, high, error)
    return Choice(ranked[:high], error, alone)


def describe(layers: dict[str, float], count: int = 3) -> str:
    """The layers that lose most, for a sentence; empty without any."""
    worst = sorted(layers.items(), key=lambda item: (-item[1], item[0]))[:count]
    return ", ".join(f"{name} {error:.3g}" for name, error in worst)


def report(name: str, layers: dict[str, float], keep: Sequence[str], *, error: float, budget: float) -> bytes:
    """The whole table of a program that misses its budget, the worst layer first, as JSON.

    Args:
        name: File name of the program.
        layers: Error with one layer alone quantized, by layer.
        keep: Layers that were kept, which did not suffice.
        error: Of the program that keeps them, in the proof.
        budget: Largest error allowed.
    """
    ranked = sorted(layers.items(), key=lambda item: (-item[1], item[0]))
    rows = [{"layer": layer, "error": _number(alone), "kept": layer in set(keep)} for layer, alone in ranked]
    table = {"program": name, "error": _number(error), "budget": budget, "layers": rows}
    return (json.dumps(table, indent=1) + "\n").encode()


def _number(value: float) -> float | None:
    """JSON has no infinity, the error of embeddings that are no numbers."""
    return value if math.isfinite(value) else None
