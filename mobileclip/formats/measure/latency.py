"""Latency of programs next to the student in PyTorch, measured turn by turn in one process.

Turns are interleaved, so a busy machine slows all of them alike and their ratio stays meaningful.
"""

import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mobileclip.errors import ExportError
from mobileclip.formats.runtime import Encoder, filled, load_program

EAGER = "eager"
_BASE = "ONNX float32"
WARM_UP = 3
# A busy machine can stretch two-thread turns a hundredfold; enough turns are in by then.
MAX_SECONDS = 30


def measure(
    programs: Mapping[str, Path], tower: nn.Module, rows: NDArray[np.generic], *, rounds: int, threads: int,
    onnx: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Time one call through every program and through the tower itself.

    Args:
        programs: Program files by name.
        tower: The folded tower in PyTorch float32.
        rows: Input of one call, with its batch axis; as many rows as each program takes.
        rounds: Measured turns of each, after a few that are not; fewer after half a minute.
        threads: Threads of each.
        onnx: The tower's ONNX float32 program, which takes turns, too, whether it is one of the programs or not.

    Returns:
        By name, and for `eager`, of one row: `p50_ms`, `p95_ms`, `ratio` to eager's p50; with `onnx` also `ratio_onnx`
        to that program's; for programs also `load_ms`.
    """
    turns: dict[str, Callable[[], object]] = {EAGER: functools.partial(eager, tower, rows)}
    load_ms: dict[str, float] = {}
    for name, path in programs.items():
        started = time.perf_counter()
        encoder = load_program(path, threads=threads)
        load_ms[name] = (time.perf_counter() - started) * 1e3
        turns[name] = turn(encoder, rows)
    beside = next((name for name, path in programs.items() if path == onnx), _BASE)
    if onnx is not None and beside == _BASE:
        turns[_BASE] = turn(load_program(onnx, threads=threads), rows)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        times = {name: spent / len(rows) for name, spent in interleave(turns, rounds).items()}
    finally:
        torch.set_num_threads(before)
    base = float(np.median(times[EAGER]))
    found = {name: summarize(values, base, load_ms.get(name)) for name, values in times.items()}
    if onnx is not None:
        reference = found[beside]["p50_ms"]
        found = {name: {**row, "ratio_onnx": round(row["p50_ms"] / reference, 3)} for name, row in found.items()}
    return {name: row for name, row in found.items() if name != _BASE}


class EagerText(nn.Module):
    """The student's own text tower, with the fused attention that the exported one does without."""

    def __init__(self, model: nn.Module) -> None:
        """Wrap an open_clip model."""
        super().__init__()
        self.model = model

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Token ids [batch, context_length] to unit-norm embeddings [batch, dim]."""
        return self.model.encode_text(text, normalize=True)  # type: ignore[operator, no-any-return]


def turn(encoder: Encoder, rows: NDArray[np.generic]) -> Callable[[], object]:
    """One call of a program, filled with copies of the first row where it takes more than there are."""
    return functools.partial(encoder.execute, filled(rows, encoder.batch))


def resources(path: Path) -> dict[str, float]:
    """Load and run a program once in a process of its own.

    Returns:
        `load_ms`, and `peak_mb`: how far the process' resident memory rises above what it was before the load.

    Raises:
        ExportError: The process failed.
    """
    command = [sys.executable, "-m", "mobileclip.formats.measure.load_probe", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ExportError(f"{path.name}: does not run in a process of its own: {done.stderr.strip()[-200:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def interleave(
    turns: Mapping[str, Callable[[], object]], rounds: int, *, seconds: float = MAX_SECONDS
) -> dict[str, NDArray[np.float64]]:
    """Call every turn once per round.

    Args:
        turns: By name.
        rounds: Measured rounds, after a few that are not.
        seconds: No round starts later than this, once one was measured.

    Returns:
        Times of each [ms].
    """
    times: dict[str, list[float]] = {name: [] for name in turns}
    deadline = time.monotonic() + seconds
    for index in range(WARM_UP + rounds):
        if index > WARM_UP and time.monotonic() > deadline:
            break
        for name, turn in turns.items():
            started = time.perf_counter()
            turn()
            if index >= WARM_UP:
                times[name].append((time.perf_counter() - started) * 1e3)
    return {name: np.array(values) for name, values in times.items()}


def summarize(times: NDArray[np.float64], eager: float, load_ms: float | None) -> dict[str, float]:
    """Median, 95th percentile and ratio to PyTorch's median of some times [ms]."""
    p50, p95 = np.percentile(times, [50, 95])
    summary = {"p50_ms": round(float(p50), 3), "p95_ms": round(float(p95), 3), "ratio": round(float(p50) / eager, 3)}
    return summary if load_ms is None else {**summary, "load_ms": round(load_ms, 1)}


@torch.inference_mode()
def eager(tower: nn.Module, row: NDArray[np.generic]) -> torch.Tensor:
    """One call of a tower in PyTorch."""
    return tower(torch.from_numpy(row))  # type: ignore[no-any-return]
