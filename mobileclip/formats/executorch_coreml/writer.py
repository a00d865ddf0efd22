"""ExecuTorch programs for Core ML: float32, float16 and int8 weights, the whole tower in one call of the delegate.

executorch's own partitioner and coremltools lower them on any x86 system; what a phone gets is a Core ML package inside
of the program.
"""

import json
import tempfile
import uuid
from collections.abc import Callable, Sequence
from operator import getitem
from pathlib import Path

import executorch.version
from executorch.devtools.backend_debug import get_delegation_info
from executorch.exir import EdgeProgramManager, to_edge_transform_and_lower
from executorch.exir.delegate import executorch_call_delegate
from executorch.exir.lowered_backend_module import get_lowered_backend_modules
from torch.export import ExportedProgram

from mobileclip.errors import ExportError
from mobileclip.formats.coreml import writer as coreml
from mobileclip.formats.digests import digest
from mobileclip.formats.executorch_coreml import payload as payloads
from mobileclip.formats.executorch_coreml.payload import METADATA, PACKAGE
from mobileclip.formats.export_job import Job, Written, mixed
from mobileclip.formats.exporter_logging import no_notes
from mobileclip.formats.sensitivity import Choice

_TARGET = "iOS17"


def versions() -> dict[str, str]:
    """Versions of all that decides the bytes of a program."""
    return {"executorch": executorch.version.__version__, **coreml.versions()}


def write(job: Job) -> Written:
    """Write one program; `delegated` is the share of its nodes that Core ML takes over.

    Raises:
        ExportError: Part of the tower cannot be computed by Core ML.
    """
    compute, choice = "float32" if job.precision == "float32" else "float16", Choice([], 0.0, {})
    with no_notes():
        edge = _lower(job, compute)
    figures = _figures(job, edge)
    (module,) = get_lowered_backend_modules(edge.exported_program().graph_module)
    # Beyond 1 GiB the extension leaves zeros behind its table, over which its own reader would trip; ours has none.
    files = payloads.unpack(module.processed_bytes.rstrip(b"\0"))

    def save(package: Path) -> None:
        # There is no other way to change what the delegate gets.
        module._processed_bytes = _payload(package, files[METADATA])  # noqa: SLF001
        with no_notes():
            job.path.write_bytes(edge.to_executorch().buffer)

    with tempfile.TemporaryDirectory(prefix="mobileclip-coreml-") as name:
        package = payloads.write(files, Path(name))
        if job.precision == "int8_weights":
            choice = _quantized(job, module.original_module, package, save)
        else:
            save(package)
    settings = {"backend": "coreml", "batch": job.batch, "target": _TARGET, "compute": compute}
    return Written(settings, figures | choice.figures, choice.keep, choice.alone)


def _quantized(job: Job, lowered: ExportedProgram, package: Path, save: Callable[[Path], None]) -> Choice:
    """Weights in int8 as in packages of their own: the backend's quantizer leaves the token table out, and no choice.

    Args:
        job: The program.
        lowered: What the package was converted from.
        package: The tower in floating point.
        save: Writes the program of a package.
    """
    with no_notes():
        import coremltools

        model = coremltools.models.MLModel(str(package), skip_model_load=True)
        weights = coreml.weights_of(model, lowered)

    def write(keep: Sequence[str]) -> None:
        with tempfile.TemporaryDirectory(dir=package.parent) as name:
            target = Path(name) / package.name
            with no_notes():
                coreml.quantized(model, [weights[layer] for layer in keep]).save(str(target))
            save(target)

    return mixed(job, list(weights), write)


def _lower(job: Job, compute: str) -> EdgeProgramManager:
    import coremltools
    from executorch.backends.apple.coreml.compiler import CoreMLBackend
    from executorch.backends.apple.coreml.partition import CoreMLPartitioner

    terms = CoreMLBackend.generate_compile_specs(
        minimum_deployment_target=getattr(coremltools.target, _TARGET),
        compute_precision=coremltools.precision(compute),
    )
    return to_edge_transform_and_lower(job.traced(job.module), partitioner=[CoreMLPartitioner(compile_specs=terms)])


def _figures(job: Job, edge: EdgeProgramManager) -> dict[str, float]:
    """Share of the nodes that are delegated, and number of delegates; taking the result from a delegate is no work."""
    graph = edge.exported_program().graph_module
    info = get_delegation_info(graph)
    calls = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    left = [str(target) for target in calls if target not in {executorch_call_delegate, getitem}]
    if left or info.num_delegated_subgraphs != 1:
        raise ExportError(
            f"export: '{job.path.name}' would be {info.num_delegated_subgraphs} calls of Core ML with {len(left)} "
            f"operators outside ({', '.join(sorted(set(left))[:3]) or 'none'}), want one call that is the whole tower."
        )
    taken = info.num_delegated_nodes
    return {"delegated": taken / (taken + len(left)), "subgraphs": float(info.num_delegated_subgraphs)}


def _payload(package: Path, metadata: bytes) -> bytes:
    """What the delegate gets of a package, without date, random identifiers and debugging files.

    On the phone the identifier is the key under which the delegate keeps the compiled model: it has to be another one
    for any other package, so it comes from the package's digest.
    """
    coreml.make_reproducible(package)
    described = json.loads(metadata)
    described["identifier"] = f"executorch_{uuid.uuid5(uuid.NAMESPACE_OID, digest(package)['sha256'])}"
    kept = {f"{PACKAGE}/{file.relative_to(package).as_posix()}": file.read_bytes() for file in _files(package)}
    return payloads.pack({**kept, METADATA: json.dumps(described, sort_keys=True).encode()})


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
