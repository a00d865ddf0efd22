"""`torchrun -m mobileclip distill`: the same student, curve and record as one process; killed and resumed on fewer."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from mobileclip.config import Distill
from mobileclip.models import zoo
from mobileclip.stages import distill
from mobileclip.tracking.protocol import LogTracker
from tests import tiny_chain
from tests.training.test_world import ROOT

pytestmark = pytest.mark.slow

STEPS = 6
ENVIRONMENT = {**os.environ, "MOBILECLIP_TRACKING": "off", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def params(tmp_path_factory):
    values = tiny_chain.params()
    section = values["distill"]
    section |= {"distill_weight": 0.7, "control": False, "seed": 5}
    section["training"] |= {
        "steps": STEPS,
        "batch_size": 9,
        "log_every": 1,
        "checkpoint_every": 2,
        "keep_checkpoints": 9,
    }
    # Normalization over few samples amplifies rounding from step to step: small steps keep curves together.
    section["training"]["optimizer"] |= {"lr": 1e-4, "warmup_steps": 1}
    return tiny_chain.write_params(tmp_path_factory.mktemp("params") / "params.yaml", values), Distill(**section)


@pytest.fixture(scope="module")
def alone(params, tiny_reinforced, tmp_path_factory):
    """One process."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("alone")
    distill.run(params[1], out=str(out), tracker=LogTracker(), data=tiny_reinforced)
    return out


def _start(params, out, data, processes=2):
    together = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    run = [sys.executable, *(together if processes > 1 else [])]
    stage = ["-m", "mobileclip", "distill", "--params", str(params[0]), "--out", str(out), "--data", data]
    return subprocess.Popen(
        [*run, *stage], cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def _points(out):
    return [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]


def _assert_same_curve(found, expected):
    assert len(found) == len(expected) == STEPS
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for key in ("loss", "loss/clip", "loss/distill", "logit_scale"):
            assert one[key] == pytest.approx(other[key], rel=1e-3), (key, other["step"])


def test_two_processes_leave_what_one_leaves(params, alone, tiny_reinforced, tmp_path):
    process = _start(params, tmp_path, tiny_reinforced)
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said[-4000:]
    _assert_same_curve(_points(tmp_path), _points(alone))
    assert _points(tmp_path)[0]["loss"] == pytest.approx(_points(alone)[0]["loss"], rel=1e-4)
    record = json.loads((tmp_path / "record.json").read_text())
    assert set(record["files"]) == {
        "config.json", "metrics.json", "history.jsonl",
        *(f"student/{name}" for name in ("model.json", "open_clip_config.json", "open_clip_model.safetensors")),
    }  # fmt: skip
    assert said.count("student/loss") == 1  # one process speaks
    student, other = (zoo.load(f"local-dir:{out}/student").model.state_dict() for out in (tmp_path, alone))
    for name, value in student.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, other[name], rtol=1e-2, atol=2e-3, msg=lambda m, name=name: f"{name} {m}")
        else:
            assert torch.equal(value, other[name])


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_and_resumed_on_one_process(params, alone, tiny_reinforced, tmp_path, processes):
    """From one process to one: equal to the last bit. From two to one: the curve goes on as if nothing had been."""
    process = _start(params, tmp_path, tiny_reinforced, processes)
    folder, name = tmp_path / "student" / "checkpoint", "run-*/step-000000002/state.json"
    limit = time.monotonic() + 300
    while not list(folder.glob(name)) and process.poll() is None:
        assert time.monotonic() < limit
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, process.stdout.read()[-4000:]
    (state,) = folder.glob(name)
    header = json.loads(state.read_text())
    assert (header["samples"], header["processes"]) == (18, processes)
    assert not (tmp_path / "record.json").exists()
    distill.run(params[1], out=str(tmp_path), tracker=LogTracker(), data=tiny_reinforced)
    assert _points(tmp_path)[:2] == header["history"]
    assert not state.exists()  # a complete stage leaves no checkpoint
    if processes == 1:
        assert _points(tmp_path) == _points(alone)
        weights = "student/open_clip_model.safetensors"
        assert (tmp_path / weights).read_bytes() == (alone / weights).read_bytes()
    else:
        _assert_same_curve(_points(tmp_path), _points(alone))


def test_a_stage_that_does_not_train_wants_one_process(tmp_path, monkeypatch):
    from mobileclip.entry import run_stage
    from mobileclip.errors import ConfigError

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"^prepare: got 2 processes, only train_teacher, .* train on several\.$"):
        run_stage("prepare", tiny_chain.params()["prepare"], out=tmp_path, source=str(tmp_path))
