"""Core AI assets (`.aimodel`, Apple's runtime of 2026). Beta: in an environment of its own."""

import shutil
import tempfile
from copy import deepcopy
from pathlib import Path

import torch

from mobileclip.formats import environment
from mobileclip.formats.coreai.runtime import ENVIRONMENT, WORKER
from mobileclip.formats.export_job import Job, Written, parts


def versions() -> dict[str, str]:
    """Versions of all that decides the bytes of a program."""
    return environment.pins(ENVIRONMENT, "coreai-torch", "coreai-core")


def write(job: Job) -> Written:
    """Trace the tower here, convert it in the converter's environment."""
    module = deepcopy(job.module)
    if job.precision == "float16":
        parts(module).half()
    with tempfile.TemporaryDirectory(prefix="mobileclip-coreai-") as name:
        exchange = Path(name)
        torch.export.save(job.traced(module), exchange / "traced.pt2")
        found = environment.run(ENVIRONMENT, WORKER, {"task": "convert", "names": list(job.names)}, exchange)
        shutil.move(exchange / "program.aimodel", job.path)
    return Written({"batch": job.batch, "compute": job.precision}, {"operations": float(found["operations"])})
