"""What the section may ask for beside retrieval and prompts, on a small real run and by other definitions."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from mobileclip import manifest
from mobileclip.data import images
from mobileclip.data.preprocess import image_tensor
from mobileclip.data.shards import read_samples
from mobileclip.entry import run_stage
from mobileclip.errors import ConfigError, DataError
from mobileclip.evaluation import cost
from mobileclip.evaluation.corruptions import corrupt
from mobileclip.models import zoo
from mobileclip.reports.text import metric_label
from tests.evaluation import small_run

CONFIG = small_run.CONFIG.model_copy(
    update={
        "negative_field": "group",
        "linear_probe": True,
        "knn": 5,
        "corruptions": ["gaussian_noise", "contrast"],
        "severities": [2, 5],
        "resolutions": [96],
        "headline": "zero_shot/group/top1",
        "bootstrap": 50,
        "gallery": 0,
    }
)


@pytest.fixture(scope="module")
def inputs():
    return small_run.inputs()


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    """The table of all samples, the flat metrics, and the folder."""
    out = tmp_path_factory.mktemp("evaluate")
    metrics = run_stage("evaluate", CONFIG, out=out, data=inputs[0], student=inputs[1])
    table = json.loads((out / "results.json").read_text())["scopes"][0]["metrics"]
    return table, metrics, out


@pytest.fixture(scope="module")
def student(inputs):
    return zoo.load("trained:student", trained=str(inputs[1]))


def embed(clip, samples, *, change=None, size=0):
    """Embeddings of pictures, one at a time."""
    found = []
    for sample in samples:
        picture = images.decode(sample.image)
        pixels = images.resize(picture, replace(clip.preprocess, size=size or clip.preprocess.size))
        if change:
            pixels = torch.from_numpy(change(pixels.permute(1, 2, 0).numpy(), sample.uid)).permute(2, 0, 1)
        found.append(clip.encode_image(image_tensor(pixels[None], clip.preprocess))[0].numpy())
    return np.array(found)


def samples_of(inputs, split):
    return list(read_samples(str(inputs[0]), manifest.read(str(inputs[0])), split))


def zero_shot_accuracy(clip, features, samples):
    """Share of pictures whose own color's prompts are nearest."""
    names = sorted({sample.metadata["group"] for sample in samples})
    prompts = clip.encode_text([p.format(name) for name in names for p in ("a {} square", "{}")]).numpy()
    classes = prompts.reshape(len(names), 2, -1).mean(axis=1)
    said = (features @ (classes / np.linalg.norm(classes, axis=1, keepdims=True)).T).argmax(axis=1)
    return np.mean([names[i] == sample.metadata["group"] for i, sample in zip(said, samples, strict=True)])


def test_compositions_want_the_caption_nearer_than_every_wrong_one(inputs, finished, student):
    samples = samples_of(inputs, "test")
    pictures = embed(student, samples)
    right = student.encode_text([sample.captions[0] for sample in samples]).numpy()
    wrong = student.encode_text([sample.metadata["group"] for sample in samples]).numpy()
    margins = (pictures * right).sum(axis=1) - (pictures * wrong).sum(axis=1)
    row = finished[0]["composition/group/accuracy"]
    # This student tells little apart, so some pictures lie on the edge of rounding; all others must count as here.
    edge = 1e-5
    surely, perhaps = (margins > edge).mean(), (margins > -edge).mean()
    assert surely - 1e-6 <= row["student"]["value"] <= perhaps + 1e-6
    assert perhaps - surely < 0.15
    assert row["chance"] == 0.5
    assert row["student"]["low"] <= row["student"]["value"] <= row["student"]["high"]


def test_neighbors_come_from_the_training_split(inputs, finished, student):
    train, test = samples_of(inputs, "train"), samples_of(inputs, "test")
    model = KNeighborsClassifier(5, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07))
    model.fit(embed(student, train), [sample.metadata["group"] for sample in train])
    wanted = model.score(embed(student, test), [sample.metadata["group"] for sample in test])
    assert finished[0]["knn/group/top1"]["student"]["value"] == pytest.approx(wanted, abs=1e-6)
    probe = LogisticRegression(C=1 / (CONFIG.linear_probe_l2 * len(train)), tol=1e-10, max_iter=10_000)
    probe.fit(embed(student, train).astype(float), [sample.metadata["group"] for sample in train])
    wanted = probe.score(embed(student, test).astype(float), [sample.metadata["group"] for sample in test])
    assert finished[0]["linear_probe/group/top1"]["student"]["value"] == pytest.approx(wanted, abs=0.021)
    assert wanted > 0.25


