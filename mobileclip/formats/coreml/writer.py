"""Core ML packages, built on any system: float16 or float32 programs and int8 weights, pictures as image input.

coremltools takes a `torch.export` program after its decompositions, and nothing else of torch 2.14.
"""

import json
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.fx import Node

from mobileclip.formats.export_job import Job, Written, mixed
from mobileclip.formats.exporter_logging import no_notes
from mobileclip.formats.sensitivity import Choice

SMALLEST = 2048  # weights; smaller tensors stay as they are when weights are quantized
_TARGET = "iOS17"


def versions() -> dict[str, str]:
    """Versions of all that decides the bytes of a program."""
    with no_notes():
        import coremltools
    return {"coremltools": coremltools.__version__}


def write(job: Job) -> Written:
    """Write one package.

    The image program takes a picture (`CVPixelBuffer`): Core ML divides by 255, the program normalizes. Pictures come
    one by one, so a program of several rows takes an array in 0-1.
    """
    traced, choice = job.traced(job.module), Choice([], 0.0, {})
    with no_notes():
        model = _convert(traced, job)
    if job.precision == "int8_weights":
        weights = weights_of(model, traced)
        choice = mixed(
            job, list(weights), lambda keep: _save(quantized(model, [weights[layer] for layer in keep]), job)
        )  # fmt: skip
    else:
        _save(model, job)
    compute = "float32" if job.precision == "float32" else "float16"
    settings = {"batch": job.batch, "target": _TARGET, "compute": compute}
    return Written(settings, choice.figures, choice.keep, choice.alone)


def _save(model: Any, job: Job) -> None:
    with no_notes():
        model.short_description = f"{job.names[1]} of a MobileCLIP student"
        model.save(str(job.path))
    make_reproducible(job.path)


def quantized(model: Any, keep: Sequence[str]) -> Any:
    """A model with its weights in int8, but for those of these names (of `weights_of`)."""
    with no_notes():
        from coremltools.optimize import coreml as optimize

        terms = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=SMALLEST)
        config = optimize.OptimizationConfig(global_config=terms, op_name_configs=dict.fromkeys(keep))
        return optimize.linear_quantize_weights(model, config)


def weights_of(model: Any, traced: ExportedProgram) -> dict[str, str]:
    """What int8 is asked of: the weights' names in the model by layer (`blocks.0.query/linear`).

    Args:
        model: In floating point.
        traced: The program that it was converted from; executorch's for its delegate has operations of its own.
    """
    with no_notes():
        from coremltools.optimize import coreml as optimize

        # This takes a weight of just that size, the quantizer does not.
        found = optimize.get_weights_metadata(model, weight_threshold=SMALLEST + 1)
    layers: dict[str, str] = {}
    for weight, about in found.items():
        name = f"{_module(weight, traced)}/{about.child_ops[0].op_type}"
        layers[name if name not in layers else f"{name}.{weight}"] = weight
    return layers


def _module(weight: str, traced: ExportedProgram) -> str:
    """The module a weight of the model comes from; its own name where that cannot be told."""
    signature, stem = traced.graph_signature, weight.removesuffix("_to_fp16")
    known = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    if stem in known:
        return known[stem].removesuffix(".weight")
    # A scale was folded into the layer before it, and the weight bears the scale's name.
    nodes = {node.name: node for node in traced.graph.nodes}
    node = nodes.get(stem.removesuffix("_weight_0"))
    while isinstance(node, Node) and not getattr(node.target, "__name__", "").endswith(_PRODUCTS):
        node = node.args[0] if node.args else None
    stack = list(node.meta.get("nn_module_stack", {}).values()) if isinstance(node, Node) else []
    return str(stack[-1][0]) if stack else weight


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
        _without_aliases(traced.run_decompositions({})),
        inputs=[given],
        outputs=[coremltools.TensorType(name=job.names[1], dtype=np.float32)],
        convert_to="mlprogram",
        minimum_deployment_target=getattr(coremltools.target, _TARGET),
        compute_precision=coremltools.precision.FLOAT32 if full else coremltools.precision.FLOAT16,
        compute_units=coremltools.ComputeUnit.ALL,
        skip_model_load=True,
    )


def _without_aliases(program: ExportedProgram) -> ExportedProgram:
    """The program without `alias`, which changes nothing and which coremltools does not know."""
    graph = program.graph_module.graph
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.alias.default):
        node.replace_all_uses_with(node.args[0])
        graph.erase_node(node)
    return program


def make_reproducible(package: Path) -> None:
    """Fixed identifiers instead of random ones, no date, and none of the debugging files coremltools leaves."""
    from coremltools.proto.Model_pb2 import Model

    for path in package.iterdir():
        if path.name not in {"Manifest.json", "Data"}:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    manifest = package / "Manifest.json"
    manifest.write_text(_with_fixed_ids(manifest.read_text(encoding="utf-8")), encoding="utf-8")
    specification = package / "Data" / "com.apple.CoreML" / "model.mlmodel"
    model = Model.FromString(specification.read_bytes())
    model.description.metadata.userDefined.pop(_DATE, None)
    specification.write_bytes(model.SerializeToString(deterministic=True))


def _with_fixed_ids(text: str) -> str:
    """A package's manifest with its entries called after their paths."""
    raw = json.loads(text)
    entries = raw["itemInfoEntries"]
    fixed = {old: str(uuid.uuid5(uuid.NAMESPACE_URL, entry["path"])).upper() for old, entry in entries.items()}
    raw["itemInfoEntries"] = {fixed[old]: entry for old, entry in sorted(entries.items(), key=lambda e: fixed[e[0]])}
    raw["rootModelIdentifier"] = fixed[raw["rootModelIdentifier"]]
    return json.dumps(raw, indent=4, sort_keys=True) + "\n"


_DATE = "com.github.apple.coremltools.conversion_date"
_PRODUCTS = ("conv2d.default", "linear.default")
