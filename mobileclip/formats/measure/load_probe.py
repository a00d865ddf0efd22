"""Load and run one program in a process of its own: `python -m mobileclip.formats.measure.load_probe PROGRAM`.

Prints load time and peak memory as JSON.
"""

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np

from mobileclip.formats import registry
from mobileclip.formats.runtime import load_program


def probe(path: Path) -> dict[str, float]:
    """Load a program, run it on zeros, and see how far the resident memory rose.

    Returns:
        `load_ms` and `peak_mb`, the rise of the highest resident memory over that before the load.
    """
    registry.opener(path)  # the runtime's own libraries are no part of the program
    before = _resident("VmRSS")
    _forget_peak()
    started = time.perf_counter()
    encoder = load_program(path, threads=1)
    load_ms = (time.perf_counter() - started) * 1e3
    kind = np.float32 if encoder.tower == "image" else np.int32
    encoder.execute(np.zeros((max(1, encoder.batch), *encoder.shape), kind))
    return {"load_ms": round(load_ms, 1), "peak_mb": round(max(0.0, _resident("VmHWM") - before), 1)}


def _resident(field: str) -> float:
    """Resident memory [MB] of this process now (`VmRSS`) or at its highest (`VmHWM`)."""
    status = Path("/proc/self/status")
    if not status.is_file():  # no Linux: the highest is all there is, in bytes on macOS
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines() if ":" in line)
    return int(lines[field].split()[0]) / 2**10


def _forget_peak() -> None:
    """Start the highest anew, where the system lets a process do so."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5", encoding="ascii")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(probe(Path(sys.argv[1]))) + "\n")
