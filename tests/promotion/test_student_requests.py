"""What a packed student answers and refuses, through MLflow's own loader and its server's request handler."""

import base64
import io
import json

import mlflow
import mlflow.pyfunc.scoring_server as server
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from PIL import Image

from mobileclip.models import zoo
from mobileclip.promotion import student_model

PIXELS = np.random.RandomState(0).randint(0, 256, (2, 40, 50, 3)).astype(np.uint8)
TEXTS = ["a cat", "a dog"]


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


PNGS = [_png(pixels) for pixels in PIXELS]
CODED = [base64.b64encode(png).decode() for png in PNGS]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    root = tmp_path_factory.mktemp("packed")
    torch.manual_seed(0)
    zoo.save(str(root / "student"), zoo.create("tiny-mci"), license="MIT", card={})
    (root / "evidence").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        student_model._save(
            mlflow, root / "model", student=root / "student", evidence=root / "evidence", example=PNGS[0],
            described=mlflow.models.Model(),
        )  # fmt: skip
    return mlflow.pyfunc.load_model(str(root / "model"))


@pytest.fixture(scope="module")
def wanted(model):
    """Each image and each text by itself."""
    images = [model.predict(pd.DataFrame([{"image": png}]))["image_embedding"][0] for png in PNGS]
    texts = [model.predict(pd.DataFrame([{"text": text}]))["text_embedding"][0] for text in TEXTS]
    return {"image_embedding": np.array(images), "text_embedding": np.array(texts)}


def _post(model, body):
    answer = server.invocations(json.dumps(body), "application/json", model, model.metadata.get_input_schema())
    assert answer.status == 200
    return pd.DataFrame(json.loads(answer.response)["predictions"])


def _check(found, wanted, count=2):
    assert len(found) == count
    for name in found:
        np.testing.assert_allclose(np.array(found[name].tolist()), wanted[name][:count], atol=1e-5)


@pytest.mark.parametrize(
    "given",
    [
        {"text": TEXTS}, {"image": PNGS}, {"image": CODED}, {"image": list(PIXELS)}, {"image": PIXELS},
        {"image": PNGS, "text": TEXTS}, pd.DataFrame({"image": CODED, "text": TEXTS}),
        [{"text": text} for text in TEXTS], {"image": PIXELS / 255}, {"image": PIXELS.astype(np.float32)},
        {"image": PIXELS.tolist()},
    ],
    ids=[
        "texts", "bytes", "base64", "arrays", "stack", "both", "frame", "records", "fractions", "whole-floats", "lists",
    ],
)  # fmt: skip
def test_every_way_to_give_two_rows_gives_two_rows(model, wanted, given):
    _check(model.predict(given), wanted)


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": {"image": CODED}}, {"inputs": {"text": TEXTS}}, {"inputs": {"image": CODED, "text": TEXTS}},
        {"instances": [{"image": image} for image in CODED]}, {"instances": {"image": CODED}},
        {"inputs": [{"text": text} for text in TEXTS]},
        {"dataframe_split": {"columns": ["text"], "data": [[text] for text in TEXTS]}},
    ],
    ids=["images", "texts", "both", "records", "instances", "list", "split"],
)  # fmt: skip
def test_every_form_of_a_request_is_answered(model, wanted, body):
    _check(_post(model, body), wanted)


def test_a_lone_value_in_a_list_is_one_row(model, wanted):
    _check(_post(model, {"inputs": {"image": CODED[:1]}}), wanted, 1)


def test_the_models_own_example_is_answered(model, wanted):
    _check(model.predict(model.input_example)[["image_embedding"]], wanted, 1)


def test_many_labels_are_embedded_in_parts(model, monkeypatch):
    labels = [f"thing {number}" for number in range(300)]
    student = model.unwrap_python_model()
    seen, encode = [], student._encode_texts
    monkeypatch.setattr(student, "_encode_texts", lambda texts, unit: seen.append(len(texts)) or encode(texts, unit))
    found = model.predict({"image": PNGS[:1]}, params={"labels": labels})["probabilities"][0]
    assert len(found) == 300
    assert sum(found) == pytest.approx(1, abs=1e-5)
    assert max(seen) <= 64


def _postscript() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS[0]).save(stream, "EPS")
    return stream.getvalue()


def _of_size(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("1", (width, height)).save(stream, "PNG")
    return stream.getvalue()


REFUSED = {
    "EPS": ({"image": [_postscript()]}, r"^image: cannot be decoded, want a whole JPEG, PNG, WEBP, GIF, BMP\.$"),
    "cut": ({"image": [PNGS[0][:200]]}, r"^image: cannot be decoded"),
    "no base64": ({"image": ["not, base64"]}, r"^image: got a text that is no base64"),
    "many pixels": ({"image": [_of_size(13_312, 13_312)]}, r"^image: got 13312x13312 pixels, want at most 33554432 in"),
    "negative": ({"image": [PIXELS[0].astype(int) - 300]}, r"^image: got numbers from -\d+ to -?\d+, want \[height"),
    "fractions beyond 1": ({"image": [PIXELS[0] * 0.7]}, r"^image: got numbers from 0 to 178\.5, want \[height"),
    "NaN": ({"image": [np.full((4, 4, 3), np.nan)]}, r"^image: got numbers from nan to nan"),
    "flat": ({"image": [np.zeros((4, 4), np.uint8)]}, r"^image: got .*, want \[height, width, 3\]"),
    "number": (pd.DataFrame([{"text": "a"}, {"text": 5}], dtype=object), r"^text: got int, want a text\.$"),
    "long": ({"text": ["x" * 10_001]}, r"^text: got 10001 letters, want at most 10000\.$"),
    "lengths": ({"image": [PNGS], "text": [["a"]]}, r"^input: got \{'image': 2, 'text': 1\} rows, want as many"),
    "columns": (pd.DataFrame({"picture": ["x"]}), r"picture|^input: got columns"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_in_one_sentence(model, case):
    given, sentence = REFUSED[case]
    with pytest.raises(MlflowException, match=sentence) as caught:
        model.predict(given)
    assert caught.value.get_http_status_code() == 400


def test_too_many_labels_are_refused(model):
    with pytest.raises(MlflowException, match=r"^labels: got 20001, want at most 20000\.$"):
        model.predict({"image": PNGS[:1]}, params={"labels": ["x"] * 20_001})


def test_a_client_reads_the_sentence_and_no_paths(model):
    with pytest.raises(MlflowException) as caught:
        _post(model, {"dataframe_records": [{"text": "a"}, {"text": "x" * 10_001}]})
    said = caught.value.serialize_as_json()
    assert "text: got 10001 letters, want at most 10000." in said
    assert "Traceback" not in said
    assert ".py" not in said


def test_faults_of_the_model_itself_name_no_paths(model, monkeypatch):
    def broken(texts, unit):
        raise RuntimeError("/srv/models/weights.bin is gone")

    monkeypatch.setattr(model.unwrap_python_model(), "_encode_texts", broken)
    with pytest.raises(MlflowException) as caught:
        _post(model, {"inputs": {"text": TEXTS}})
    assert "model: cannot answer (RuntimeError)." in (said := caught.value.serialize_as_json())
    assert "/srv" not in said
    assert caught.value.get_http_status_code() == 500