def test_corrupted_pictures_are_scored_by_the_headline(inputs, finished, student):
    table, samples = finished[0], samples_of(inputs, "test")
    values = []
    for kind in ("gaussian_noise", "contrast"):
        for severity in (2, 5):

            def change(pixels, uid, kind=kind, severity=severity):
                return corrupt(pixels, kind, severity=severity, seed=f"{CONFIG.seed}:{uid}")

            wanted = zero_shot_accuracy(student, embed(student, samples, change=change), samples)
            values.append(table[f"robustness/{kind}/s{severity}"]["student"]["value"])
            assert values[-1] == pytest.approx(wanted, abs=0.021)
    assert table["robustness/mean/all"]["student"]["value"] == pytest.approx(np.mean(values), abs=1e-6)
    assert "verdict" in table["robustness/mean/all"]["delta"]


def test_another_input_size_is_scored_by_the_headline(inputs, finished, student):
    samples = samples_of(inputs, "test")
    wanted = zero_shot_accuracy(student, embed(student, samples, size=96), samples)
    assert finished[0]["resolution/96/headline"]["student"]["value"] == pytest.approx(wanted, abs=0.021)


def test_the_report_has_words_for_every_metric(finished):
    page = (finished[2] / "report.html").read_text()
    for metric in finished[0]:
        for words in metric_label(metric):
            assert words in page


def test_what_cannot_be_measured_is_an_error(inputs, tmp_path):
    def run(**changes):
        config = CONFIG.model_copy(
            update={"corruptions": [], "resolutions": [], "linear_probe": False, "knn": 0, **changes}
        )
        run_stage("evaluate", config, out=tmp_path, data=inputs[0], student=inputs[1])

    with pytest.raises(DataError, match="negative_field: got 'number_'"):
        run(negative_field="number_")
    with pytest.raises(ConfigError, match="probe_split: got 'test', which is evaluated"):
        run(negative_field="", knn=3, probe_split="test")
    with pytest.raises(ConfigError, match=r"headline: got 'zero_shot/group/worst_slice'"):
        run(negative_field="", resolutions=[96], headline="zero_shot/group/worst_slice")


def test_multiply_accumulates_are_those_of_the_layers(student, finished):
    """Convolutions and matrix products counted by hooks, module by module."""
    counted = 0

    def count(module, _, output):
        nonlocal counted
        if isinstance(module, torch.nn.Conv2d):
            kernel = module.kernel_size[0] * module.kernel_size[1] * module.in_channels // module.groups
            counted += output.numel() * kernel
        else:
            counted += output.numel() * module.in_features

    layers = [m for m in student.model.visual.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    student.encode_image(torch.zeros(1, 3, student.preprocess.size, student.preprocess.size))
    for hook in hooks:
        hook.remove()
    facts = cost.describe(student)
    # Attention's own products belong to no layer.
    assert counted <= facts["image"]["macs"] <= 1.05 * counted
    total = sum(p.numel() for p in student.model.parameters())
    assert facts["image"]["parameters"] + facts["text"]["parameters"] == total
    assert finished[1]["cost/student/text/macs"] == facts["text"]["macs"] > 0
    peaks = json.loads((finished[2] / "timings.json").read_text())["peak_memory_mb"]
    assert set(peaks) == {"image", "text"}
    assert min(peaks.values()) > 0


def test_peak_memory_is_what_a_turn_takes():
    """A hundred megabytes held for a moment are seen, also where as much was freed just before.

    In pieces, which the allocator keeps for later when they are freed, and each filled in place: what a sum leaves
    behind between the pieces would be counted, too, and how much of it there is depends on all tests before.
    """
    freed = [torch.ones(250_000) for _ in range(100)]
    above = torch.ones(250_000)  # what lies below a piece in use is not given back to the system by itself
    del freed
    grown = cost._growth(lambda: [torch.ones(250_000) for _ in range(100)])
    assert 90e6 < grown < 110e6
    assert above.all()
