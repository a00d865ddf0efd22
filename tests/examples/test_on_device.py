"""The Android kit's collector: logs as the script names them become a results file that the reader takes."""

import json
import subprocess
import sys
from pathlib import Path

from mobileclip.formats import contract, device_results
from mobileclip.formats.contract import Program
from tests.formats.test_device_results import EXECUTORCH, LITERT

KIT = Path(__file__).parents[2] / "examples" / "on-device"


def agreed_contract(folder):
    """A contract with one program for each tool."""
    given = {"name": "image", "dtype": "float32", "shape": [1, 3, 8, 8], "minimum": 0, "maximum": 1}
    features = {"name": "x", "dtype": "float32", "shape": [1, 4], "minimum": -1, "maximum": 1, "unit_norm": True}
    image = {"size": 8, "interpolation": "bilinear", "mean": [0, 0, 0], "std": [1, 1, 1]}
    text = {
        "tokenizer": "clip-bpe", "context_length": 16, "start_id": 1, "end_id": 2, "pad_id": 0, "causal": False,
        "cleaning": [],
    }  # fmt: skip
    programs = [
        Program(
            path=path, bytes=1, sha256=f"{number}f" * 32, tower="image", format=form, precision="float32",
            input=given, output=features, budget=1, executed=True, figures={},
        )
        for number, (path, form) in enumerate([("image.float32.tflite", "litert"), ("image.float32.pte", "executorch")])
    ]  # fmt: skip
    raw = {
        "schema_version": 2, "model": "m", "license": "MIT", "embed_dim": 4, "logit_scale": 1, "image": image,
        "text": text, "programs": [p.model_dump() for p in programs], "files": [], "versions": {},
        "lineage": {"student_sha256": "ab" * 32, "dataset_sha256": "d", "card": {}},
    }  # fmt: skip
    agreed = contract.parse(json.dumps(raw).encode())
    (folder / contract.FILE_NAME).write_bytes(agreed.to_bytes())
    return agreed


def _collect(folder):
    command = [sys.executable, str(KIT / "collect.py"), str(folder / "contract.json"), str(folder / "logs")]
    out = folder / "pixel.device.json"
    environment = {"PYTHONPATH": str(KIT.parents[1]), "PATH": ""}
    return out, subprocess.run(
        [*command, "--out", str(out)], capture_output=True, text=True, env=environment, check=False
    )


def test_logs_become_results(tmp_path):
    agreed = agreed_contract(tmp_path)
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "device.txt").write_text(
        "Pixel 9\n16\nTensor G4\n  level: 80\n  temperature: 301\nIsStatusOverride: false\n"
    )
    (logs / "image.float32.tflite@litert@xnnpack@4.log").write_text(LITERT)
    (logs / "image.float32.tflite@litert@gpu@1.log").write_text("ERROR: Failed to apply GPU delegate.\n")
    (logs / "image.float32.pte@executorch@xnnpack@1.log").write_text(EXECUTORCH)
    out, done = _collect(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "skipped image.float32.tflite@litert@gpu@1.log" in done.stderr
    (results,) = device_results.read(out, contract=agreed)
    assert (results.device.name, results.device.system) == ("Pixel 9", "Android 16")
    assert results.device.state == "level: 80; temperature: 301"
    assert [(m.program, m.threads) for m in results.measurements] == [
        ("image.float32.pte", 1), ("image.float32.tflite", 4),
    ]  # fmt: skip
    (logs / "other.tflite@litert@gpu@1.log").write_text(LITERT)
    _, done = _collect(tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: collect: 'other.tflite@litert@gpu@1.log' is of no program of the contract.\n"


def test_script_explains_itself():
    done = subprocess.run([str(KIT / "android" / "benchmark.sh")], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "benchmark.sh UNPACKED_BUNDLE LOGS" in done.stderr
