"""Write a student's programs and prove each: the work between the export stage and the formats."""

import functools
import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from mobileclip.config import Export
from mobileclip.data.progress import progress_bar
from mobileclip.errors import ConfigError, ExportError
from mobileclip.formats import contract, environment, half_precision, proof, registry, residency, sensitivity
from mobileclip.formats.contract import Program, Tower
from mobileclip.formats.export_job import BATCH, Job, Written
from mobileclip.formats.program_ports import Kind, TensorSpec, disagreement
from mobileclip.formats.proof import Reference
from mobileclip.formats.runtime import filled, load_program
from mobileclip.formats.towers import IMAGE_INPUT, IMAGE_OUTPUT, TEXT_INPUT, TEXT_OUTPUT, Towers

logger = logging.getLogger(__name__)

LAYERS_FILE, REFUSED_FILE = "layers.json", "layers-refused.json"
TOWERS: tuple[Tower, ...] = ("image", "text")
STATIC = "int8_static"
NAMES = {"image": (IMAGE_INPUT, IMAGE_OUTPUT), "text": (TEXT_INPUT, TEXT_OUTPUT)}
# Type and largest value of pixels.
_PIXELS: dict[Kind, tuple[Literal["float32", "uint8"], float]] = {"array": ("float32", 1), "picture": ("uint8", 255)}


@dataclass(frozen=True)
class Plan:
    """One program to write."""

    tower: Tower
    format: str
    precision: str

    def rows(self, config: Export) -> int:
        """Rows per call; 0 = any."""
        return registry.FORMATS[self.format].rows(config.batch)

    @property
    def file_name(self) -> str:
        """`image.float32.onnx`."""
        return f"{self.tower}.{self.precision}{registry.FORMATS[self.format].suffix}"


def plan(config: Export, *, whole: bool = True) -> list[Plan]:
    """The programs a section asks for: every precision in which a format holds a tower.

    Args:
        config: The `export` section.
        whole: Whether every format must hold both towers.

    Raises:
        ConfigError: A format would lack a tower, or is not installed.
    """
    if idle := residency.unknown(config.residency, config.formats):
        raise ConfigError(
            f"export.residency: got {', '.join(idle)}, of which no rule is known for export.formats {config.formats}, "
            "want a delegate of one of them."
        )
    plans: list[Plan] = []
    for name in dict.fromkeys(config.formats):
        row = registry.require(name)
        if row.environment:
            environment.python(row.environment)
        for tower in TOWERS:
            if whole and not set(config.precisions) & set(row.precisions[tower]):
                raise ConfigError(
                    f"export.precisions: got {config.precisions}, want at least one of "
                    f"{', '.join(row.precisions[tower])} too, for the {tower} tower in {name}."
                )
        plans += [
            Plan(tower, name, precision)
            for precision in dict.fromkeys(config.precisions)
            for tower in TOWERS
            if precision in row.precisions[tower]
        ]
    return plans


