"""ExecuTorch programs for XNNPACK: float32, float16 of the text tower, int8 dynamic and calibrated (PT2E)."""

import functools
from collections.abc import Callable, Sequence
from copy import deepcopy

import executorch.version
import numpy as np
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.devtools.backend_debug import get_delegation_info
from executorch.exir import to_edge_transform_and_lower
from torch import nn
from torch.fx import GraphModule

from mobileclip.formats.executorch import int8 as pt2e
from mobileclip.formats.executorch.int8_embedding import table_name, with_int8_table
from mobileclip.formats.export_job import Job, Written, mixed, parts
from mobileclip.formats.proof import relative_error
from mobileclip.formats.sensitivity import Choice


def versions() -> dict[str, str]:
    """Versions of all that decides the bytes of a program."""
    return {"executorch": executorch.version.__version__}


def write(job: Job) -> Written:
    """Write one program; `delegated` is the share of its nodes that XNNPACK takes over."""
    figures: dict[str, float] = {}

    def lower(module: nn.Module) -> None:
        edge = to_edge_transform_and_lower(job.traced(module), partitioner=[XnnpackPartitioner()])
        info = get_delegation_info(edge.exported_program().graph_module)
        job.path.write_bytes(edge.to_executorch().buffer)
        taken, left = int(info.num_delegated_nodes), int(info.num_non_delegated_nodes)
        figures["delegated"] = round(taken / max(taken + left, 1), 4)
        figures["subgraphs"] = float(info.num_delegated_subgraphs)

    choice = Choice([], 0.0, {})
    if job.precision in {"float32", "float16"}:
        lower(half(job.module) if job.precision == "float16" else job.module)
    else:
        layers, rounded = _rounded(job)
        choice = mixed(
            job, layers, lambda keep: lower(rounded(keep)), error_of=lambda keep: _error(job, rounded(keep))
        )  # fmt: skip
    settings = {"backend": "xnnpack", "batch": job.batch}
    return Written(settings, figures | choice.figures, choice.keep, choice.alone)


def _rounded(job: Job) -> tuple[list[str], Callable[[Sequence[str]], nn.Module]]:
    """The layers of an int8 program, and the rounded tower that keeps some of them in float32."""
    if job.precision == "int8_static":
        source = pt2e.Ranged(job.traced(pt2e.without_norms(job.module)).module(), job.calibration_calls())
        return source.layers, lambda keep: source.quantize(keep=keep)
    call, table = job.example[: job.batch], table_name(job.module)

    @functools.cache
    def traced(is_float: bool) -> GraphModule:
        tower = job.module if is_float else with_int8_table(job.module)
        return job.traced(pt2e.without_norms(tower)).module()

    layers = [*([table] if table else []), *pt2e.products(traced(True))]
    return layers, lambda keep: pt2e.dynamic(traced(table in keep), call, keep=keep)


def _error(job: Job, module: nn.Module) -> float:
    """Error of a rounded tower on the calibration samples, in PyTorch: lowering takes longer than all else."""
    wanted = job.calibration().features(job.tower)
    with torch.no_grad():
        got = np.concatenate([module(call).numpy() for call in job.calibration_calls()])
    return relative_error(got[: len(wanted)], wanted)


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
