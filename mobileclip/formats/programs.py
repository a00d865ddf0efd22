"""Write a student's programs and prove each: the work between the export stage and the formats."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from onnx import ModelProto
from onnx import load as load_model
from tqdm import tqdm

from mobileclip.config import Export
from mobileclip.errors import ConfigError
from mobileclip.formats import contract, onnx, proof
from mobileclip.formats.contract import Program, Tower
from mobileclip.formats.proof import Reference
from mobileclip.formats.runtime import load_program
from mobileclip.formats.towers import IMAGE_INPUT, IMAGE_OUTPUT, TEXT_INPUT, TEXT_OUTPUT, Towers

logger = logging.getLogger(__name__)

TOWERS: tuple[Tower, ...] = ("image", "text")
NAMES = {"image": (IMAGE_INPUT, IMAGE_OUTPUT), "text": (TEXT_INPUT, TEXT_OUTPUT)}


@dataclass(frozen=True)
class Plan:
    """One program to write."""

    tower: Tower
    format: str
    precision: str

    @property
    def file_name(self) -> str:
        """`image.float32.onnx`."""
        return f"{self.tower}.{self.precision}{onnx.SUFFIX}"


def plan(config: Export) -> list[Plan]:
    """The programs a section asks for: int8 is dynamic quantization, which serves the text tower alone.

    Raises:
        ConfigError: There would be no image program.
    """
    if set(config.precisions) == {"int8"}:
        raise ConfigError("export.precisions: got ['int8'], want float32 or float16 too, for the image tower.")
    return [
        Plan(tower, name, precision)
        for name in dict.fromkeys(config.formats)
        for precision in dict.fromkeys(config.precisions)
        for tower in TOWERS
        if (tower, precision) != ("image", "int8")
    ]


def build(config: Export, towers: Towers, reference: Reference, folder: Path) -> list[Program]:
    """Write and prove every planned program.

    Args:
        config: The `export` section.
        towers: The student, split.
        reference: The student's own embeddings.
        folder: Where the files go; nothing else writes there.

    Raises:
        ExportError: A program cannot be written, or misses its budget.
    """
    progress = tqdm(plan(config), desc="export", unit="program", disable=None)
    return [_write_and_prove(item, config, towers, reference, folder) for item in progress]


def _write_and_prove(item: Plan, config: Export, towers: Towers, reference: Reference, folder: Path) -> Program:
    path = folder / item.file_name
    onnx.save(_model(item, config, towers, reference, folder), path)
    figures = proof.prove(load_program(path, threads=1), item.tower, reference)
    budget = budgets(config)[item.precision]
    logger.info("%s: error %.3g of %g", item.file_name, figures["error"], budget)
    proof.check(item.file_name, figures, budget)
    return Program(
        tower=item.tower, format=item.format, precision=item.precision, settings={"opset": config.opset},
        budget=budget, executed=True, figures=figures, **contract.describe(path, root=folder).model_dump(),
    )  # fmt: skip


def _model(item: Plan, config: Export, towers: Towers, reference: Reference, folder: Path) -> ModelProto:
    """The program; the int8 one is made of the float32 one, which is read again if it was written."""
    tower = towers.image if item.tower == "image" else towers.text
    example = torch.from_numpy(reference.inputs(item.tower)[:2])
    terms: dict[str, Any] = {"example": example, "names": NAMES[item.tower], "opset": config.opset}
    if item.precision == "float16":
        return onnx.export(onnx.half(tower), **terms)
    written = folder / Plan(item.tower, item.format, "float32").file_name
    model = load_model(written) if written.is_file() else onnx.export(tower, **terms)
    return onnx.quantize(model) if item.precision == "int8" else model


def budgets(config: Export) -> dict[str, float]:
    """Largest error by precision."""
    return {
        "float32": config.max_error_float32,
        "float16": config.max_error_float16,
        "int8": config.max_error_int8,
    }


def metrics(programs: Sequence[Program]) -> dict[str, float]:
    """The stage's numbers: `FORMAT/TOWER/PRECISION/FIGURE`."""
    values: dict[str, float] = {"programs": float(len(programs))}
    for program in programs:
        prefix = f"{program.format}/{program.tower}/{program.precision}"
        shown: dict[str, Any] = {**program.figures, "bytes": program.bytes, "budget": program.budget}
        values |= {f"{prefix}/{name}": float(value) for name, value in shown.items()}
    return values
