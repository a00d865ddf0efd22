"""One program to write: what every format gets, and what it gives back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from mobileclip.config import Export
from mobileclip.formats.contract import Tower
from mobileclip.formats.proof import Reference, encode_in_batches, relative_error
from mobileclip.formats.runtime import load_program
from mobileclip.formats.sensitivity import Choice, choose
from mobileclip.formats.towers import ImageTower

BATCH = 8


@dataclass(frozen=True)
class Job:
    """One program to write.

    Attributes:
        tower: `image` or `text`.
        precision: As in `export.precisions`.
        module: The tower in float32.
        example: Input rows of the tower.
        names: Names of input and output.
        path: Where the program goes.
        config: The `export` section.
        budget: Largest error allowed.
        calibration: Samples apart from those of the proof, and the student's embeddings of them; drawn at first call.
    """

    tower: Tower
    precision: str
    module: nn.Module
    example: torch.Tensor
    names: tuple[str, str]
    path: Path
    config: Export
    budget: float
    calibration: Callable[[], Reference]

    def calibration_rows(self) -> torch.Tensor:
        """Inputs of this tower that are no inputs of the proof, [samples, ...]."""
        return torch.from_numpy(self.calibration().inputs(self.tower))

    def error(self, path: Path) -> float:
        """Error of a program on the calibration samples, in its runtime."""
        reference = self.calibration()
        got = encode_in_batches(load_program(path, threads=1), reference.inputs(self.tower), BATCH)
        return relative_error(got, reference.features(self.tower))


@dataclass(frozen=True)
class Written:
    """What a format says about a program it wrote.

    Attributes:
        settings: Of the exporter.
        figures: Numbers beside the proof's, such as `delegated`, the share of nodes a backend took over.
        keep: Layers that stayed in float32.
        layers: Error of the program with one layer alone quantized, by layer.
    """

    settings: dict[str, Any]
    figures: dict[str, float] = field(default_factory=dict)
    keep: Sequence[str] = ()
    layers: dict[str, float] = field(default_factory=dict)


def mixed(
    job: Job,
    layers: Sequence[str],
    write: Callable[[Sequence[str]], None],
    error_of: Callable[[Sequence[str]], float] | None = None,
) -> Choice:
    """Write the quantized program that meets its budget with the fewest layers kept in floating point.

    Args:
        job: The program.
        layers: Names of all layers that can be kept.
        write: Writes the program that keeps the given layers to `job.path`.
        error_of: Error of that program, where it can be had without writing it; otherwise its runtime says.
    """

    def measured(keep: Sequence[str]) -> float:
        write(keep)
        return job.error(job.path)

    if job.config.max_kept == 0:
        write([])
        return Choice([], 0.0, {})
    choice = choose(layers, error_of or measured, budget=job.budget, most=job.config.max_kept)
    if error_of or choice.alone:  # otherwise the one that was measured is the one
        write(choice.keep)
    return choice


def trace(module: nn.Module, example: torch.Tensor, *, batch: int) -> ExportedProgram:
    """The common source of the formats: the tower as a `torch.export` program (torch's ONNX exporter makes its own).

    Args:
        module: A tower of `mobileclip.formats.towers`, or a rewrite of one.
        example: Rows of input.
        batch: Rows per call.
    """
    with torch.no_grad():
        return torch.export.export(module, (example[:batch],))


def parts(tower: nn.Module) -> nn.Module:
    """What computes in a lower precision: all but pixel normalization and unit norm."""
    return tower.encoder if isinstance(tower, ImageTower) else tower
