"""ExecuTorch programs for XNNPACK: float32, float16 of the text tower, int8 dynamic and calibrated (PT2E)."""

import contextlib
import io
from collections.abc import Iterator
from copy import deepcopy

import executorch.version
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)
from executorch.devtools.backend_debug import get_delegation_info
from executorch.exir import to_edge_transform_and_lower
from torch import nn
from torch.export import ExportedProgram
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from mobileclip.formats.job import Job, Written, parts, trace
from mobileclip.formats.tables import with_int8_table

BATCH = 1


def versions() -> dict[str, str]:
    """Versions of all that decides the bytes of a program."""
    return {"executorch": executorch.version.__version__}


def write(job: Job) -> Written:
    """Write one program; `delegated` is the share of its nodes that XNNPACK takes over."""
    edge = to_edge_transform_and_lower(_source(job), partitioner=[XnnpackPartitioner()])
    info = get_delegation_info(edge.exported_program().graph_module)
    job.path.write_bytes(edge.to_executorch().buffer)
    taken, left = int(info.num_delegated_nodes), int(info.num_non_delegated_nodes)
    return Written(
        {"backend": "xnnpack", "batch": BATCH},
        {"delegated": round(taken / max(taken + left, 1), 4), "subgraphs": float(info.num_delegated_subgraphs)},
    )


def _source(job: Job) -> ExportedProgram:
    if job.precision == "float32":
        return trace(job.module, job.example, batch=BATCH)
    if job.precision == "float16":
        return trace(half(job.module), job.example, batch=BATCH)
    return _quantized(job)


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


def _quantized(job: Job) -> ExportedProgram:
    """PT2E quantization: activations per call (`int8`) or by ranges of the calibration samples (`int8_static`)."""
    is_dynamic = job.precision == "int8"
    module = without_norms(with_int8_table(job.module) if is_dynamic else job.module)
    terms = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=is_dynamic)
    with torch.no_grad(), _quiet():
        prepared = prepare_pt2e(trace(module, job.example, batch=BATCH).module(), XNNPACKQuantizer().set_global(terms))
        for row in (job.example if is_dynamic else job.calibration_rows()).split(BATCH):  # type: ignore[no-untyped-call]
            prepared(row)
        return torch.export.export(convert_pt2e(prepared), (job.example[:BATCH],))


@torch.no_grad()
def without_norms(tower: nn.Module) -> nn.Module:
    """A copy whose 2-d batch norms are the convolutions by 1 x 1 that they are with fixed statistics.

    The quantizer folds a norm into the convolution before it, also where others read that convolution's output too:
    the residual path of an attention block would get the normed values.
    """
    copied = deepcopy(tower)
    for name, module in list(copied.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            parent, _, attribute = name.rpartition(".")
            setattr(copied.get_submodule(parent), attribute, _as_convolution(module))
    return copied


def _as_convolution(norm: nn.BatchNorm2d) -> nn.Conv2d:
    """The same function of [batch, channels, height, width], one weight and bias per channel."""
    channels = norm.num_features
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a batch norm without statistics depends on its batch")
    convolution = nn.Conv2d(channels, channels, 1, groups=channels, dtype=norm.running_var.dtype)
    gain = torch.rsqrt(norm.running_var + norm.eps) * (norm.weight if norm.affine else 1)
    shift = (norm.bias if norm.affine else 0) - norm.running_mean * gain
    convolution.weight.copy_(gain.view(-1, 1, 1, 1))
    convolution.get_parameter("bias").copy_(shift)
    return convolution.requires_grad_(False).eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the quantizer prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
