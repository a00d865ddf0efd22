"""Core ML packages, built on any system: float16 or float32 programs and int8 weights, pictures as image input.

coremltools takes a `torch.export` program after its decompositions, and nothing else of torch 2.14.
"""

import contextlib
import io
import json
import shutil
import uuid
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.export import ExportedProgram

from mobileclip.formats.job import Job, Written
from mobileclip.formats.quiet import no_logging

_TARGET = "iOS17"


def versions() -> dict[str, str]:
    """Versions of all that decides the bytes of a program."""
    with _quiet():
        import coremltools
    return {"coremltools": coremltools.__version__}


def write(job: Job) -> Written:
    """Write one package.

    The image program takes a picture (`CVPixelBuffer`): Core ML divides by 255, the program normalizes. Pictures come
    one by one, so a program of several rows takes an array in 0-1.
    """
    with _quiet():
        from coremltools.optimize import coreml as optimize

        model = _convert(job.traced(job.module), job)
        if job.precision == "int8_weights":
            terms = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=_SMALLEST)
            model = optimize.linear_quantize_weights(model, optimize.OptimizationConfig(global_config=terms))
        model.short_description = f"{job.names[1]} of a MobileCLIP student"
        model.save(str(job.path))
    _make_reproducible(job)
    compute = "float32" if job.precision == "float32" else "float16"
    return Written({"batch": job.batch, "target": _TARGET, "compute": compute})


def _convert(traced: ExportedProgram, job: Job) -> Any:
    import coremltools

    name, shape = job.names[0], tuple(job.given.shape)
    given = (
        coremltools.ImageType(name=name, shape=shape, scale=1 / 255, color_layout=coremltools.colorlayout.RGB)
        if job.given.kind == "picture"
        else coremltools.TensorType(name=name, shape=shape, dtype=np.dtype(job.given.dtype).type)
    )
    full = job.precision == "float32"
    return coremltools.convert(
        traced.run_decompositions({}),
        inputs=[given],
        outputs=[coremltools.TensorType(name=job.names[1], dtype=np.float32)],
        convert_to="mlprogram",
        minimum_deployment_target=getattr(coremltools.target, _TARGET),
        compute_precision=coremltools.precision.FLOAT32 if full else coremltools.precision.FLOAT16,
        compute_units=coremltools.ComputeUnit.ALL,
        skip_model_load=True,
    )


def _make_reproducible(job: Job) -> None:
    """Fixed identifiers instead of random ones, and none of the debugging files coremltools leaves at the root."""
    for path in job.path.iterdir():
        if path.name not in {"Manifest.json", "Data"}:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    manifest = job.path / "Manifest.json"
    manifest.write_text(_with_fixed_ids(manifest.read_text(encoding="utf-8")), encoding="utf-8")


def _with_fixed_ids(text: str) -> str:
    """A package's manifest with its entries called after their paths."""
    raw = json.loads(text)
    entries = raw["itemInfoEntries"]
    fixed = {old: str(uuid.uuid5(uuid.NAMESPACE_URL, entry["path"])).upper() for old, entry in entries.items()}
    raw["itemInfoEntries"] = {fixed[old]: entry for old, entry in sorted(entries.items(), key=lambda e: fixed[e[0]])}
    raw["rootModelIdentifier"] = fixed[raw["rootModelIdentifier"]]
    return json.dumps(raw, indent=4, sort_keys=True) + "\n"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without coremltools' notes on versions and its progress bars."""
    with no_logging(), warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


_SMALLEST = 2048  # weights; smaller tensors stay as they are
