"""ExecuTorch programs for XNNPACK: float32, float16 of the text tower, int8 dynamic and calibrated (PT2E)."""

from collections.abc import Sequence
from copy import deepcopy

import executorch.version
import numpy as np
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.devtools.backend_debug import get_delegation_info
from executorch.exir import to_edge_transform_and_lower
from torch import nn

from mobileclip.formats import pt2e
from mobileclip.formats.job import Job, Written, parts
from mobileclip.formats.proof import relative_error
from mobileclip.formats.sensitivity import Choice, choose
from mobileclip.formats.tables import with_int8_table


def versions() -> dict[str, str]:
    """Versions of all that decides the bytes of a program."""
    return {"executorch": executorch.version.__version__}


def write(job: Job) -> Written:
    """Write one program; `delegated` is the share of its nodes that XNNPACK takes over."""
    choice = Choice([], 0.0, {})
    if job.precision == "int8_static":
        module, choice = _calibrated(job)
    else:
        module = _module(job)
    source = job.traced(module)
    edge = to_edge_transform_and_lower(source, partitioner=[XnnpackPartitioner()])
    info = get_delegation_info(edge.exported_program().graph_module)
    job.path.write_bytes(edge.to_executorch().buffer)
    taken, left = int(info.num_delegated_nodes), int(info.num_non_delegated_nodes)
    figures = {"delegated": round(taken / max(taken + left, 1), 4), "subgraphs": float(info.num_delegated_subgraphs)}
    figures |= choice.figures
    return Written({"backend": "xnnpack", "batch": job.batch}, figures, choice.keep, choice.alone)


def _module(job: Job) -> nn.Module:
    if job.precision == "float32":
        return job.module
    if job.precision == "float16":
        return half(job.module)
    tower = pt2e.without_norms(with_int8_table(job.module))
    return pt2e.dynamic(job.traced(tower).module(), job.example[: job.batch])


def _calibrated(job: Job) -> tuple[nn.Module, Choice]:
    """Static int8; over its budget it gets its worst layers back in float32, by the rounded graph in PyTorch."""
    tower, wanted = pt2e.without_norms(job.module), job.calibration().features(job.tower)
    source = pt2e.Ranged(job.traced(tower).module(), job.calibration_calls())

    def error_of(keep: Sequence[str]) -> float:
        module = source.quantize(keep=keep)
        with torch.no_grad():
            got = np.concatenate([module(call).numpy() for call in job.calibration_calls()])
        return relative_error(got[: len(wanted)], wanted)

    if job.config.max_kept == 0:
        return source.quantize(), Choice([], 0.0, {})
    choice = choose(source.layers, error_of, budget=job.budget, most=job.config.max_kept)
    return source.quantize(keep=choice.keep), choice


def half(tower: nn.Module) -> nn.Module:
    """A copy in float16 whose layer norms compute in float32: the runtime's own float16 layer norm is wrong on x86."""
    copied = deepcopy(tower)
    parts(copied).half()
    for name, module in list(copied.named_modules()):
        if isinstance(module, nn.LayerNorm):
            parent, _, attribute = name.rpartition(".")
            setattr(copied.get_submodule(parent), attribute, _FloatNorm(module))
    return copied


class _FloatNorm(nn.Module):
    """Layer norm in float32 between casts."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm.float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The shape and type of `x`."""
        return self.norm(x.float()).to(x.dtype)  # type: ignore[no-any-return]
