"""The stage evaluate: its numbers against independent definitions, its files, its errors."""

import json

import numpy as np
import pytest
import torch

from mobileclip import manifest, storage
from mobileclip.config import Classification
from mobileclip.data import images
from mobileclip.data.preprocess import image_tensor
from mobileclip.data.shards import read_samples
from mobileclip.entry import run_stage
from mobileclip.errors import ConfigError, DataError, IntegrityError
from mobileclip.models import zoo
from mobileclip.stages import evaluate
from mobileclip.tracking.protocol import LogTracker
from tests.evaluation import small_run

CONFIG = small_run.CONFIG


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def inputs():
    return small_run.inputs()


@pytest.fixture(scope="module")
def finished():
    return small_run.evaluated()


def run(config, inputs, tmp_path):
    return evaluate.run(config, out=str(tmp_path), tracker=LogTracker(), data=str(inputs[0]), student=str(inputs[1]))


def sample_rows(out):
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]


def test_files_are_all_there(finished):
    out, _ = finished
    figures = {path.name for path in (out / "figures").iterdir()}
    assert figures == {"results.png", "validation-i2t-r1.png", "confusion-group.png", "confusion-number.png"}
    names = {path.name for path in out.iterdir() if path.is_file()}
    assert names == {
        "config.json", "metrics.json", "record.json", "report.html", "results.json", "samples.jsonl", "timings.json",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("prefix", "values"), [("", (True, False)), ("slice/true/", (True,)), ("slice/false/", (False,))]
)
def test_retrieval_equals_a_direct_computation(inputs, finished, prefix, values):
    data, folder = inputs
    samples = [s for s in read_samples(str(data), manifest.read(str(data)), "test") if s.metadata["seen"] in values]
    clip = zoo.load("trained:student", trained=str(folder))
    pixels = torch.stack([images.resize(images.decode(s.image), clip.preprocess) for s in samples])
    image = clip.encode_image(image_tensor(pixels, clip.preprocess))
    # What the tokenizer cuts or cleans away, the model cannot tell apart.
    first = {}
    own = [{first.setdefault(str(clip.tokenizer([t]).tolist()), t) for t in s.captions[:2]} for s in samples]
    texts = sorted(set().union(*own))
    scores = (image @ clip.encode_text(texts).T).numpy().round(6)  # what lies below is rounding

    def rank(row, right):
        """Wrong candidates that score at least as high as the best right one, and one."""
        best = max(score for score, is_right in zip(row, right, strict=True) if is_right)
        return 1 + sum(score >= best and not is_right for score, is_right in zip(row, right, strict=True))

    forward = [rank(scores[i], [text in mine for text in texts]) for i, mine in enumerate(own)]
    backward = {text: rank(scores[:, t], [text in mine for mine in own]) for t, text in enumerate(texts)}
    for k in (1, 5, 10):
        i2t = np.mean([place <= k for place in forward])
        hits = [backward[text] <= k for mine in own for text in mine]
        assert finished[1][f"{prefix}student/retrieval/i2t/r{k}"] == pytest.approx(i2t, abs=1e-6)
        assert finished[1][f"{prefix}student/retrieval/t2i/r{k}"] == pytest.approx(np.mean(hits), abs=1e-6)
        mean = (i2t + np.mean(hits)) / 2
        assert finished[1][f"{prefix}student/retrieval/mean/r{k}"] == pytest.approx(mean, abs=1e-6)


