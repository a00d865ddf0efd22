"""Latency measured on phones: one file format, a reader, and the logs of the runtimes' own benchmark tools.

Nothing here measures. `examples/on-device` has the commands and harnesses that do, on the devices themselves.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from mobileclip.errors import DataError, IntegrityError
from mobileclip.formats.contract import Contract, Program, RelativePath, Sha256, Tower


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Device(_Record):
    """What was measured on."""

    name: Annotated[str, Field(min_length=1)]
    """Model, as its maker calls it."""
    system: Annotated[str, Field(min_length=1)]
    """Operating system with version."""
    chip: str = ""
    """System on a chip."""
    state: str = ""
    """Battery or charger, thermal state, low-power mode: what a reader must know to trust a time."""


class Measurement(_Record):
    """One program on one backend."""

    program: RelativePath
    """Its path in the bundle."""
    sha256: Sha256
    """Its digest in the contract."""
    tower: Tower
    format: Annotated[str, Field(min_length=1)]
    precision: Annotated[str, Field(min_length=1)]
    backend: Annotated[str, Field(min_length=1)]
    """`cpu`, `xnnpack`, `gpu`, `neural-engine`, `all`, ..."""
    threads: PositiveInt = 1
    batch: PositiveInt = 1
    """Rows per run."""
    runs: PositiveInt
    """Runs after the warm-up."""
    p50_ms: PositiveFloat
    """Median time of a run."""
    p95_ms: PositiveFloat | Literal[0] = 0
    """95th percentile; 0 = the tool does not say."""
    mean_ms: PositiveFloat
    """Mean time of a run."""
    first_ms: PositiveFloat | Literal[0] = 0
    """First run of the warm-up; 0 = the tool does not say."""
    load_ms: PositiveFloat | Literal[0] = 0
    """From file to ready; 0 = the tool does not say."""
    memory_mb: PositiveFloat | Literal[0] = 0
    """Growth of the process over loading and running [MB]; 0 = the tool does not say."""
    median_is_mean: bool = False
    """The tool gives no median, and `p50_ms` is the mean."""
    tool: Annotated[str, Field(min_length=1)]
    """Tool and version that measured."""


class DeviceResults(_Record):
    """All measurements on one device."""

    schema_version: Literal[1] = 1
    student_sha256: Sha256
    """The contract's lineage: which student this is."""
    device: Device
    measurements: Annotated[list[Measurement], Field(min_length=1)]

    @model_validator(mode="after")
    def _once(self) -> Self:
        keys = [(m.program, m.backend, m.threads, m.batch) for m in self.measurements]
        doubles = sorted({key for key in keys if keys.count(key) > 1})
        if doubles:
            raise ValueError(f"{doubles[0][0]} on {doubles[0][1]} is measured twice")
        return self

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return (json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n").encode()

    def points(self, tower: Tower) -> list[dict[str, Any]]:
        """Rows for an accuracy-latency plot: `label`, `format`, `precision`, `backend`, `threads`, `ms` per row."""
        return [
            {
                "label": f"{self.device.name}, {m.backend}", "program": m.program, "format": m.format,
                "precision": m.precision, "backend": m.backend, "threads": m.threads, "ms": m.p50_ms / m.batch,
            }
            for m in self.measurements
            if m.tower == tower
        ]  # fmt: skip


def schema() -> bytes:
    """JSON Schema of a results file."""
    return (json.dumps(DeviceResults.model_json_schema(), indent=1, sort_keys=True) + "\n").encode()


def read(path: str | Path, *, contract: Contract | None = None) -> list[DeviceResults]:
    """Read a results file, or every `*.device.json` of a folder in order of name.

    Args:
        path: File or folder.
        contract: If given, results of another student or of other programs are refused.

    Raises:
        DataError: There is none, or they are of another student.
        IntegrityError: A file is no results file, or names a program that is not the contract's.
    """
    path = Path(path)
    files = sorted(path.glob("*.device.json")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise DataError(f"device results: nothing at '{path}', want a results file or a folder with *.device.json.")
    found = [_parse(file) for file in files]
    for file, results in zip(files, found, strict=True):
        if contract is not None:
            _belongs(results, contract, file.name)
    return found


def measure(
    log: str, program: Program, *, tool: Literal["litert", "executorch"], backend: str, threads: int = 1
) -> Measurement:
    """Turn the log of a runtime's benchmark tool into a measurement.

    Args:
        log: What `benchmark_model` (LiteRT) or `executor_runner` (ExecuTorch) wrote.
        program: The contract's program that was measured.
        tool: Whose log it is.
        backend: What the tool was told to run on.
        threads: As it was told.

    Raises:
        DataError: The log holds no result.
    """
    figures = _TOOLS[tool](log)
    if figures is None:
        raise DataError(f"device results: the {tool} log of '{program.path}' holds no times; the run has failed.")
    rows = program.input.shape[0]
    return Measurement(
        program=program.path, sha256=program.sha256, tower=program.tower, format=program.format,
        precision=program.precision, backend=backend, threads=threads, tool=_NAMES[tool],
        batch=1 if isinstance(rows, str) else rows, **figures,
    )  # fmt: skip


def _parse(path: Path) -> DeviceResults:
    try:
        return DeviceResults.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "file"
        reason = first["msg"].removeprefix("Value error, ")
        raise IntegrityError(f"device results: '{path.name}': {place}: {reason}.") from None


def _belongs(results: DeviceResults, contract: Contract, name: str) -> None:
    if results.student_sha256 != contract.lineage.student_sha256:
        raise DataError(
            f"device results: '{name}' is of student {results.student_sha256[:12]}, want "
            f"{contract.lineage.student_sha256[:12]}."
        )
    known = {program.path: program.sha256 for program in contract.programs}
    for measurement in results.measurements:
        if known.get(measurement.program) != measurement.sha256:
            raise IntegrityError(f"device results: '{name}' measured a '{measurement.program}' that is another file.")


def _litert(log: str) -> dict[str, Any] | None:
    """`count=.. avg=.. median=.. p95=..` [us] of the last part of the run; older tools print no percentiles."""
    counts = re.findall(r"count=(\d+) first=.*", log)
    lines = [line for line in log.splitlines() if re.search(r"\bcount=\d+ .*\bavg=", line)]
    times = re.search(r"Inference timings in us: Init: (\S+), First inference: (\S+), .*Inference \(avg\): (\S+)", log)
    if not counts or not lines or times is None:
        return None
    values = {key: float(value) for key, value in re.findall(r"\b(\w+)=([\d.e+]+)", lines[-1])}
    memory = re.search(r"[Mm]emory footprint[^:]*: init=\S+ overall=([\d.]+)", log)
    return {
        "runs": int(values["count"]),
        "mean_ms": values["avg"] / 1e3,
        "p50_ms": values.get("median", values["avg"]) / 1e3,
        "p95_ms": values.get("p95", 0.0) / 1e3,
        "first_ms": float(times[2]) / 1e3,
        "load_ms": float(times[1]) / 1e3,
        "memory_mb": float(memory[1]) if memory else 0,
        "median_is_mean": "median" not in values,
    }


def _executorch(log: str) -> dict[str, Any] | None:
    """`Iteration i of n: x ms` lines; older runners print only the sum."""
    done = re.search(r"Model executed successfully (\d+) time\(s\) in ([\d.]+) ms", log)
    if done is None or int(done[1]) == 0:
        return None
    loaded = re.search(r"Model loaded in ([\d.]+) ms", log)
    each = [float(value) for value in re.findall(r"Iteration \d+ of \d+: ([\d.]+) ms", log)]
    warm = each[len(each) // 10 + 1 :]  # the runner has no warm-up of its own
    mean = float(np.mean(warm)) if warm else float(done[2]) / int(done[1])
    return {
        "runs": len(warm) or int(done[1]),
        "mean_ms": mean,
        "p50_ms": float(np.median(warm)) if warm else mean,
        "p95_ms": float(np.percentile(warm, 95)) if warm else 0,
        "first_ms": each[0] if each else 0,
        "load_ms": float(loaded[1]) if loaded else 0,
        "median_is_mean": not warm,
    }


_TOOLS: Mapping[str, Callable[[str], dict[str, Any] | None]] = {"litert": _litert, "executorch": _executorch}
_NAMES: Mapping[str, str] = {"litert": "LiteRT benchmark_model", "executorch": "ExecuTorch executor_runner"}


def merge(device: Device, student_sha256: str, measurements: Sequence[Measurement]) -> DeviceResults:
    """The results file of one device.

    Raises:
        DataError: A program was measured twice the same way, or nothing was measured.
    """
    try:
        return DeviceResults(student_sha256=student_sha256, device=device, measurements=list(measurements))
    except ValidationError as error:
        raise DataError(f"device results: {error.errors()[0]['msg'].removeprefix('Value error, ')}.") from None
