"""Weights files as training tools leave them: loaded where that is safe, else one sentence names the cause."""

import argparse
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mobileclip.errors import DataError
from mobileclip.models import checkpoints, zoo
from mobileclip.models.reparameterize import reparameterize
from mobileclip.models.trusted_config import fewest_parameters


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(1)
    return zoo.create("tiny-mci").model.state_dict()


def _prefixed(prefix, weights):
    return {f"{prefix}{name}": value for name, value in weights.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        lambda w: {"state_dict": w, "epoch": 3},
        lambda w: {"model": w, "optimizer": {"lr": 0.1}},
        lambda w: {"model_state_dict": w, "loss": 0.5},
        lambda w: _prefixed("module.", w),
        lambda w: _prefixed("_orig_mod.", w),
        lambda w: _prefixed("model.", w),
        lambda w: {"state_dict": _prefixed("module._orig_mod.", w)},
        lambda w: {name.replace("visual.", "visual._orig_mod.", 1): value for name, value in w.items()},
    ],
    ids=["bare", "state_dict", "model", "model_state_dict", "module", "compiled", "lightning", "both", "one-compiled"],
)
def test_what_training_tools_put_around_the_tensors_is_taken_off(weights, tmp_path, wrap):
    path = tmp_path / "open_clip_pytorch_model.bin"
    torch.save(wrap(weights), path)
    model = zoo.create("tiny-mci").model
    checkpoints.fit(model, path, name="'tiny-mci'")
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"args": argparse.Namespace(lr=0.1)}, r"holds a argparse\.Namespace beside its tensors"),
        ({"epoch": np.float64(3)}, r"holds a numpy\._?core\.multiarray\.scalar beside its tensors"),
        ({"step": 3}, r"holds no weights: 'step' is a int, want a dictionary of tensors"),
    ],
)
def test_other_things_beside_the_tensors_are_named(weights, tmp_path, extra, named):
    torch.save({**weights, **extra}, tmp_path / "x.pt")
    with pytest.raises(DataError, match=rf"^model: 'x\.pt' {named}") as caught:
        checkpoints.read(tmp_path / "x.pt")
    assert "\n" not in str(caught.value)


def test_folded_weights_are_named(tmp_path):
    folded = reparameterize(zoo.create("tiny-mci").model).state_dict()
    save_file({name: value.contiguous() for name, value in folded.items()}, tmp_path / "x.safetensors")
    with pytest.raises(DataError, match=r"^model: 'x\.safetensors' does not fit .*: its branches are folded for inf"):
        checkpoints.fit(zoo.create("tiny-mci").model, tmp_path / "x.safetensors", name="'tiny-mci'")


def test_compressed_weights_are_refused_before_they_expand(tmp_path):
    torch.save({"x": torch.zeros(8 << 20)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
    assert (tmp_path / "x.pt").stat().st_size < 1 << 18
    with pytest.raises(
        DataError, match=r"^model: 'x\.pt' holds compressed parts, want a file as torch\.save writes it"
    ):
        checkpoints.read(tmp_path / "x.pt")


_SHORT = """
import resource, sys
from pathlib import Path
from mobileclip.models import checkpoints
from mobileclip.errors import MobileClipError
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20),) * 2)
try:
    checkpoints.read(Path(sys.argv[1]))
except MobileClipError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_a_shortage_of_memory_is_called_that(tmp_path, name):
    tensors = {"x": torch.zeros(64 << 20)}  # 256 MiB
    (save_file if name.endswith("safetensors") else torch.save)(tensors, tmp_path / name)
    done = subprocess.run(
        [sys.executable, "-c", _SHORT, tmp_path / name], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout.startswith(f"MobileClipError memory: '{name}' cannot be loaded"), done.stdout + done.stderr
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize("name", ["ViT-B-32", "RN50", "coca_ViT-B-32", "ViT-B-16-SigLIP", "MobileCLIP-S0"])
def test_no_architecture_has_fewer_parameters_than_is_said(name):
    config = zoo.architecture(name)
    with torch.device("meta"):
        built = zoo.build(config)
    assert 0 < fewest_parameters(config) <= sum(parameter.numel() for parameter in built.parameters())


def test_an_architecture_far_beyond_its_weights_is_not_built(tmp_path):
    zoo.save(str(tmp_path), zoo.create("tiny-mci"), license="MIT", card={})
    content = json.loads((tmp_path / zoo.CONFIG_FILE).read_text())
    content["model_cfg"]["text_cfg"].update(layers=256, width=65_536)
    (tmp_path / zoo.CONFIG_FILE).write_text(json.dumps(content))
    with pytest.raises(
        DataError, match=r"^model: 'open_clip_model\.safetensors' does not fit '.*': \d+ bytes, want 44"
    ):
        zoo.load(f"local-dir:{tmp_path}")
