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
from mobileclip.formats.program_ports import ANY_ROWS, TensorSpec
from mobileclip.formats.proof import Reference, encode_in_batches, relative_error
from mobileclip.formats.runtime import filled, load_program
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
        given: Its input, as the contract will state it.
        result: Its output.
        path: Where the program goes.
        config: The `export` section.
        budget: Largest error allowed.
        calibration: Samples apart from those of the proof, and the student's embeddings of them; drawn at first call.
    """

    tower: Tower
    precision: str
    module: nn.Module
    example: torch.Tensor
    given: TensorSpec
    result: TensorSpec
    path: Path
    config: Export
    budget: float
    calibration: Callable[[], Reference]

    @property
    def batch(self) -> int:
        """Rows per call; 0 = any."""
        rows = self.given.shape[0]
        return 0 if isinstance(rows, str) else rows

    @property
    def names(self) -> tuple[str, str]:
        """Of input and output."""
        return self.given.name, self.result.name

    def traced(self, module: nn.Module) -> ExportedProgram:
        """The tower, or a rewrite of it, as a `torch.export` program for as many rows as a call takes."""
        return trace(module, self.example, batch=self.batch)

    def calibration_calls(self) -> tuple[torch.Tensor, ...]:
        """`calibration_rows` as a program takes them: the last call is filled with copies of the first row."""
        return torch.from_numpy(filled(self.calibration().inputs(self.tower), self.batch)).split(self.batch)  # type: ignore[no-untyped-call]

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
        residency: Report of `mobileclip.formats.residency`.
    """

    settings: dict[str, Any]
    figures: dict[str, float] = field(default_factory=dict)
    keep: Sequence[str] = ()
    layers: dict[str, float] = field(default_factory=dict)
    residency: dict[str, Any] = field(default_factory=dict)


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
    """The common source of all formats: the tower as a `torch.export` program.

    Args:
        module: A tower of `mobileclip.formats.towers`, or a rewrite of one.
        example: Rows of input; two or more where any number may come, so that theirs is not taken for a constant.
        batch: Rows per call; 0 = any.
    """
    with torch.no_grad():
        if batch:
            return torch.export.export(module, (example[:batch],))
        return torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim(ANY_ROWS)},))


def parts(tower: nn.Module) -> nn.Module:
    """What computes in a lower precision: all but pixel normalization and unit norm."""
    return tower.encoder if isinstance(tower, ImageTower) else tower
