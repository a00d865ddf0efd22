"""The Android kit's collector: logs as the script names them become a results file that the reader takes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mobileclip.formats import contract
from mobileclip.formats.contract import Program
from mobileclip.formats.measure import device_results
from tests.formats.measure.test_device_results import EXECUTORCH, LITERT

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


@pytest.mark.parametrize("text", ["", "Pixel 9\n16\n", "\n16\nTensor G4\n"])
def test_device_that_was_gone(tmp_path, text):
    agreed_contract(tmp_path)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "device.txt").write_text(text)
    (tmp_path / "logs" / "image.float32.pte@executorch@xnnpack@1.log").write_text(EXECUTORCH)
    out, done = _collect(tmp_path)
    assert done.returncode == 2
    assert "names no model, system and chip" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not out.exists()


def test_folder_for_the_results_must_be_there(tmp_path):
    agreed_contract(tmp_path)
    command = [sys.executable, str(KIT / "collect.py"), str(tmp_path / "contract.json"), str(tmp_path), "--out"]
    done = subprocess.run(
        [*command, str(tmp_path / "none" / "x.device.json")], capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(KIT.parents[1]), "PATH": ""},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, f"error: collect: no folder '{tmp_path / 'none'}' for --out.\n")


def test_programs_of_other_devices_stay_on_the_host(tmp_path):
    """With a bridge that writes down what it is asked and does nothing."""
    for name in ("contract.json", "image.float32.pte", "image.float32.coreml.pte", "executor_runner"):
        (tmp_path / name).write_text("")
    bridge, asked = tmp_path / "bin" / "adb", tmp_path / "asked"
    bridge.parent.mkdir()
    bridge.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    bridge.chmod(0o755)
    environment = {"PATH": f"{bridge.parent}:/usr/bin:/bin", "EXECUTOR_RUNNER": str(tmp_path / "executor_runner")}
    command = [str(KIT / "android" / "benchmark.sh"), str(tmp_path), str(tmp_path / "logs")]
    subprocess.run(command, env=environment, capture_output=True, check=True)
    pushed = [line.split()[1] for line in asked.read_text().splitlines() if line.startswith("push")]
    assert pushed == [str(tmp_path / "executor_runner"), str(tmp_path / "image.float32.pte")]


def test_gpu_is_not_timed_with_the_cpu_behind_it(tmp_path):
    for name in ("contract.json", "image.float32.tflite", "benchmark_model"):
        (tmp_path / name).write_text("")
    bridge, asked = tmp_path / "bin" / "adb", tmp_path / "asked"
    bridge.parent.mkdir()
    bridge.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    bridge.chmod(0o755)
    environment = {"PATH": f"{bridge.parent}:/usr/bin:/bin", "BENCHMARK_MODEL": str(tmp_path / "benchmark_model")}
    command = [str(KIT / "android" / "benchmark.sh"), str(tmp_path), str(tmp_path / "logs")]
    subprocess.run(command, env=environment, capture_output=True, check=True)
    runs = [line for line in asked.read_text().splitlines() if "--use_gpu=true" in line]
    assert len(runs) == 1
    assert "--require_full_delegation=true" in runs[0]


def test_script_explains_itself():
    done = subprocess.run([str(KIT / "android" / "benchmark.sh")], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "benchmark.sh UNPACKED_BUNDLE LOGS" in done.stderr
