"""LiteRT programs. The converter's pins conflict with this project's, so it works in an environment of its own."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mobileclip.formats import environment
from mobileclip.formats.export_job import Job, Written, mixed
from mobileclip.formats.litert import runtime as litert_runtime
from mobileclip.formats.sensitivity import Choice

ENVIRONMENT = "litert"
_WORKER = Path(__file__).with_name("worker.py")


def versions() -> dict[str, str]:
    """Versions of all that decides the bytes of a program."""
    return environment.pins(ENVIRONMENT, "litert-torch", "litert-converter", "ai-edge-quantizer")


def write(job: Job) -> Written:
    """Trace the tower here, convert and quantize it in the converter's environment."""
    choice = Choice([], 0.0, {})
    with tempfile.TemporaryDirectory(prefix="mobileclip-litert-") as name:
        exchange = Path(name)
        torch.export.save(job.traced(job.module), exchange / "traced.pt2")
        if job.precision == "int8_static":
            np.save(exchange / "calibration.npy", torch.stack(job.calibration_calls()).numpy())
        with environment.session(ENVIRONMENT, _WORKER, exchange) as ask:
            layers = ask({"names": list(job.names), "precision": job.precision})["layers"]

            def quantize(keep: Sequence[str]) -> None:
                ask({"keep": list(keep)})
                shutil.copyfile(exchange / "program.tflite", job.path)

            if job.precision in {"float32", "float16"}:
                quantize([])
            else:
                choice = mixed(job, layers, quantize)
    figures = litert_runtime.delegation(job.path) | choice.figures
    return Written({"batch": job.batch}, figures, choice.keep, choice.alone)
