"""LiteRT programs. The converter's pins conflict with this project's, so it works in an environment of its own."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch

from mobileclip.formats import environment
from mobileclip.formats.job import Job, Written

ENVIRONMENT = "litert"
_WORKER = Path(__file__).with_name("litert_worker.py")


def versions() -> dict[str, str]:
    """Versions of all that decides the bytes of a program."""
    return environment.pins(ENVIRONMENT, "litert-torch", "litert-converter", "ai-edge-quantizer")


def write(job: Job) -> Written:
    """Trace the tower here, convert and quantize it in the converter's environment."""
    with tempfile.TemporaryDirectory(prefix="mobileclip-litert-") as name:
        exchange = Path(name)
        torch.export.save(job.traced(job.module), exchange / "traced.pt2")
        if job.precision == "int8_static":
            np.save(exchange / "calibration.npy", torch.stack(job.calibration_calls()).numpy())
        request = {"names": list(job.names), "precision": job.precision}
        environment.run(ENVIRONMENT, _WORKER, request, exchange)
        shutil.copyfile(exchange / "program.tflite", job.path)
    return Written({"batch": job.batch})
