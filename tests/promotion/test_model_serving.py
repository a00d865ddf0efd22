"""The champion behind `mlflow models serve`, in an environment that holds the model's own requirements and no more."""

import base64
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch

from mobileclip import config, entry, manifest
from mobileclip.data import images
from mobileclip.data.preprocess import image_tensor
from mobileclip.data.shards import read_samples
from mobileclip.models import zoo
from tests import mlflow_server, students

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
PATIENCE_SECONDS = 900  # a first start installs PyTorch


@pytest.fixture(scope="module")
def environments(tmp_path_factory):
    """Where MLflow makes its environments; on the disk of uv's cache, so that packages are linked and not copied."""
    return tmp_path_factory.mktemp("environments")


@pytest.fixture(scope="module")
def address(environments):
    """The first champion of a new model, served by MLflow's own command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url())
        section = config.Promote(model_name="served", gate=config.Gate(metric="student/zero_shot/group/top1"))
        metrics = entry.run_stage("promote", section, out=environments / "out", **students.world().folders("good"))
    assert metrics["promoted"] == 1.0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", "models:/served@champion",
        "--env-manager", "uv", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
    ]  # fmt: skip
    kept = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    uv = Path(os.environ.get("UV", "")).parent  # `uv run` says where it is; it need not be on the path
    environment = {
        **kept,
        "PATH": f"{uv}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": mlflow_server.url(),
        "MLFLOW_ENV_ROOT": str(environments / "made"),
        "OMP_NUM_THREADS": "1",
    }
    said = environments / "log"
    with said.open("wb") as file:
        server = subprocess.Popen(
            command, cwd=environments, env=environment, stdout=file, stderr=file, start_new_session=True
        )
    try:
        _wait(server, f"http://127.0.0.1:{port}/ping", said)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(server.pid, 15)
        server.wait(60)


def _wait(server, url, said):
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        assert server.poll() is None, said.read_text()[-3000:]
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            time.sleep(0.5)
        else:
            return
    pytest.fail(f"the model is not served:\n{said.read_text()[-3000:]}")


def ask(address, body):
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["predictions"]


def pictures():
    data = str(students.world().data)
    return list(read_samples(data, manifest.read(data), "test"))[:4]


def test_embeds_like_the_student(address):
    clip = zoo.load("trained:student", trained=str(students.world().folders("good")["student"]))
    samples = pictures()
    pixels = torch.stack([images.resize(images.decode(s.image), clip.preprocess) for s in samples])
    texts = [s.captions[0] for s in samples]
    rows = [{"image": base64.b64encode(s.image).decode(), "text": s.captions[0]} for s in samples]
    found = ask(address, {"dataframe_records": rows})
    for key, wanted in (
        ("image_embedding", clip.encode_image(image_tensor(pixels, clip.preprocess))),
        ("text_embedding", clip.encode_text(texts)),
    ):
        got = torch.tensor([row[key] for row in found])
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)


def test_gives_probabilities_of_labels(address):
    labels = list(students.COLORS)
    samples = pictures()
    rows = [{"image": base64.b64encode(s.image).decode()} for s in samples]
    params = {"labels": labels, "template": students.CAPTION}
    found = [row["probabilities"] for row in ask(address, {"dataframe_records": rows, "params": params})]
    best = [labels[max(range(len(labels)), key=row.__getitem__)] for row in found]
    assert best == [s.metadata["group"] for s in samples]


def test_answers_nonsense_with_a_client_error(address):
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(address, {"dataframe_records": [{"image": "no picture"}]})
    assert caught.value.code in {400, 500}
    assert ask(address, {"dataframe_records": [{"text": "a red square"}]})  # and goes on


def test_the_environment_holds_the_requirements_and_not_this_package(address, environments):
    del address  # the server has made it
    python = next((environments / "made").rglob("bin/python"))
    listed = subprocess.run(
        [python, "-c", "from importlib.metadata import distributions as d; print(*(x.name for x in d()))"],
        capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]},
    ).stdout.split()  # fmt: skip
    names = {name.lower().replace("_", "-") for name in listed}
    assert {"torch", "open-clip-torch", "mlflow"} <= names
    assert not {"mobileclip-pipelines", "kfp", "dvc", "webdataset", "onnxruntime"} & names