def test_zero_shot_equals_a_direct_computation(inputs, finished):
    data, folder = inputs
    samples = [s for s in read_samples(str(data), manifest.read(str(data)), "test") if "number" in s.metadata]
    clip = zoo.load("trained:control", trained=str(folder))
    pixels = torch.stack([images.resize(images.decode(s.image), clip.preprocess) for s in samples])
    image = clip.encode_image(image_tensor(pixels, clip.preprocess))
    classes = sorted({str(s.metadata["number"]) for s in samples})
    labels = torch.tensor([classes.index(str(s.metadata["number"])) for s in samples])
    probabilities = (clip.logit_scale * image @ clip.encode_text([f"number {c}" for c in classes]).T).softmax(dim=1)
    top5 = (probabilities.topk(5, dim=1).indices == labels[:, None]).any(dim=1).double()
    right = (probabilities.argmax(dim=1) == labels).double()
    per_class = torch.stack([right[labels == c].mean() for c in range(len(classes))])
    metrics = finished[1]
    assert metrics["control/zero_shot/number/top1"] == pytest.approx(float(right.mean()), abs=1e-6)
    assert metrics["control/zero_shot/number/top5"] == pytest.approx(float(top5.mean()), abs=1e-6)
    assert metrics["control/zero_shot/number/mean_per_class"] == pytest.approx(float(per_class.mean()), abs=1e-6)
    assert metrics["chance/zero_shot/number/top1"] == pytest.approx(1 / len(classes), abs=1e-6)
    majority = float(torch.bincount(labels).max() / len(labels))
    assert metrics["majority/zero_shot/number/top1"] == pytest.approx(majority, abs=1e-6)


def test_a_student_that_knows_its_classes_is_better(finished):
    out, metrics = finished
    table = json.loads((out / "results.json").read_text())["scopes"][0]["metrics"]
    assert metrics["student/zero_shot/group/top1"] > 0.8
    assert table["zero_shot/group/top1"]["delta"]["verdict"] == "better"
    assert table["zero_shot/group/top1"]["delta"]["p_value"] < 0.05


def test_metrics_hold_each_other(inputs, finished):
    out, metrics = finished
    names = [
        n.removeprefix("student/") for n in metrics if n.startswith("student/") and not n.endswith(("low", "high"))
    ]
    assert {"retrieval/t2i/median_rank", "zero_shot/group/ece", "zero_shot/group/worst_slice"} <= set(names)
    for name in names:
        student, control, delta = (metrics[f"{model}/{name}"] for model in ("student", "control", "delta"))
        assert delta == pytest.approx(student - control, abs=2e-6)
        for model in ("student", "control", "delta"):
            low, high = metrics[f"{model}/{name}/low"], metrics[f"{model}/{name}/high"]
            assert low <= high
            if not name.endswith("ece"):  # the bootstrap of a calibration error leans upward
                assert low <= metrics[f"{model}/{name}"] <= high
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert metrics["samples"] == metrics["slice/true/samples"] + metrics["slice/false/samples"] == 48
    data, folder = inputs
    tokenizer = zoo.load("trained:student", trained=str(folder)).tokenizer
    captions = [c for s in read_samples(str(data), manifest.read(str(data)), "test") for c in s.captions[:2]]
    assert metrics["texts"] == len({str(tokenizer([caption]).tolist()) for caption in captions})