def build(
    config: Export,
    towers: Towers,
    reference: Reference,
    folder: Path,
    *,
    calibrate: Callable[[], Reference] | None = None,
    tune: Callable[[Reference], nn.Module] | None = None,
    refused: Callable[[bytes], str] | None = None,
) -> list[Program]:
    """Write and prove every planned program.

    Args:
        config: The `export` section.
        towers: The student, split.
        reference: The student's own embeddings.
        folder: Where the files go; nothing else writes there. `layers.json` goes there too, where layers were chosen.
        calibrate: Draws samples that are not those of the proof; called when an int8 program asks for them.
        tune: Fine-tunes the image tower for int8 on those samples' ranges; called once, when a static int8 program
            misses its budget without.
        refused: Gets the layer report (`sensitivity.report`) of a program that misses its budget although layers were
            kept, and says where it lies.

    Raises:
        ConfigError: A format cannot be written here.
        ExportError: A program cannot be written, or misses its budget.
    """
    drawn = functools.cache(calibrate or (lambda: reference))
    progress = progress_bar(plan(config), desc="export", unit="program")
    tuned = functools.cache(lambda: replace(towers, image=tune(drawn()))) if tune else None
    halved = functools.cache(lambda tower: half_precision.prove(getattr(towers, tower), tower, reference))
    made = [
        _write_and_prove(item, config, towers, reference, folder, drawn, tuned, refused, halved) for item in progress
    ]
    layers = {program.path: written.layers for program, written in made if written.layers}
    if layers:
        (folder / LAYERS_FILE).write_text(json.dumps(layers, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    reports = {program.path: written.residency for program, written in made if written.residency}
    if reports:
        text = json.dumps(reports, indent=1, sort_keys=True)
        (folder / residency.RESIDENCY_FILE).write_text(text + "\n", encoding="utf-8")
    return [program for program, _ in made]


def write(
    item: Plan,
    config: Export,
    towers: Towers,
    *,
    reference: Reference,
    folder: Path,
    calibrate: Callable[[], Reference],
) -> Written:
    """Write one program, without proof.

    Args:
        item: Which.
        config: The `export` section.
        towers: The student, split.
        reference: Samples, of which the tower is traced with some, and the student's own embeddings.
        folder: Where the file goes.
        calibrate: Draws samples that are not those of the proof.
    """
    rows = item.rows(config)
    # Two at the least, so that an exporter does not take their number for a constant.
    example = torch.from_numpy(filled(reference.inputs(item.tower)[: max(2, rows)], rows))
    job = Job(
        item.tower, item.precision, getattr(towers, item.tower), example, *interface(item, config, towers, reference),
        folder / item.file_name, config, budgets(config)[item.precision], calibrate,
    )  # fmt: skip
    written: Written = registry.writer(item.format).write(job)
    return written


def reports(folder: Path) -> list[Path]:
    """What `build` left beside the programs: layers that were chosen, and what accelerators would take."""
    return [path for name in (LAYERS_FILE, residency.RESIDENCY_FILE) if (path := folder / name).is_file()]


def onnx_float32(
    tower: Tower, config: Export, towers: Towers, reference: Reference, folder: Path, work: Path
) -> Path | None:  # fmt: skip
    """The tower's ONNX float32 program, which every program is timed beside; None where ONNX is not installed.

    Args:
        tower: Which.
        config: The `export` section.
        towers: The student, split.
        reference: Samples.
        folder: The export folder, which may have it.
        work: Where it goes otherwise.
    """
    item = Plan(tower, "onnx", "float32")
    if (folder / item.file_name).is_file():
        return folder / item.file_name
    if not registry.is_installed(item.format):
        return None
    write(item, config, towers, reference=reference, folder=work, calibrate=lambda: reference)
    return work / item.file_name


def interface(item: Plan, config: Export, towers: Towers, reference: Reference) -> tuple[TensorSpec, TensorSpec]:
    """What a program takes and gives, for its contract."""
    count = item.rows(config)
    rows: int | Literal["batch"] = count or "batch"
    kind = registry.FORMATS[item.format].input_kind(item.tower, count)
    name, result = NAMES[item.tower]
    tables = [m.num_embeddings for m in towers.text.modules() if isinstance(m, nn.Embedding)]
    maximum = max(tables) - 1 if item.tower == "text" else _PIXELS[kind][1]
    given = TensorSpec(
        name=name, kind=kind, dtype="int32" if item.tower == "text" else _PIXELS[kind][0], minimum=0, maximum=maximum,
        shape=[rows, *reference.inputs(item.tower).shape[1:]],
    )  # fmt: skip
    width = reference.features(item.tower).shape[1]
    features = TensorSpec(name=result, dtype="float32", shape=[rows, width], minimum=-1, maximum=1, unit_norm=True)
    return given, features


def _write_and_prove(
    item: Plan,
    config: Export,
    towers: Towers,
    reference: Reference,
    folder: Path,
    calibrate: Callable[[], Reference],
    tuned: Callable[[], Towers] | None,
    refused: Callable[[bytes], str] | None,
    halved: Callable[[str], tuple[dict[str, float], str]],
) -> tuple[Program, Written]:
    path = folder / item.file_name
    before: dict[str, float] = {}
    if tuned is not None and item.precision == STATIC:
        before = _post_training(item, config, towers, reference, calibrate)
    if tuned is not None and before:
        # In a folder of its own: exporters start from the float32 program of the tower beside them.
        with tempfile.TemporaryDirectory(dir=folder) as name:
            made = write(item, config, tuned(), reference=reference, folder=Path(name), calibrate=calibrate)
            (Path(name) / item.file_name).replace(path)
    else:
        made = write(item, config, towers, reference=reference, folder=folder, calibrate=calibrate)
    encode = load_program(path, threads=1)
    given, result = interface(item, config, towers, reference)
    if wrong := disagreement((encode.given, encode.result), (given, result)):
        raise ExportError(f"export: program '{item.file_name}' {wrong}; nothing was published.")
    taken, report = residency.judge(item.format, residency.operators_of(item.format, path))
    least: dict[str, float] = {str(name): share for name, share in config.residency.items()}
    residency.check(item.file_name, taken, report, most=config.max_rank, least=least)
    figures = {**proof.prove(encode, item.tower, reference), **made.figures, **before}
    budget = budgets(config)[item.precision]
    logger.info("%s: error %.3g of %g", item.file_name, figures["error"], budget)
    proof.check(item.file_name, figures, budget, layers=_layers(item, made, figures["error"], budget, refused))
    if item.precision == "float16":
        survives, layer = halved(item.tower)
        half_precision.check(item.file_name, survives, layer, budget)
        figures |= survives
    figures |= taken
    settings = made.settings | ({"qat_steps": config.qat_steps} if before else {})
    program = Program(
        tower=item.tower, format=item.format, precision=item.precision, input=given, output=result,
        kept_in_float=sorted(made.keep), settings=settings, budget=budget,
        executed=registry.FORMATS[item.format].executed, figures=figures,
        **contract.describe(path, root=folder).model_dump(),
    )  # fmt: skip
    return program, replace(made, residency=report)


def _layers(
    item: Plan, made: Written, error: float, budget: float, refused: Callable[[bytes], str] | None
) -> str:  # fmt: skip
    """What the layers have to do with a program's refusal; empty where it meets its budget or none were measured."""
    if error <= budget or not made.layers:
        return ""
    worst = f"{sensitivity.describe(made.layers)} ({len(made.keep)} of {len(made.layers)} were kept in float"
    if refused is None:
        return f"{worst})"
    table = sensitivity.report(item.file_name, made.layers, made.keep, error=error, budget=budget)
    return f"{worst}, all are listed in '{refused(table)}')"


def _post_training(
    item: Plan,
    config: Export,
    towers: Towers,
    reference: Reference,
    calibrate: Callable[[], Reference],
) -> dict[str, float]:
    """Figures of the static int8 program of the tower as it is, no layer kept; empty where it meets its budget."""
    plain = config.model_copy(update={"max_kept": 0.0})
    with tempfile.TemporaryDirectory(prefix="mobileclip-int8-") as name:
        write(item, plain, towers, reference=reference, folder=Path(name), calibrate=calibrate)
        encode = load_program(Path(name) / item.file_name, threads=1)
        # Whether to train is decided on the calibration samples: the proof's must have no say in it.
        drawn = calibrate()
        got = proof.encode_in_batches(encode, drawn.inputs(item.tower), BATCH)
        error = proof.relative_error(got, drawn.features(item.tower))
        logger.info("%s: error %.3g without fine-tuning, on calibration samples", item.file_name, error)
        if error <= sensitivity.MARGIN * budgets(config)[item.precision]:
            return {}
        figures = proof.prove(encode, item.tower, reference)
    return {f"post_training/{name}": value for name, value in figures.items()}


def budgets(config: Export) -> dict[str, float]:
    """Largest error by precision."""
    return {
        "float32": config.max_error_float32,
        "float16": config.max_error_float16,
        "int8": config.max_error_int8,
        "int8_static": config.max_error_int8,
        "int8_weights": config.max_error_int8,
        "int4_weights": config.max_error_int8,
    }


def versions(formats: Sequence[str]) -> dict[str, str]:
    """Versions of the libraries that decide the programs' bytes."""
    found: dict[str, str] = {"torch": torch.__version__}
    for name in formats:
        found |= registry.writer(name).versions()
    return found


def metrics(programs: Sequence[Program]) -> dict[str, float]:
    """The stage's numbers: `FORMAT/TOWER/PRECISION/FIGURE`."""
    values: dict[str, float] = {"programs": float(len(programs))}
    for program in programs:
        prefix = f"{program.format}/{program.tower}/{program.precision}"
        shown: dict[str, Any] = {**program.figures, "bytes": program.bytes, "budget": program.budget}
        values |= {f"{prefix}/{name}": float(value) for name, value in shown.items()}
    return values