def test_sample_table_gives_the_metrics_again(finished):
    out, metrics = finished
    rows = sample_rows(out)
    assert len(rows) == 48
    for model in ("student", "control"):
        i2t = np.array([row["retrieval"][model]["i2t"] for row in rows])
        t2i = np.array([rank for row in rows for rank in row["retrieval"][model]["t2i"]])
        assert metrics[f"{model}/retrieval/i2t/r5"] == pytest.approx((i2t <= 5).mean(), abs=1e-6)
        assert metrics[f"{model}/retrieval/t2i/r5"] == pytest.approx((t2i <= 5).mean(), abs=1e-6)
        assert metrics[f"{model}/retrieval/i2t/median_rank"] == np.sort(i2t)[(len(i2t) - 1) // 2]
        answers = [row["zero_shot"]["number"] for row in rows if "number" in row["zero_shot"]]
        assert 0 < len(answers) < 48
        right = np.mean([answer[model]["predicted"] == answer["label"] for answer in answers])
        assert metrics[f"{model}/zero_shot/number/top1"] == pytest.approx(right, abs=1e-6)
        part = [row["zero_shot"]["group"] for row in rows if row["slice"] == "false"]
        right = np.mean([answer[model]["rank"] == 1 for answer in part])
        assert metrics[f"slice/false/{model}/zero_shot/group/top1"] == pytest.approx(right, abs=1e-6)


def test_confusions_and_classes_give_the_metrics_again(finished):
    out, metrics = finished
    task = json.loads((out / "results.json").read_text())["classifications"]["number"]
    counts = np.array(task["models"]["student"]["confusion"])
    assert task["left_out"] == 48 - counts.sum() > 0
    assert metrics["student/zero_shot/number/top1"] == pytest.approx(counts.trace() / counts.sum(), abs=1e-6)
    recall = [row["value"] for row in task["models"]["student"]["per_class"].values()]
    assert metrics["student/zero_shot/number/mean_per_class"] == pytest.approx(np.mean(recall), abs=1e-5)
    assert metrics["student/zero_shot/number/worst_class"] == min(recall)


def test_the_same_inputs_give_the_same_bytes(inputs, finished, tmp_path):
    out, metrics = finished
    assert run(CONFIG, inputs, tmp_path) == metrics
    for path in sorted(p for p in tmp_path.rglob("*") if p.is_file() and p.name != "timings.json"):
        assert path.read_bytes() == (out / path.relative_to(tmp_path)).read_bytes(), path.name
    assert str(inputs[0]) not in (out / "report.html").read_text()


def test_batches_change_nothing_that_is_reported(inputs, finished, tmp_path):
    other = run(CONFIG.model_copy(update={"batch_size": 7, "gallery": 0}), inputs, tmp_path)
    assert other == pytest.approx(finished[1], abs=1e-4)


def test_without_a_control_there_is_no_difference(inputs, finished, tmp_path):
    alone = tmp_path / "alone"
    for name in storage.list_names(inputs[1] / "student"):
        storage.write_bytes(alone / "student" / name, (inputs[1] / "student" / name).read_bytes())
    metrics = run(CONFIG, (inputs[0], alone), tmp_path / "out")
    assert not [name for name in metrics if "delta/" in name or "control/" in name]
    known = {name: value for name, value in finished[1].items() if "delta/" not in name and "control/" not in name}
    assert metrics == known
    page = (tmp_path / "out" / "report.html").read_text()
    assert "evaluated without a control" in page
    assert "Learning curves" not in page


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"split": "validation"}, DataError, "evaluate.split: got 'validation'.*test, train"),
        ({"retrieval_field": "title"}, DataError, "evaluate.retrieval_field: got 'title', 48 of 48"),
        ({"slice_field": "captions"}, DataError, "evaluate.slice_field: got 'captions', which holds lists"),
        ({"slice_field": "nothing"}, DataError, "evaluate.slice_field: got 'nothing', no sample has it.*captions"),
        (
            {"classifications": [Classification(field="nothing")]},
            DataError,
            "evaluate.classifications.0.field: got 'nothing', no sample has it",
        ),
        (
            {"classifications": [Classification(field="split")]},
            DataError,
            "evaluate.classifications.0.field: got 'split', which has 1 classes",
        ),
        ({"headline": "retrieval/i2t/r3"}, ConfigError, "evaluate.headline: got 'retrieval/i2t/r3', want one of"),
    ],
)
def test_wrong_input_is_one_sentence_and_leaves_nothing(inputs, tmp_path, change, error, words):
    with pytest.raises(error, match=words):
        run(CONFIG.model_copy(update=change), inputs, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_missing_student_is_named(inputs, tmp_path):
    with pytest.raises(DataError, match=r"no checkpoint at '.*student'"):
        run(CONFIG, (inputs[0], tmp_path), tmp_path / "out")


def test_a_diverged_student_is_refused(inputs, tmp_path):
    clip = zoo.load("trained:student", trained=str(inputs[1]))
    next(clip.model.visual.parameters()).data.fill_(torch.nan)
    zoo.save(str(tmp_path / "student"), clip, license="MIT", card={})
    with pytest.raises(IntegrityError, match="the student gives embeddings that are not finite"):
        run(CONFIG, (inputs[0], tmp_path), tmp_path / "out")


@pytest.mark.parametrize(
    "section",
    [{"templates": ["no place for the class"]}, {"templates": []}, {"field": ""}],
)
def test_a_task_that_cannot_work_is_refused_by_the_configuration(section, tmp_path):
    whole = {**CONFIG.model_dump(), "classifications": [{"field": "group", "templates": ["{}"], **section}]}
    with pytest.raises(ConfigError, match=r"evaluate\.classifications\.0\."):
        run_stage("evaluate", whole, out=tmp_path, data=tmp_path, student=tmp_path)
